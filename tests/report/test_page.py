"""Reports as files: valid, small, self-contained, and whatever names say, text."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import run
from html_reading import Reading, pictures_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features
from report_answers import answers, drawing

from gradindex.report.page import to_html, write_report
from gradindex.report.printable import one_line, printable
from gradindex.report.timestep_chart import chart_path
from gradindex.search.results import Verdict

MADE = datetime(2026, 11, 27, 9, 5, tzinfo=UTC)


def answers_of(page: str) -> list[dict[str, Any]]:
    """The answers that a page has inside as JSON."""
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(text)["answers"]


def noisy(row: int, size: tuple[int, int] = (256, 192)) -> Image.Image:
    """A photograph's thumbnail, of coarse and fine detail."""
    random = np.random.default_rng(row)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    grain = random.integers(-10, 11, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


# --- what is in it --------------------------------------------------------------------------------


def test_a_report_is_valid_and_asks_nothing_of_a_network() -> None:
    page = to_html(
        answers(opponents=True, prompt="a cat", caption_of=lambda row: "a dog"), "gradindex"
    )
    reading = Reading(page)
    assert reading.faults == []
    assert reading.addresses() == set()
    assert "url(" not in re.sub(r"url\(data:image/webp;base64,[\w+/=]*\)", "", page)
    assert "@import" not in page
    assert len(reading.with_class("hit")) == 4 * (3 + 2) * 10
    assert len(reading.with_class("card")) == 4


def test_only_its_own_script_runs() -> None:
    page = to_html(answers(1))
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    assert "default-src &#39;none&#39;" in policy or "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy.replace("&#39;", "'").replace("&#43;", "+")


def test_the_header_says_what_was_asked() -> None:
    page = to_html(answers(2, pictures=1234), "gradindex query idx 'a b.png'", MADE)
    texts = " ".join(Reading(page).texts)
    for text in (
        "What shaped these 2 pictures",
        "UNet2DModel",
        "1,234 training pictures, pictures",
        "Diffusion-ReTrac, the whitened cosine of loss gradients",
        "27 November 2026, 09:05 UTC",
        "gradindex query idx 'a b.png'",
        "no proof of copying",
    ):
        assert text in texts, text
    assert "What shaped this picture" in to_html(answers(1))


def test_the_summary_counts() -> None:
    """Row 0 heads every list of every measure."""
    reading = Reading(to_html(answers(5, k=3, pictures=1000)))
    text = re.sub(r"\s+", " ", " ".join(reading.texts))
    assert "11 distinct pictures in 15 places of ReTrac" in text
    assert "1 of 3 on average also in TracIn's list" in text
    assert "1 of 3 on average also among the nearest in pixels" in text
    assert "1 in more than half of the lists: influential for everything" in text
    assert "5 lists" in text
    assert [hit["data-row"] for hit in reading.with_class("common")] == ["0"] * 15
    assert reading.attributes("aria-label").count("also in TracIn and Nearest in pixels") == 5
    assert 'id="show-common"' in to_html(answers(5))


def test_two_lists_have_nothing_in_common_worth_a_word() -> None:
    page = to_html(answers(2))
    assert "in more than half of the lists:" not in page
    assert 'class="hit common"' not in page
    assert 'id="show-common"' not in page


@pytest.mark.parametrize(
    ("kind", "text"), [("attributable", "stands out"), ("copied", "copied"), (None, "")]
)
def test_what_the_verdict_names_has_a_star_and_is_never_grey(kind: str | None, text: str) -> None:
    """Row 0 heads every list, and is grey where it is not named."""
    named = ["folder 0/picture 0000.png"] if kind else []
    verdict = Verdict(kind, f"{kind}: …", named, 0.01)
    reading = Reading(to_html(answers(5, opponents=True, pictures=12, verdict=verdict)))
    assert reading.faults == []
    legend, *stars = reading.with_class("named")
    assert [star["title"] for star in stars] == [text] * len(stars)
    assert len(stars) == 5 * len(named)
    grey = [hit["data-row"] for hit in reading.with_class("common")]
    # All of the twelve are in every list but two a list, by each of three measures.
    assert grey.count("0") == 5 * (3 - len(named))
    assert legend["aria-label"] == "star"


def test_answers_are_inside_as_json() -> None:
    whole = answers(2, opponents=True, caption_of=lambda row: f"caption {row}")
    values = answers_of(to_html(whole))
    assert [answer["method"] for answer in values] == ["retrac", "tracin", "pixels"]
    assert [answer.get("whitened") for answer in values] == [True, True, None]
    for answer, listing in zip(values, whole.listings, strict=True):
        for q, query in enumerate(answer["queries"]):
            result = listing.results[q]
            assert query["picture"] == result.picture
            for field, hits in (("hits", result.hits), ("opponents", result.opponents or [])):
                assert [hit["id"] for hit in query.get(field, [])] == [hit.id for hit in hits]
                assert [hit["score"] for hit in query.get(field, [])] == [h.score for h in hits]
                for values_of_hit, hit in zip(query.get(field, []), hits, strict=True):
                    assert values_of_hit["z"] == hit.z
                    assert values_of_hit["caption"] == f"caption {hit.row}"


def test_bars_and_timesteps_have_one_scale() -> None:
    """The hit of the largest z is full; another with half of its z is half as long, anywhere."""
    whole = answers(3, k=8, measures=["retrac"])
    reading = Reading(to_html(whole))
    lengths = [int(bar["style"].split()[1].rstrip("%")) for bar in reading.with_class("bar")]
    zs = [hit.z for result in whole.listings[0].results for hit in result.hits]
    full = np.quantile([0.0, *zs], 0.95)  # type: ignore[list-item]
    assert lengths == [round(100 * min(1.0, z / full)) for z in zs]  # type: ignore[operator]


def test_a_chart_shows_a_timestep_at_its_place() -> None:
    parts = {100.0: -0.02, 500.0: 0.04, 900.0: 0.0}
    assert chart_path(parts, last=1000, full=0.04) == "M20 30v10M100 30v-30"
    assert chart_path({100.0: -0.04}, last=1000, full=0.04) == "M20 10v30"
    assert chart_path(dict.fromkeys(range(1000), 0.001), 1000, 0.025).count("M") == 40
    assert chart_path({1.0: 0.0}, 1000, 0.0) == ""


def test_scores_that_are_all_alike_have_no_standing() -> None:
    whole = answers(1, k=4, measures=["retrac"], spread=0)
    page = to_html(whole)
    assert Reading(page).with_class("z") == []
    assert "nan" not in page.lower().replace("influential for", "")
    assert Reading(page).with_class("bar")[0]["style"] == "--b: 100%"


# --- hostile text ---------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</style><style>*{display:none}",
    "]]><!-- <svg onload=alert(1)>",
    "\u202egnp.exe\u2066",
    "a\r\n\x1b]0;b\u2028\x00",
    "&lt;b&gt; &amp; &copy",
    '=HYPERLINK("http://x")',
]


