"""The pages of `gradindex serve` in a real browser, from a server of its own process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest_plugins = ["chromium", "served_fixtures"]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
HOSTILE = "<img src=x onerror=alert(1)>&amp;{{1}}.png"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def address(built: Path, plain: Path) -> Iterator[str]:
    """The address of a server with two indexes, which is what it prints first."""
    command = [sys.executable, "-m", "gradindex", "serve", str(built), str(plain), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.send_signal(signal.SIGINT)  # Ctrl-C, which ends it in peace
        assert server.wait(30) == 0


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:
    """Opens a page of the server in a fresh window.

    It must not complain, nor ask any other server. What is refused is a line of the console.
    """
    contexts, faults = [], []

    def opened(path: str = "/", size: str = "desktop", context: Any = None, **options: Any) -> Any:
        width, height = SIZES[size]
        if context is None:
            context = browser.new_context(viewport={"width": width, "height": height}, **options)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.extend(_complaint(message.text)))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: faults.extend(_elsewhere(request.url, address)))
        page.goto(address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def _elsewhere(url: str, address: str) -> list[str]:
    return [] if url.startswith((f"{address}/", "data:", "blob:")) else [url]


def _complaint(text: str) -> list[str]:
    refused = text.startswith("Failed to load resource") and (" 415 " in text or " 404 " in text)
    return [] if refused else [text]


def give(page: Any, picture: Path, name: str = "") -> None:
    """Upload a picture, and wait for the answer about it."""
    content = {"name": name or picture.name, "mimeType": "image/png"}
    page.set_input_files("#file", {**content, "buffer": picture.read_bytes()})
    page.wait_for_selector(f".card[aria-label={json.dumps(name or picture.name)}]")
    page.wait_for_selector("#progress", state="hidden")


def fields_of(page: Any) -> dict[str, str]:
    """The state in the address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def titles(page: Any) -> list[str]:
    return page.locator(".card h2").all_inner_texts()


# --- query ----------------------------------------------------------------------------------------


def test_an_uploaded_picture_is_answered(open_page: Open, queries: list[Path]) -> None:
    """With the cards of a report; the address alone brings the answer back."""
    page = open_page()
    assert page.locator(".card").count() == 0
    give(page, queries[0])
    assert titles(page) == ["ReTrac", "TracIn", "Nearest in pixels"]
    hits = page.locator(".hit .name").evaluate_all("all => all.map(e => e.title)")
    assert len(hits) == 3 * 10
    assert any(name.startswith("odd & <b>/") for name in hits)
    assert [*fields_of(page)] == ["upload"]
    again = open_page("/?" + urlsplit(page.url).query)
    again.wait_for_selector(".card")
    assert again.locator(".hit .name").evaluate_all("all => all.map(e => e.title)") == hits


def test_the_method_can_be_switched(open_page: Open, queries: list[Path]) -> None:
    """And back again, by the browser's button."""
    page = open_page()
    give(page, queries[0])
    page.select_option("[name=method]", "tracin")
    page.wait_for_selector(".verdict + .row.tracin")
    assert titles(page) == ["TracIn", "ReTrac", "Nearest in pixels"]
    assert fields_of(page)["method"] == "tracin"
    page.go_back()
    page.wait_for_selector(".verdict + .row.retrac")
    assert page.locator("[name=method]").input_value() == "retrac"


