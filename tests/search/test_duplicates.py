"""Near-duplicate training pictures: found by pixels and by rows, and merged in an answer."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, make_pictures
from helpers import drawing, write_drawings
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import gradindex
from gradindex.builder.upkeep import remove
from gradindex.cli.main import main
from gradindex.errors import CallError
from gradindex.report import diagnose
from gradindex.report.answers import answer
from gradindex.report.page import to_html
from gradindex.report.rendering import to_table, to_values
from gradindex.report.view import overlap, picture_of
from gradindex.search import duplicates as module
from gradindex.search.duplicates import clustered, near_duplicates, near_pairs

COUNT = 120  # pictures before any is planted


def jpeg(picture: Image.Image) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=50)
    return Image.open(io.BytesIO(content.getvalue()))


PLANTED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "exact": lambda picture: picture,
    "resized": lambda picture: picture.resize((24, 24), Image.Resampling.BICUBIC),
    "jpeg": jpeg,
    "flipped": ImageOps.mirror,
    "cropped": lambda picture: picture.crop((2, 2, 30, 30)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, of which each kind of copy was made of eight; and one that is there four times."""
    folder = write_drawings(tmp_path_factory.mktemp("duplicates") / "data", COUNT)
    for number, (kind, change) in enumerate(PLANTED.items()):
        for seed in range(8 * number, 8 * number + 8):
            change(drawing(seed)).save(folder / f"{seed:03d}-{kind}.png")
    for copy in ("a", "b", "c"):
        drawing(100).save(folder / f"100-{copy}.png")
    return folder


@pytest.fixture(scope="module")
def place(data: Path) -> Path:
    model = make_model(data.parent / "model", sample_size=32, in_channels=3, out_channels=3)
    index = data.parent / "idx"
    gradindex.build(index, model=model, data=data, timesteps=[200, 600], dim=512)
    return index


@pytest.fixture
def index(place: Path) -> gradindex.Index:
    return gradindex.open(place)


def planted(kinds: set[str]) -> set[frozenset[str]]:
    names = list(PLANTED)
    return {
        frozenset({f"{seed:03d}.png", f"{seed:03d}-{kind}.png"})
        for kind in kinds
        for seed in range(8 * names.index(kind), 8 * names.index(kind) + 8)
    } | {frozenset({"100.png", "100-a.png", "100-b.png", "100-c.png"})}


def test_all_planted_copies_are_found_and_nothing_else(index: gradindex.Index) -> None:
    clusters = index.duplicates()
    assert {frozenset(cluster) for cluster in clusters} == planted(set(PLANTED))
    assert len(clusters[0]) == 4
    assert all(len(cluster) == 2 for cluster in clusters[1:])


def test_pictures_that_are_gone_are_no_duplicates_of_each_other() -> None:
    vectors = np.random.default_rng(0).normal(size=(1, 60, 8)).astype(np.float32)
    vectors[:, 40:] = np.nan  # fewer than 51 remain
    assert near_pairs(vectors, 1e-3).tolist() == []