def texts_of(page: str) -> tuple[Reading, str]:
    reading = Reading(page)
    return reading, "".join(reading.texts)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=40)))
def test_names_captions_and_commands_stay_text(text: str) -> None:
    """The elements are those of a page of harmless names, and the names are read back."""

    def page_of(text: str) -> str:
        whole = answers(
            1,
            k=2,
            pictures=5,
            name_of=lambda row: f"{text}{row}",
            query_name=lambda q: f"q {text}",
            caption_of=lambda row: f"c {text}",
            group_of=lambda row: f"g {text} {row % 2}",
            prompt=f"p {text}",
            notes=[f"n {text}"],
        )
        return to_html(whole, f"gradindex {text}", MADE)

    page = page_of(text)
    page.encode()
    reading, shown = texts_of(page)
    harmless, _ = texts_of(page_of("harmless"))
    assert reading.faults == []
    assert reading.tags == harmless.tags
    assert reading.addresses() == set()
    assert len(reading.attributes("onerror")) == 0
    titles = reading.attributes("title")
    for hit in answers_of(page)[0]["queries"][0]["hits"]:
        assert hit["id"].startswith(text)
        assert printable(hit["id"]) in titles
    assert printable(f"q {text}") in titles
    for said in (f"c {text}", f"p {text}"):
        assert one_line(said) in shown
    for said in (f"n {text}", f"gradindex {text}"):
        assert printable(said) in shown
    assert "no proof of copying" in shown


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 192), (63, 48)])
def test_sixteen_queries_over_photographs_are_under_2_mb(size: tuple[int, int]) -> None:
    """Whatever they show: here 800 places with hardly a picture twice."""
    whole = answers(
        16,
        pictures=2000,
        opponents=True,
        picture_of=lambda row: noisy(row, size),
        first=lambda q: None,
        caption_of=lambda row: "a photograph of a street, in the evening light, 35 mm film",
    )
    page = to_html(whole, "gradindex query")
    assert len(page.encode()) < 2e6
    assert len(pictures_in(page)) > 600
    assert min(max(picture.size) for picture in pictures_in(page)) >= 40


