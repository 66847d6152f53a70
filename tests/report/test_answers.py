"""What a report shows of a query is what the index answers, and where it stands among all."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, make_pictures
from PIL import Image

import gradindex
from gradindex.builder.upkeep import remove
from gradindex.errors import CallError
from gradindex.report import answers as module
from gradindex.report.answers import Answers, answer
from gradindex.report.evaluate import pixel_scores
from gradindex.report.page import to_html
from gradindex.search.cosines import tell_cosines
from gradindex.search.pixels import compared_shape
from gradindex.search.results import Result

GRID = [100, 500, 900]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two folders."""
    folder = tmp_path_factory.mktemp("answers") / "data"
    make_pictures(folder / "a", 6)
    make_pictures(folder / "b", 6, seed=2)
    return folder


@pytest.fixture(scope="module")
def index(data: Path, model: Path) -> gradindex.Index:
    return gradindex.build(data.parent / "idx", model=model, data=data, timesteps=GRID, dim=16)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(make_pictures(tmp_path_factory.mktemp("q"), 3, seed=5).iterdir())


def ids(answers: Answers) -> list[list[list[str]]]:
    return [[result.ids for result in listing.results] for listing in answers.listings]


def assert_same(results: Sequence[Result], expected: Sequence[Result]) -> None:
    """The same but for the last digits of cosines, which are those of many pictures at once."""
    for field in ("pixel", "embedding"):
        cosines = [
            [getattr(hit, field) for one in of_all for hit in [*one.hits, *(one.opponents or [])]]
            for of_all in (results, expected)
        ]
        assert cosines[0] == pytest.approx(cosines[1], abs=1e-6)
        assert (None in cosines[0]) == (field == "embedding")
    without = [
        tell_cosines(tell_cosines(of_all, "pixel", nothing), "embedding", nothing)
        for of_all in (results, expected)
    ]
    assert without[0] == without[1]


def nothing(q: int, row: int) -> None:
    """No cosine."""


@pytest.mark.parametrize("options", [{}, {"whiten": False}, {"timesteps": (400, None)}])
def test_the_rankings_are_those_of_queries(
    index: gradindex.Index, queries: list[Path], options: dict[str, object]
) -> None:
    answers = answer(index, queries, 4, "tracin", opponents=True, **options)  # type: ignore[arg-type]
    assert [listing.measure for listing in answers.listings] == ["tracin", "retrac", "pixels"]
    for listing in answers.listings[:2]:
        expected = index.query(
            queries,
            4,
            listing.measure,
            opponents=True,
            by_timestep=True,
            verdict=listing.measure == "tracin",
            pixels=True,
            **options,
        )
        assert_same(listing.results, expected)
        assert listing.results[0].hits[0].by_timestep


@pytest.mark.parametrize("hits_at_once", [1, 50])
def test_many_queries_and_few_give_the_same(
    index: gradindex.Index,
    queries: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    hits_at_once: int,
) -> None:
    """Scores are in memory for some queries at a time."""
    whole = answer(index, queries, 4)
    monkeypatch.setattr(module, "SCORE_BYTES", 2 * 4 * 12)
    monkeypatch.setattr(module, "HITS_AT_ONCE", hits_at_once)
    pieces = answer(index, queries, 4)
    for one, other in zip(whole.listings, pieces.listings, strict=True):
        for standing, again in zip(one.standings, other.standings, strict=True):
            assert standing.median == pytest.approx(again.median, rel=1e-6)
            assert standing.sigma == pytest.approx(again.sigma, rel=1e-6)
        for result, again in zip(one.results, other.results, strict=True):
            assert result.ids == again.ids
            np.testing.assert_allclose(result.scores, again.scores, rtol=1e-6)


def test_a_standing_is_counted_among_all(index: gradindex.Index, queries: list[Path]) -> None:
    answers = answer(index, queries, 4)
    for listing in answers.listings[:2]:
        for q, own in enumerate(index.scores(queries, listing.measure)):
            middle = np.median(own)
            sigma = 1.4826 * np.median(np.abs(own - middle))
            for hit in listing.results[q].hits:
                assert hit.z == pytest.approx((hit.score - middle) / sigma, rel=1e-5)


def test_the_nearest_in_pixels_are_those_of_the_cosine(
    index: gradindex.Index, queries: list[Path]
) -> None:
    scores = pixel_scores(index, queries)
    listing = answer(index, queries, 5).listings[2]
    for own, result in zip(scores, listing.results, strict=True):
        assert [hit.row for hit in result.hits] == np.argsort(-own, kind="stable")[:5].tolist()
        np.testing.assert_allclose(result.scores, np.sort(own)[::-1][:5], rtol=1e-5)