def test_many_copies_of_one_picture_are_one_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no pairs, and a picture near them is found, though 50 copies are nearer."""
    monkeypatch.setattr(module, "MOST_PAIRS", 10)
    vectors = np.random.default_rng(0).normal(size=(1, 131, 64)).astype(np.float32)
    vectors[:, 60:130] = vectors[:, 3:4]
    vectors[:, 130] = vectors[:, 3] + 0.01
    vectors[:, 20:22] = np.nan
    assert near_duplicates(vectors, 1e-3) == [[3, *range(60, 131)]]


def test_too_many_pictures_or_pairs_are_refused(
    index: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", 10)
    with pytest.raises(CallError, match="more than 10 pairs are near each other"):
        near_pairs(np.zeros((1, 20, 8), np.float32), 1e-3)
    monkeypatch.setattr(module, "MOST_PICTURES", 5)
    with pytest.raises(CallError, match="looked for among 5 at the most"):
        gradindex.open(index.store.location).duplicates("rows")


def test_exact_copies_have_the_same_rows(index: gradindex.Index) -> None:
    """Flipped and cut ones have others."""
    clusters = {frozenset(cluster) for cluster in index.duplicates("rows")}
    assert planted({"exact"}) <= clusters <= planted(set(PLANTED))


@pytest.mark.parametrize("by", ["pixels", "rows"])
def test_where_all_pictures_are_removed(model: Path, tmp_path: Path, by: str) -> None:
    data = make_pictures(tmp_path / "data", 3)
    gradindex.build(tmp_path / "idx", model=model, data=data, timesteps=[500], dim=8)
    remove(tmp_path / "idx", sorted(file.name for file in data.iterdir()))
    index = gradindex.open(tmp_path / "idx")
    with pytest.raises(CallError, match="every picture was skipped or removed"):
        index.duplicates(by)
    with pytest.raises(CallError, match="every picture was skipped or removed"):
        diagnose.report(index, compared=0)


def test_removed_pictures_are_no_duplicates(model: Path, tmp_path: Path) -> None:
    """In a set of few, only the same picture is one."""
    folder = make_pictures(tmp_path / "data", 12)
    for name in ("p000.png", "p001.png"):
        (folder / f"again-{name}").write_bytes((folder / name).read_bytes())
    gradindex.build(tmp_path / "idx", model=model, data=folder, timesteps=[500], dim=8)
    remove(tmp_path / "idx", ["p001.png"])
    opened = gradindex.open(tmp_path / "idx")
    assert opened.duplicates() == [["again-p000.png", "p000.png"]]
    assert opened.duplicates("rows") == [["again-p000.png", "p000.png"]]
    with pytest.raises(CallError, match="by = 'faces'"):
        opened.duplicates("faces")
    folder.rename(tmp_path / "moved")
    with pytest.raises(CallError, match="or compare the rows"):
        gradindex.open(tmp_path / "idx").duplicates()


@settings(deadline=None)
@given(st.integers(51, 90), st.integers(0, 100), st.integers(1, 3))
def test_pairs_are_those_of_the_rule(count: int, seed: int, variants: int) -> None:
    """As one pair after the other is compared; in blocks it is the same."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(variants, count, 5)).astype(np.float32)
    vectors[-1, :10] = vectors[0, 20:30] + 0.05 * random.normal(size=(10, 5))
    lengths = np.array(
        [
            [min(np.linalg.norm(one - many[j]) for many in vectors) for j in range(count)]
            for one in vectors[0]
        ]
    )
    np.fill_diagonal(lengths, np.inf)
    limits = np.sort(lengths, 1)[:, :50].mean(1) / 3
    expected = {
        (i, j)
        for i in range(count)
        for j in range(count)
        if lengths[i, j] <= min(limits[i], limits[j])
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", 7)
        pairs = near_pairs(vectors, 0.0)
    assert {tuple(pair) for pair in pairs.tolist()} == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_clusters_are_what_pairs_connect(pairs: list[tuple[int, int]]) -> None:
    reach = np.eye(10, dtype=int)
    for one, other in pairs:
        reach[one, other] = reach[other, one] = 1
    reach = np.linalg.matrix_power(reach, 10) > 0
    expected = {frozenset(np.flatnonzero(reach[one]).tolist()) for one, _ in pairs}
    found = clustered(np.array(pairs, np.int64).reshape(-1, 2), 10)
    assert {frozenset(cluster) for cluster in found} == expected
    assert [len(one) for one in found] == sorted(map(len, found), reverse=True)


# --- merged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["retrac", "tracin"])
@pytest.mark.parametrize("span", [None, (None, 400)])
def test_a_merged_hit_is_the_sum_of_its_pictures(
    index: gradindex.Index, method: str, span: tuple[None, int] | None
) -> None:
    asked = drawing(100)
    scores = index.scores(asked, method, timesteps=span)[0]
    groups = [[list(index.ids).index(name) for name in one] for one in index.duplicates()]
    alone = set(range(len(index))) - {row for group in groups for row in group}
    groups += [[row] for row in alone]
    sums = sorted(((scores[group].sum(), group) for group in groups), reverse=True)
    (result,) = index.query(
        asked, 20, method, opponents=True, timesteps=span, merge_duplicates=True
    )
    worst = result.opponents or []
    for hits, ordered in ((result.hits, sums[:20]), (worst, sums[::-1][:20])):
        assert [hit.rank for hit in hits] == list(range(1, 21))
        for hit, (total, group) in zip(hits, ordered, strict=True):
            assert hit.score == pytest.approx(total, rel=1e-4)
            assert {hit.id, *(hit.duplicates or [])} == {index.ids[row] for row in group}
    best = next(hit for hit in result.hits if "100" in hit.id)
    assert len(best.duplicates or []) == 3


def test_a_hit_without_duplicates_is_what_it_was(index: gradindex.Index) -> None:
    (plain,) = index.query(drawing(60), 15, by_timestep=True)
    (merged,) = index.query(drawing(60), 15, by_timestep=True, merge_duplicates=True)
    by_id = {hit.id: hit for hit in plain.hits}
    same = [hit for hit in merged.hits if hit.duplicates == [] and hit.id in by_id]
    assert same
    for hit in same:
        other = by_id[hit.id]
        assert hit.score == pytest.approx(other.score, rel=1e-6)
        assert hit.stderr == pytest.approx(other.stderr, rel=1e-6)
        assert hit.by_timestep == pytest.approx(other.by_timestep, rel=1e-6)
        assert hit.z == pytest.approx(other.z, rel=1e-6)


def test_copies_do_not_fill_a_list(index: gradindex.Index) -> None:
    results = index.query(drawing(100), 3, merge_duplicates=True)
    first = results[0].hits[0]
    assert {first.id, *(first.duplicates or [])} == set(index.duplicates()[0])
    assert to_table(results, "retrac").splitlines()[1].endswith("(and 3 like it)")
    values = to_values(results, "idx", "retrac", 3)["queries"][0]["hits"][0]
    assert values["duplicates"] == first.duplicates
    plain = to_values(index.query(drawing(100), 3), "idx", "retrac", 3)["queries"][0]["hits"]
    assert "duplicates" not in plain[0]


def test_a_report_has_copies_once(index: gradindex.Index) -> None:
    answers = answer(index, drawing(100), 5, opponents=True, merge_duplicates=True)
    merged = index.query(drawing(100), 5, opponents=True, merge_duplicates=True, verdict=True)
    by_method, other, pixels = answers.listings
    assert by_method.results[0].ids == merged[0].ids
    assert by_method.results[0].scores == pytest.approx(merged[0].scores, rel=1e-6)
    assert by_method.results[0].verdict == merged[0].verdict
    copies = {frozenset(cluster) for cluster in index.duplicates()}
    for listing in (by_method, other, pixels):
        listed = [{hit.id, *(hit.duplicates or ())} for hit in listing.results[0].hits]
        assert sum(map(len, listed)) == len(set().union(*listed))
        assert all(names in copies for names in listed if len(names) > 1)
    assert {pixels.results[0].hits[0].id, *(pixels.results[0].hits[0].duplicates or ())} in copies
    assert overlap(by_method, other) == len(
        {*map(picture_of, by_method.results[0].hits)} & {*map(picture_of, other.results[0].hits)}
    )
    page = to_html(answers)
    assert '<p class="copies">and 3 like it</p>' in page
    assert '"duplicates": [' in page


def test_the_name_of_a_file_says_its_format(place: Path, tmp_path: Path) -> None:
    main(["duplicates", str(place), "--output", str(tmp_path / "copies.csv")])
    main(["duplicates", str(place), "--output", str(tmp_path / "copies.json")])
    with (tmp_path / "copies.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    clusters = json.loads((tmp_path / "copies.json").read_text())["clusters"]
    assert [row["id"] for row in rows] == [name for cluster in clusters for name in cluster]


def test_the_command_lists_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["duplicates", str(place)])
    out, errors = capsys.readouterr()
    lines = out.splitlines()
    assert errors == (
        "41 clusters of 84 pictures, 20 of them identical to another; next: gradindex query"
        f" {place} PICTURE --merge-duplicates, or gradindex remove {place} --file FILE"
        " (an id a line)\n"
    )
    assert lines[:5] == ["4 pictures", "  100-a.png", "  100-b.png", "  100-c.png", "  100.png"]
    main(["duplicates", str(place), "--format", "json"])
    clusters = json.loads(capsys.readouterr().out)["clusters"]
    assert clusters == gradindex.open(place).duplicates()
    main(["duplicates", str(place), "--format", "csv", "--output", str(tmp_path / "groups.csv")])
    rows = list(csv.DictReader((tmp_path / "groups.csv").read_text().splitlines()))
    assert rows[0] == {"id": "100-a.png", "group": "duplicates 1"}
    drawing(100).save(tmp_path / "gen.png")
    arguments = [str(place), str(tmp_path / "gen.png"), "-k", "2", "--no-verdict"]
    main(["query", *arguments, "--group-by", str(tmp_path / "groups.csv")])  # it is such a file
    assert "duplicates 1" in capsys.readouterr().out
    main(["query", *arguments, "--merge-duplicates"])
    assert "(and 3 like it)" in capsys.readouterr().out
    main(["query", *arguments, "--merge-duplicates", "--format", "html"])
    assert "and 3 like it" in capsys.readouterr().out