def test_few_pictures_are_shown_at_256_pixels() -> None:
    page = to_html(answers(1, k=5, picture_of=lambda row: noisy(row)))
    assert {picture.size for picture in pictures_in(page)} == {(256, 192)}
    assert len(page.encode()) < 2e6


@pytest.mark.parametrize(("side", "is_pixelated"), [(63, True), (64, False), (8, True)])
def test_only_pictures_below_64_pixels_are_pixelated(side: int, is_pixelated: bool) -> None:
    page = to_html(answers(1, k=2, picture_of=lambda row: drawing(row, (side, side // 2))))
    assert bool(Reading(page).with_class("small")) == is_pixelated


def test_a_small_picture_keeps_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    digit = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    for has_webp in (True, False):
        monkeypatch.setattr(features, "check", lambda name, has_webp=has_webp: has_webp)
        whole = answers(1, k=1, measures=["retrac"], picture_of=lambda row: digit)
        (shown,) = pictures_in(to_html(whole))
        assert shown.format == ("WEBP" if has_webp else "PNG")
        assert np.array_equal(np.asarray(shown.convert("L")), np.asarray(digit))


def test_each_picture_is_opened_and_stored_once() -> None:
    """However many queries, methods and lists name it."""
    opened = []

    def picture_of(row: int) -> Image.Image:
        opened.append(row)
        return drawing(row)

    page = to_html(answers(2, k=3, pictures=3, picture_of=picture_of, opponents=True))
    assert sorted(opened) == [0, 1, 2, 1000, 1001]
    assert len(pictures_in(page)) == 5
    assert len(Reading(page).with_class("hit")) == 2 * (3 + 2) * 3


# --- many queries ---------------------------------------------------------------------------------


def test_many_queries_are_an_index_and_pages_of_50(tmp_path: Path) -> None:
    whole = answers(120, k=2, picture_of=lambda row: drawing(row, (80, 80)))
    files = write_report(whole, tmp_path / "a #b.html", "gradindex query", MADE)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "a #b.html",
        *(f"a #b-pages/00{number}.html" for number in (1, 2, 3)),
    ]
    overview, *pages = (Reading(file.read_text(encoding="utf-8")) for file in files)
    assert overview.faults == [fault for page in pages for fault in page.faults] == []
    links = overview.attributes("href")
    assert len(links) == 120
    assert links[50] == "a%20%23b-pages/002.html#q51"
    assert [len(page.with_class("card")) for page in pages] == [50, 50, 20]
    anchors = [{*page.attributes("id")} for page in pages]
    for link in links:
        name, _, anchor = link.partition("#")
        assert anchor in anchors[int(Path(name).stem) - 1]
    for file, page in zip(files[1:], pages, strict=True):
        assert {
            (file.parent / unquote(address)).resolve().is_file() for address in page.addresses()
        } == {True}
        assert "../a%20%23b.html" in page.addresses()
    assert "120 pictures" in " ".join(overview.texts)
    assert "in more than half of the lists" in " ".join(overview.texts)
    assert files[0].stat().st_size < 120 * 4000


def test_several_files_need_a_place(tmp_path: Path) -> None:
    done = run("query", tmp_path / "idx", *(["x.png"] * 51), "--format", "html")
    assert done.returncode == 2
    assert "a report of more than 50 pictures is several files: give --output x.html" in done.stderr
    done = run("query", tmp_path / "idx", "x.png", "--format", "parquet")
    assert done.returncode == 2
    assert "--format parquet: is no text; give --output x.parquet" in done.stderr


def test_a_picture_that_does_not_open_costs_its_place_alone() -> None:
    def picture_of(row: int) -> Image.Image | None:
        if row == 1:
            raise OSError("truncated")
        return None if row in (2, 1000) else drawing(row)

    reading = Reading(to_html(answers(1, k=4, pictures=4, picture_of=picture_of, opponents=True)))
    assert reading.faults == []
    assert reading.tags.count("img") == 5 * 2
    assert "".join(reading.texts).count("picture not found, or damaged") == 1 + 5 * 2