def test_large_pictures_are_compared_small(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sample_size=128, in_channels=3, out_channels=3)
    data = make_pictures(tmp_path / "data", 3, size=128, mode="RGB")
    index = gradindex.build(tmp_path / "idx", model=model, data=data, timesteps=[500], dim=8)
    assert compared_shape(index.store.recipe) == (3, 64, 64)
    listing = answer(index, data / "p001.png", 3).listings[2]
    assert listing.results[0].ids[0] == "p001.png"
    assert listing.results[0].scores[0] == pytest.approx(1, abs=1e-5)


def test_groups_and_captions_are_known(index: gradindex.Index, queries: list[Path]) -> None:
    answers = answer(index, queries[0], 1)
    assert {answers.group_of(row) for row in range(12)} == {"a", "b"}
    assert [hit.caption for one in answers.listings for hit in one.results[0].hits] == [None] * 3
    assert answers.facts["Data"] == index.store.header.data.source  # type: ignore[union-attr]
    assert answers.last_timestep == 1000
    assert answers.queries[0].open_picture().size == (8, 8)  # type: ignore[union-attr]


def test_a_query_need_not_be_a_file(index: gradindex.Index, queries: list[Path]) -> None:
    with Image.open(queries[0]) as picture:
        picture.load()
    array = np.asarray(picture, np.float32)[None] / 127.5 - 1
    as_file, as_picture, as_array = (
        answer(index, query, 3) for query in (queries[0], picture, array)
    )
    assert ids(as_file) == ids(as_picture) == ids(as_array)
    assert as_array.queries[0].name == "picture 0"
    shown = as_array.queries[0].open_picture()
    assert shown is not None
    assert shown.tobytes() == picture.tobytes()


def test_removed_and_gone_pictures(
    index: gradindex.Index, data: Path, queries: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(data.parent / "idx", tmp_path / "idx")
    remove(tmp_path / "idx", ["a/p001.png"])
    opened = gradindex.open(tmp_path / "idx")
    answers = answer(opened, queries, 20)
    assert answers.pictures == 11
    assert all(
        len(one) == 11 and "a/p001.png" not in one for lists in ids(answers) for one in lists
    )
    data.rename(data.with_name("moved"))
    try:
        gone = answer(gradindex.open(tmp_path / "idx"), queries, 3)
        assert [listing.measure for listing in gone.listings] == ["retrac", "tracin"]
        assert gone.notes == [
            "The training pictures are no longer where they were: their places are empty."
        ]
        with pytest.raises(CallError, match="no such file or folder"):
            answer(gradindex.open(tmp_path / "idx"), queries, 3, pixels=True)
    finally:
        data.with_name("moved").rename(data)


def test_pixels_of_many_pictures_are_read_when_asked_for(
    index: gradindex.Index, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_READ", 11)
    assert len(answer(index, queries, 3, pixels=True).listings) == 3
    without = answer(index, queries, 3)
    assert len(without.listings) == 2
    assert "only with --pixels" in without.notes[0]
    assert answer(index, queries, 3, pixels=False).notes == []


def test_folded_rows_have_no_timesteps(
    data: Path, model: Path, queries: list[Path], tmp_path: Path
) -> None:
    index = gradindex.build(
        tmp_path / "idx", model=model, data=data, timesteps=GRID, dim=16, rows="folded"
    )
    answers = answer(index, queries, 3)
    assert_same(answers.listings[0].results, index.query(queries, 3, verdict=True))
    assert answers.listings[0].results[0].hits[0].by_timestep is None


def test_what_no_picture_answers_is_refused(
    data: Path, model: Path, queries: list[Path], tmp_path: Path
) -> None:
    index = gradindex.build(tmp_path / "idx", model=model, data=data, timesteps=[500], dim=8)
    remove(tmp_path / "idx", index.store.sample_ids)
    message = "every picture was skipped or removed"
    with pytest.raises(CallError, match=message):
        answer(gradindex.open(tmp_path / "idx"), queries)
    with pytest.raises(CallError, match="k = 0"):
        answer(index, queries, 0)
    with pytest.raises(CallError, match="method = 'dot'"):
        answer(index, queries, method="dot")


def test_groups_are_those_of_queries_and_are_drawn(
    index: gradindex.Index, queries: list[Path]
) -> None:
    names = index.store.sample_ids
    hostile = "<script>alert(1)</script>"
    groups = {name: [hostile, "b & c"][number % 2] for number, name in enumerate(names)}
    answers = answer(index, queries, 4, group_by=groups)
    expected = index.query_groups(queries, groups)
    assert [result.groups for result in answers.listings[0].results] == expected
    assert {answers.group_of(row) for row in range(12)} == set(groups.values())
    page = to_html(answers)
    assert hostile not in page
    shares = re.findall(r'<span class="track" style="--b: (\d+)%; --s: (\d+)%; --e: (\d+)%">', page)
    assert len(shares) == 2 * len(queries)
    for bar, start, end in (map(int, share) for share in shares):
        assert 0 <= start <= bar <= end <= 100
    many = {name: f"group {number}" for number, name in enumerate(names)}
    assert "4 more in the JSON inside" in to_html(answer(index, queries, 4, group_by=many))
