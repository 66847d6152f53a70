"""A report in a real browser: Chromium, by Playwright.

GRADINDEX_SCREENSHOTS=report.html also takes pictures of that report for docs/images.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_answers import answers, drawing

from gradindex.report.page import to_html, write_report
from gradindex.search.results import Verdict

pytest_plugins = ["chromium"]

IMAGES = Path(__file__).parents[2] / "docs/images"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    whole = answers(6, opponents=True, caption_of=lambda row: f"a disc, number {row}")
    write_report(whole, file, "gradindex query idx *.png")
    return file


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file in a fresh window. It must not complain, nor ask for anything but files."""
    contexts, faults = [], []

    def opened(file: Path, size: str = "desktop", **options: Any) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: faults.extend(_elsewhere(request.url)))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def _elsewhere(url: str) -> list[str]:
    """An address that is not in the file or beside it."""
    return [] if url.startswith(("file:", "data:", "blob:")) else [url]


def count(page: Any, selector: str) -> int:
    """How many elements people see."""
    return sum(element.is_visible() for element in page.locator(selector).all())


# --- what it looks like ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(open_page: Open, report: Path, size: str, scheme: str) -> None:
    page = open_page(report, size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground, text = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("backgroundColor", "color")
    )
    assert (sum(ground) > sum(text)) == (scheme == "light")
    assert abs(sum(ground) - sum(text)) > 500
    columns = page.evaluate(
        "getComputedStyle(document.querySelector('.hits')).gridTemplateColumns.split(' ').length"
    )
    assert columns == (10 if size == "desktop" else 3)


@pytest.mark.parametrize("width", [1280, 1265, 1000, 761, 600, 360])
def test_rank_z_and_dots_stand_on_one_line(open_page: Open, report: Path, width: int) -> None:
    page = open_page(report)
    page.set_viewport_size({"width": width, "height": 900})
    widest = """places => places.every(place => {
      place.querySelector("b").textContent = "10";
      place.querySelector(".z").textContent = "z 18.4";
      return place.scrollWidth <= place.clientWidth;
    })"""
    assert page.locator(".hit:has(.agree + .agree) .place").evaluate_all(widest)


def test_pictures_are_shown(open_page: Open, report: Path) -> None:
    """In the colours of their files, but for those of many lists, which are grey."""
    page = open_page(report)
    expected = np.asarray(drawing(0).resize((9, 9), Image.Resampling.BOX), float)
    in_colour = shown(page.locator(".strip img"))
    assert np.abs(in_colour - expected)[2:7, 2:7].mean() < 12
    in_grey = shown(page.locator(".hit.common img"))
    assert np.ptp(in_grey, axis=2).max() < 3
    assert np.ptp(in_colour, axis=2).max() > 20


def shown(locator: Any) -> np.ndarray:
    """The first of some elements as it is on the screen, 9 × 9 pixels, [9, 9, 3]."""
    shot = Image.open(io.BytesIO(locator.first.screenshot())).convert("RGB")
    return np.asarray(shot.resize((9, 9), Image.Resampling.BOX), float)


def test_the_generated_picture_stays_in_sight(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.locator("#q2 .row").nth(2).scroll_into_view_if_needed()
    box = page.locator("#q2 .asked > img").bounding_box()
    assert 0 <= box["y"] < 900 - box["height"]


def test_print_leaves_out_what_paper_cannot_do(open_page: Open, report: Path) -> None:
    page = open_page(report, color_scheme="dark")
    page.emulate_media(media="print")
    assert count(page, ".controls, .contents") == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "selector"),
    [
        ("errors", ".error"),
        ("names", ".hit .name"),
        ("timesteps", ".hit svg"),
        ("common", ".common"),
    ],
)
def test_a_switch_hides_and_shows(
    open_page: Open, report: Path, switch: str, selector: str
) -> None:
    """By keyboard, as a switch of a form."""
    page = open_page(report)
    shown = count(page, f"#q1 {selector}")
    assert shown > 0
    page.locator(f"#show-{switch}").focus()
    page.keyboard.press("Space")
    assert count(page, selector) == 0
    page.keyboard.press("Space")
    assert count(page, f"#q1 {selector}") == shown