def test_options_are_in_the_address(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    give(page, queries[0])
    page.locator(".more summary").click()
    page.locator("[name=opponents]").check()
    page.wait_for_selector("details.row")
    page.locator("[name=timesteps_to]").fill("600")
    page.locator("[name=k]").fill("3")
    page.locator("[name=group_by]").fill("folder")
    page.locator(".go").click()
    page.wait_for_selector(".shares")
    page.wait_for_selector("#progress", state="hidden")
    assert page.locator(".row.retrac:not(.against) .hit").count() == 3
    state = fields_of(page)
    state.pop("upload")
    expected = {"opponents": "true", "timesteps_to": "600", "k": "3", "group_by": "folder"}
    assert state == expected
    page.reload()
    page.wait_for_selector(".shares")
    assert page.locator("[name=opponents]").is_checked()
    assert page.locator("[name=k]").input_value() == "3"


def test_a_picture_can_be_dropped(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    page.evaluate(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        [*queries[0].read_bytes()],
    )
    page.wait_for_selector(".card[aria-label='dropped.png']")


def test_a_training_picture_can_be_asked_about(open_page: Open) -> None:
    page = open_page()
    page.locator("[name=training]").press_sequentially("b>/p003")
    page.wait_for_selector("#ids option[value$='p003.png']", state="attached")
    page.locator("#ids option").nth(1).wait_for(state="detached")
    (name,) = page.locator("#ids option").evaluate_all("all => all.map(e => e.value)")
    assert name == "odd & <b>/p003.png"
    page.locator("[name=training]").fill(name)
    page.locator(".go").click()
    page.wait_for_selector(".card")
    assert page.locator(".hit .name").first.get_attribute("title") == name
    assert fields_of(page) == {"training": name}


def test_a_bad_file_is_refused_in_one_line(open_page: Open, queries: list[Path]) -> None:
    """And the next one is answered."""
    page = open_page()
    bad = {"name": HOSTILE, "mimeType": "image/png", "buffer": b"no picture"}
    page.set_input_files("#file", bad)
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("[role=alert]").inner_text().startswith(f"{HOSTILE}: not a picture")
    give(page, queries[0])
    assert page.locator("[role=alert]").is_hidden()


def test_a_question_that_does_not_fit_is_refused_in_one_line(
    open_page: Open, queries: list[Path]
) -> None:
    page = open_page()
    give(page, queries[0])
    page.locator(".more summary").click()
    page.locator("[name=timesteps_from]").fill("999")
    page.locator(".go").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "the index has none of them" in page.locator("[role=alert]").inner_text()
    assert page.locator(".card").count() == 0
    unknown = open_page("/?upload=" + 64 * "0")
    unknown.wait_for_selector("#problem:not([hidden])")
    assert "give the picture again" in unknown.locator("[role=alert]").inner_text()


def test_two_tabs_do_not_mix(open_page: Open, queries: list[Path]) -> None:
    """They are asked at the same time."""
    first = open_page()
    second = open_page(context=first.context)
    for page, picture in ((first, queries[0]), (second, queries[1])):
        page.set_input_files("#file", picture)
    for page, picture in ((first, queries[0]), (second, queries[1])):
        page.wait_for_selector(f".card[aria-label='{picture.name}']")
        assert page.locator(".card").count() == 1
    assert fields_of(first)["upload"] != fields_of(second)["upload"]


def test_answers_can_be_saved(open_page: Open, queries: list[Path], tmp_path: Path) -> None:
    page = open_page()
    give(page, queries[0])
    for selector, name in (("[data-save=json]", "a.json"), ("a", "a.html")):
        with page.expect_download() as download:
            page.locator(f".controls {selector}").click()
        download.value.save_as(tmp_path / name)
    saved = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [answer["method"] for answer in saved["answers"]] == ["retrac", "tracin", "pixels"]
    assert saved["answers"][0]["queries"][0]["picture"] == queries[0].name
    report = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Nothing on this page is fetched from elsewhere" in report


# --- the drawer -----------------------------------------------------------------------------------


def test_a_training_picture_opens(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    give(page, queries[0])
    name = page.locator(".hit .name").first.get_attribute("title")
    page.locator(".hit button").first.click()
    page.wait_for_selector("dialog .drawer")
    assert name in page.locator("dialog").inner_text()
    assert "by timestep" in page.locator("dialog .drawer").inner_text()
    shown = "document.querySelector('dialog img')"
    assert page.evaluate(f"{shown}.decode().then(() => {shown}.naturalWidth)") == 8
    page.locator("dialog >> text=Search from this").click()
    page.wait_for_selector(f".card[aria-label={json.dumps(name.rpartition('/')[2])}]")
    assert fields_of(page) == {"training": name}
    # The picture that was asked about before had it in its list.
    page.locator(".hit button").first.click()
    page.wait_for_selector("dialog .drawer")
    page.locator(f"dialog .drawer a:has-text('{queries[0].name}')").click()
    page.wait_for_selector(f".card[aria-label='{queries[0].name}']")
    assert [*fields_of(page)] == ["upload"]


def test_pictures_can_be_listed_for_removal(
    open_page: Open, queries: list[Path], tmp_path: Path
) -> None:
    page = open_page()
    give(page, queries[0])
    names = page.locator(".hit .name").evaluate_all("all => all.map(e => e.title)")[:2]
    for number in range(2):
        page.locator(".hit button").nth(number).click()
        page.locator("dialog .drawer button").click()
        page.keyboard.press("Escape")
    assert "2 pictures to exclude" in page.locator("#excluded").inner_text()
    assert page.locator(".hit.out").count() >= 2
    page.reload()  # the list stays
    page.wait_for_selector(".hit.out")
    with page.expect_download() as download:
        page.locator("[data-list=download]").click()
    download.value.save_as(tmp_path / "exclude.txt")
    assert (tmp_path / "exclude.txt").read_text(encoding="utf-8").splitlines() == names
    page.locator("[data-list=clear]").click()
    assert page.locator("#excluded").is_hidden()
    assert page.locator(".hit.out").count() == 0


# --- the other views ------------------------------------------------------------------------------


def test_views_go_on_with_the_same_picture(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    give(page, queries[0])
    page.locator(".tabs >> text=Groups").click()
    page.wait_for_selector(".shares table")
    groups = page.locator(".shares td.group").all_inner_texts()
    assert sorted(groups) == ["even", "odd & <b>"]
    assert queries[0].name in page.locator(".shares header").inner_text()


def test_two_methods_are_compared(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    give(page, queries[0])
    page.locator(".tabs >> text=Compare").click()
    page.wait_for_selector(".card")
    assert titles(page) == ["ReTrac", "TracIn"]
    assert "of 10" in page.locator(".tile").first.inner_text()
    page.select_option("[name=other_method]", "retrac")
    page.wait_for_selector(".tile >> text=1.00")
    assert "10 of 10" in page.locator(".tile").first.inner_text()
    assert page.locator(".hit .marks").count() == 20
    assert fields_of(page)["other_method"] == "retrac"


def test_two_indexes_are_compared(open_page: Open, queries: list[Path]) -> None:
    """A picture of the other index opens as that of the other index."""
    page = open_page("/compare")
    page.set_input_files("#file", queries[0])
    page.wait_for_selector(".card")
    page.select_option("[name=other]", "plain")
    page.wait_for_selector("section[aria-label='TracIn, plain']")
    assert titles(page) == ["ReTrac, digits", "TracIn, plain"]
    assert "0 of 10" in page.locator(".tile").first.inner_text()
    page.locator("section[aria-label='TracIn, plain'] .hit button").first.click()
    page.wait_for_selector("dialog .drawer")
    shown = "document.querySelector('dialog img')"
    assert page.evaluate(f"{shown}.decode().then(() => {shown}.naturalWidth)") == 8
    assert page.locator("dialog .drawer button").count() == 0
    page.locator("dialog >> text=Search from this").click()
    page.wait_for_selector(".card[aria-label^='p00']")
    assert fields_of(page)["index"] == "plain"


def test_common_pictures_and_outliers_are_measured(open_page: Open) -> None:
    page = open_page("/common")
    page.locator("[name=k]").fill("4")
    page.locator("[name=method]").select_option("tracin")
    page.locator(".go").click()
    page.wait_for_selector("section[aria-label=Outliers]")
    assert page.locator("section[aria-label=Outliers] .hit").count() == 4
    page.locator("section[aria-label=Outliers] .hit button").first.click()
    page.wait_for_selector("dialog .drawer")
    assert fields_of(page) == {"method": "tracin", "k": "4", "go": "1"}


def test_health_is_shown_and_verified(open_page: Open, built: Path) -> None:
    page = open_page("/health")
    assert str(built) in page.locator(".info").inner_text()
    page.locator(".go").click()
    page.wait_for_selector("section[aria-label=Verified]")
    assert "Whole" in page.locator("section[aria-label=Verified]").inner_text()


def test_another_index_can_be_asked(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    give(page, queries[0])
    page.select_option(".which select", "plain")
    page.wait_for_url("**/?index=plain&upload=*")
    page.wait_for_selector(".card")
    assert page.locator(".hit .name").first.get_attribute("title").startswith("p00")
    page.locator("[name=k]").fill("2")
    page.locator(".go").click()
    page.locator(".row.retrac .hit").nth(2).wait_for(state="detached")
    assert fields_of(page)["index"] == "plain"


# --- what it looks like ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(
    open_page: Open, queries: list[Path], size: str, scheme: str
) -> None:
    page = open_page("/", size, color_scheme=scheme)
    give(page, queries[0])
    page.locator(".hit button").first.click()
    page.wait_for_selector("dialog .drawer")
    for tab in ("", "Compare", "Groups", "Common and outliers", "Health"):
        if tab:
            page.locator(f".tabs >> text={tab}").click()
            page.wait_for_selector(f".tabs [aria-current]:has-text('{tab}')")
            page.wait_for_load_state()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        ground, text = (
            page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
            for name in ("backgroundColor", "color")
        )
        assert (sum(ground) > sum(text)) == (scheme == "light")
        assert abs(sum(ground) - sum(text)) > 500
        if not tab:
            page.keyboard.press("Escape")


def test_hostile_names_do_nothing(open_page: Open, queries: list[Path]) -> None:
    page = open_page()
    name = HOSTILE.replace("/", "")
    give(page, queries[0], name)
    assert page.locator(".card figcaption").inner_text().replace("\n", "") == name
    page.locator(".tabs >> text=Groups").click()
    page.wait_for_selector(".shares table")
    assert name in page.locator(".shares header").inner_text()
    assert page.locator(".shares b:has-text('odd')").count() == 0


# --- pictures for docs ----------------------------------------------------------------------------


@pytest.mark.skipif("GRADINDEX_SERVED" not in os.environ, reason="takes pictures for docs")
@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("desktop", "desktop", "light"), ("phone", "phone", "light"), ("dark", "desktop", "dark")],
)
def test_screenshots_for_docs(browser: Any, name: str, size: str, scheme: str) -> None:
    """Of the page of that address, which says what is asked."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(os.environ["GRADINDEX_SERVED"])
    page.wait_for_selector(".card")
    page.wait_for_selector("#progress", state="hidden")
    target = Path(__file__).parents[2] / f"docs/images/serve-{name}.png"
    clip = {"x": 0, "y": 0, "width": width, "height": 1200}
    page.screenshot(path=target, full_page=True, clip=clip)
    context.close()
    assert target.stat().st_size > 20_000