def test_a_group_can_be_picked(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.select_option("#group", label="folder 1")
    names = page.locator(".hit:not(.off) > .name").evaluate_all("all => all.map(e => e.title)")
    assert names
    assert all(name.startswith("folder 1/") for name in names)
    page.select_option("#group", label="all groups")
    assert page.locator(".hit.off").count() == 0


def test_opponents_are_folded(open_page: Open, report: Path) -> None:
    page = open_page(report)
    assert count(page, "#q1 details.row .hit") == 0
    page.locator("#q1 details.row summary").first.focus()
    page.keyboard.press("Enter")
    assert count(page, "#q1 details.row .hit") == 10


def test_a_picture_comes_nearer(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.locator("#q1 .hit button").first.focus()
    page.keyboard.press("Enter")
    closer = page.locator("dialog")
    assert "folder 0/picture 0000.png" in closer.inner_text()
    assert "It is in lists of 6 of the pictures on this page." in closer.inner_text()
    page.keyboard.press("ArrowRight")
    assert "picture 0000.png" not in closer.inner_text()
    page.keyboard.press("ArrowLeft")
    assert "picture 0000.png" in closer.inner_text()
    page.keyboard.press("Escape")
    assert not closer.is_visible()
    focused = page.evaluate("document.activeElement.closest('.hit').dataset.row")
    assert focused == "0"


def test_answers_can_be_saved(open_page: Open, report: Path, tmp_path: Path) -> None:
    page = open_page(report)
    for kind in ("json", "csv"):
        with page.expect_download() as download:
            page.click(f"[data-save={kind}]")
        download.value.save_as(tmp_path / f"a.{kind}")
    whole = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    hits = [
        {"method": answer["method"], "picture": query["picture"], **hit}
        for answer in whole["answers"]
        for query in answer["queries"]
        for hit in [*query["hits"], *query.get("opponents", [])]
    ]
    assert len(lines) == len(hits) == 6 * (3 + 2) * 10
    for line, hit in zip(lines, hits, strict=True):
        assert all(line[name] == hit[name] for name in ("picture", "method", "id", "caption"))
        assert (float(line["score"]), float(line["z"])) == (hit["score"], hit["z"])
        assert line["stderr"] == ("" if hit["stderr"] is None else "0.1")


def test_without_a_script_it_still_reads(open_page: Open, report: Path) -> None:
    page = open_page(report, java_script_enabled=False)
    assert page.locator("#q6 .hit").count() == 50
    page.locator("label:has(#show-names)").click()
    assert count(page, "#q1 .hit .name") == 0


def test_hostile_names_do_nothing(open_page: Open, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'\n,{{1}}=.png"
    whole = answers(
        2,
        k=3,
        name_of=lambda row: f"{'=@'[row % 2]}{evil}{row}",
        query_name=lambda q: f"{evil}{q}",
        caption_of=lambda row: evil,
        group_of=lambda row: f"{evil}{row % 2}",
        prompt=evil,
    )
    (tmp_path / "evil.html").write_text(to_html(whole, evil), encoding="utf-8")
    page = open_page(tmp_path / "evil.html")
    page.locator("#q1 .hit button").first.click()
    assert "<script>alert(1)</script>" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.click("[data-save=csv]")
    download.value.save_as(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * 3
    # A spreadsheet takes them for texts.
    assert {line["id"][:2] for line in lines} <= {"'=", "'@"}


def test_an_overview_leads_to_every_picture(open_page: Open, tmp_path: Path) -> None:
    write_report(answers(60, k=2), tmp_path / "many.html")
    page = open_page(tmp_path / "many.html")
    page.locator(".contents a").nth(54).click()
    page.wait_for_url("**/002.html#q55")
    assert count(page, "#q55 .hit") == 3 * 2
    page.locator("a", has_text="Overview").first.click()
    page.wait_for_url("**/many.html")


# --- pictures for docs ----------------------------------------------------------------------------


def test_a_star_opens_what_it_is_on(open_page: Open, tmp_path: Path) -> None:
    verdict = Verdict("attributable", "attributable: …", ["folder 0/picture 0000.png"], 0.01)
    write_report(answers(1, verdict=verdict), tmp_path / "report.html", "")
    page = open_page(tmp_path / "report.html")
    star = page.locator(".hit > .named")
    assert (star.count(), star.get_attribute("title")) == (1, "stands out")
    star.click()
    assert page.locator("#closer").is_visible()
    assert "picture 0000.png" in page.locator("#closer .name").inner_text()
    assert page.locator("#closer .named").is_visible()


@pytest.mark.skipif("GRADINDEX_SCREENSHOTS" not in os.environ, reason="takes pictures for docs")
@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("desktop", "desktop", "light"), ("phone", "phone", "light"), ("dark", "desktop", "dark")],
)
def test_screenshots_for_docs(open_page: Open, name: str, size: str, scheme: str) -> None:
    file = Path(os.environ["GRADINDEX_SCREENSHOTS"]).resolve()
    page = open_page(file, size, color_scheme=scheme)
    IMAGES.mkdir(exist_ok=True)
    target = IMAGES / f"report-{name}.png"
    height = 1500 if size == "desktop" else 1700
    clip = {"x": 0, "y": 0, "width": SIZES[size][0], "height": height}
    page.screenshot(path=target, full_page=True, clip=clip)
    assert target.stat().st_size > 20_000
