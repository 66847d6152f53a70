"""Groups of training pictures: exact sums, ranges that hold what they say, files of groups."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st

import gradindex
from gradindex.builder.upkeep import remove
from gradindex.errors import CallError
from gradindex.search import group_scores as module
from gradindex.search.group_scores import DRAWS, _weights, group_scores
from gradindex.search.grouping import NO_GROUP, Grouping, grouping

METHODS = ("tracin", "retrac")
MEMBERS = {"ann": 4, "bob": 3, "cid": 1}  # pictures of each folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("groups")
    for seed, (name, count) in enumerate(MEMBERS.items()):
        make_pictures(place / "pictures" / name, count, seed=seed)
    return gradindex.build(
        place / "idx", model=model, data=place / "pictures", timesteps=4, dim=32, device="cpu"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("timesteps", [None, (None, 500)])
def test_sums_are_those_of_all_scores(
    index: gradindex.Index, queries: list[Path], method: str, whiten: bool, timesteps: Any
) -> None:
    options: Any = {"whiten": whiten, "timesteps": timesteps}
    scores = index.scores(queries, method, **options).astype(float)
    folders = np.array([Path(name).parent.name for name in index.store.sample_ids])
    for row, groups in zip(
        scores, index.query_groups(queries, "folder", method, **options), strict=True
    ):
        assert {group.group: group.pictures for group in groups} == MEMBERS
        for group in groups:
            own = row[folders == group.group]
            assert group.score == pytest.approx(own.sum(), rel=1e-5, abs=1e-6)
            assert group.mean == pytest.approx(own.mean(), rel=1e-5, abs=1e-6)
            assert group.low <= group.score <= group.high
        assert [group.score for group in groups] == sorted((g.score for g in groups), reverse=True)
        positive = sum(max(group.score, 0) for group in groups)
        for group in groups:
            assert group.share == pytest.approx(max(group.score, 0) / (positive or 1))


def test_a_query_tells_the_same_groups(index: gradindex.Index, queries: list[Path]) -> None:
    alone = index.query_groups(queries, "folder")
    beside = index.query(queries, 2, group_by="folder")
    assert [result.groups for result in beside] == alone
    assert [len(result.hits) for result in beside] == [2, 2]
    assert index.query(queries, 2)[0].groups is None


def test_removed_pictures_do_not_count(tmp_path: Path, model: Path, queries: list[Path]) -> None:
    make_pictures(tmp_path / "pictures" / "a", 3)
    make_pictures(tmp_path / "pictures" / "b", 1, seed=1)
    place = tmp_path / "idx"
    gradindex.build(
        place, model=model, data=tmp_path / "pictures", timesteps=2, dim=16, device="cpu"
    )
    gone = gradindex.open(place, device="cpu").store.sample_ids[1]
    assert run("remove", place, gone).returncode == 0
    (groups,) = gradindex.open(place, device="cpu").query_groups(queries[0], "folder")
    assert {group.group: group.pictures for group in groups} == {"a": 2, "b": 1}


class _Rows:
    """What `group_scores` is given in place of a store: contributions that a test has drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, added: np.ndarray, block: int) -> None:
        def scan(*_: object) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, added.shape[1], block):
                piece = added[:, start : start + block]
                yield np.arange(start, start + piece.shape[1]), piece

        monkeypatch.setattr(module, "scan_contributions", scan)
        self.block = np.zeros((len(added), *added.shape[2:], 1))

    def groups(self, numbers: np.ndarray) -> list[list[gradindex.Group]]:
        names = [f"{number:04}" for number in range(numbers.max() + 1)]
        store: Any = None
        return group_scores(store, self.block, "tracin", None, Grouping(names, numbers))


@pytest.mark.filterwarnings("ignore:.*all pictures were skipped")
@settings(deadline=None, max_examples=25)
@given(
    pictures=st.integers(1, 30),
    timesteps=st.integers(1, 4),
    checkpoints=st.integers(1, 2),
    count=st.integers(1, 6),
    block=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_the_bootstrap_is_its_slow_twin(
    pictures: int, timesteps: int, checkpoints: int, count: int, block: int, seed: int
) -> None:
    """One weight a picture and draw, one a timestep and draw, a group at a time."""
    drawn = np.random.default_rng(seed)
    added = drawn.normal(size=(2, pictures, checkpoints, timesteps))
    absent = np.flatnonzero(drawn.random(pictures) < 0.2)
    added[:, absent[absent > 0]] = np.nan  # skipped or removed
    numbers = drawn.integers(0, count, pictures)
    of_timesteps = _weights(0, (timesteps, DRAWS))
    starts = range(0, pictures, block)
    kept = [np.flatnonzero(~np.isnan(added[0, s : s + block, 0, 0])) for s in starts]
    of_pictures = np.zeros((pictures, DRAWS))
    for start, rows in zip(starts, kept, strict=True):
        if len(rows):
            of_pictures[start + rows] = _weights(1 + start, (len(rows), DRAWS))
    with pytest.MonkeyPatch.context() as patch:
        answers = _Rows(patch, added, block).groups(numbers)
    for query, groups in enumerate(answers):
        assert {int(group.group) for group in groups} == {
            *numbers[~np.isnan(added[0, :, 0, 0])].tolist()
        }
        for group in groups:
            own = (numbers == int(group.group)) & ~np.isnan(added[0, :, 0, 0])
            draws = []
            for draw in range(DRAWS):
                weights = of_timesteps[:, draw] / of_timesteps[:, draw].sum() * timesteps
                scores = (added[query, own].sum(1) * weights).sum(1)
                share = of_pictures[own, draw] / of_pictures[own, draw].sum()
                draws.append(own.sum() * (scores * share).sum())
            low, high = np.percentile(draws, [2.5, 97.5])
            assert group.low == pytest.approx(min(low, group.score), rel=1e-9, abs=1e-9)
            assert group.high == pytest.approx(max(high, group.score), rel=1e-9, abs=1e-9)


def test_ranges_hold_the_true_sum_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 pictures a group, of a mean of 1: about 95 of 100 ranges hold 40."""
    added = np.random.default_rng(0).normal(1, 2, size=(1, 40 * 500, 1, 1))
    (groups,) = _Rows(monkeypatch, added, 1000).groups(np.repeat(np.arange(500), 40))
    share = np.mean([group.low <= 40 <= group.high for group in groups])
    assert 0.91 <= share <= 0.98


def test_a_range_of_one_timestep_knows_of_pictures_alone(
    index: gradindex.Index, queries: list[Path]
) -> None:
    """Its weight cancels, whatever it is: a twin with pictures' weights alone."""
    first = index.store.recipe.timesteps[0]
    span: Any = (first, first + 1)
    scores = index.scores(queries[0], "tracin", timesteps=span).astype(float)[0]
    folders = np.array([Path(name).parent.name for name in index.store.sample_ids])
    weights = _weights(1, (len(folders), DRAWS))
    (groups,) = index.query_groups(queries[0], "folder", "tracin", timesteps=span)
    for group in groups:
        own = folders == group.group
        share = weights[own] / weights[own].sum(0)
        low, high = np.percentile(own.sum() * (scores[own] @ share), [2.5, 97.5])
        assert group.low == pytest.approx(min(low, group.score), rel=1e-4)
        assert group.high == pytest.approx(max(high, group.score), rel=1e-4)


def test_what_all_pictures_have_in_common_hides_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain scores: a mean that moves with the timesteps, far more than groups differ."""
    random = np.random.default_rng(2)
    added = random.normal(size=(1, 20 * 100, 1, 5)) + 50 * np.arange(5)
    numbers = np.repeat(np.arange(100), 20)
    added[:, numbers == 3] += 1
    (groups,) = _Rows(monkeypatch, added, 500).groups(numbers)
    assert groups[0].group == "0003"
    assert not groups[0].below_noise
    assert np.mean([group.below_noise for group in groups[1:]]) >= 0.95


def test_many_queries_are_asked_in_pieces(
    index: gradindex.Index, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = index.query_groups(queries[:2], "folder")
    monkeypatch.setattr(module, "MEMORY", 1)
    pieces = index.query_groups(queries[:2], "folder")
    for one, other in zip(whole, pieces, strict=True):
        assert [group.group for group in one] == [group.group for group in other]
        found = [(group.score, group.low, group.high) for group in other]
        for expected, numbers in zip(one, found, strict=True):
            assert numbers == pytest.approx((expected.score, expected.low, expected.high))


def test_an_index_of_nothing_has_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _Rows(monkeypatch, np.full((1, 3, 1, 2), np.nan), 2)
    with pytest.raises(CallError, match="every picture was skipped or removed"):
        rows.groups(np.array([0, 1, 1]))


def test_random_groups_are_below_noise_and_planted_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added = np.random.default_rng(1).normal(size=(1, 20 * 300, 1, 5))
    numbers = np.repeat(np.arange(300), 20)
    added[:, numbers == 7] += 1
    added[:, numbers == 8] -= 1
    (groups,) = _Rows(monkeypatch, added, 999).groups(numbers)
    by_name = {group.group: group for group in groups}
    assert groups[0].group == "0007"
    assert groups[-1].group == "0008"
    assert not by_name["0007"].below_noise
    assert by_name["0008"].below_noise
    assert by_name["0008"].high < 0
    others = [g.below_noise for name, g in by_name.items() if name not in ("0007", "0008")]
    assert np.mean(others) >= 0.96


def test_groups_by_mapping_and_file(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    names = index.store.sample_ids
    mapping = {names[0]: "x", names[5]: "y", names[6]: "x"}
    (by_mapping,) = index.query_groups(queries[0], mapping)
    assert {group.group: group.pictures for group in by_mapping} == {"x": 2, "y": 1, NO_GROUP: 5}
    file = tmp_path / "artists.csv"
    lines = ["licence,id,group", *(f"cc,{name},{group}" for name, group in mapping.items())]
    file.write_text("\n".join(lines))
    assert index.query_groups(queries[0], file) == [by_mapping]


def test_groups_by_a_column(tmp_path: Path, model: Path, queries: list[Path]) -> None:
    folder = make_pictures(tmp_path / "pictures", 4)
    names = sorted(file.name for file in folder.iterdir())
    artists = ["ann", "bob", None, "ann"]
    rows = [{"file_name": n, "artist": a} for n, a in zip(names, artists, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    place = tmp_path / "idx"
    index = gradindex.build(place, model=model, data=folder, timesteps=2, dim=16, device="cpu")
    (groups,) = index.query_groups(queries[0], "artist")
    assert {group.group: group.pictures for group in groups} == {"ann": 2, "bob": 1, NO_GROUP: 1}
    other = make_pictures(tmp_path / "moved" / "other", 4).parent
    rows = [{"file_name": f"other/{n}", "artist": "ann"} for n in names]
    (other / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    moved = gradindex.open(place, device="cpu", data=other)
    with pytest.raises(CallError, match=r"4 ids \('p000\.png', .*\) are not in its table"):
        moved.query_groups(queries[0], "artist")
    with pytest.raises(
        CallError, match=r"no column 'painter'; there are .*artist.*; give 'folder'"
    ):
        index.query_groups(queries[0], "painter")


def test_groups_by_the_names_of_classes(tmp_path: Path, model: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    folder = make_pictures(tmp_path / "pictures", 3)
    files = sorted(map(str, folder.iterdir()))
    features = Features(
        {"image": Image(), "kind": ClassLabel(names=["cat", "dog"]), "n": Value("int64")}
    )
    columns = {"image": files, "kind": [1, 0, 1], "n": [7, 7, 8]}
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    place = tmp_path / "idx"
    index = gradindex.build(
        place, model=model, data=tmp_path / "set", timesteps=2, dim=16, device="cpu"
    )
    names, numbers = (
        (found := grouping(index.store, "kind", str(tmp_path / "set"))).names,
        found.numbers,
    )
    assert [names[number] for number in numbers] == ["dog", "cat", "dog"]
    assert grouping(index.store, "n", str(tmp_path / "set")).names == ["7", "8"]
    with pytest.raises(CallError, match="group_by = 'image': its cells are no names"):
        grouping(index.store, "image", str(tmp_path / "set"))


def test_groups_whose_pictures_are_gone_are_named(
    model: Path, queries: list[Path], tmp_path: Path
) -> None:
    folder = make_pictures(tmp_path / "pictures", 3)
    index = gradindex.build(tmp_path / "idx", model=model, data=folder, timesteps=2, dim=8)
    remove(index.store.location, ["p001.png"])
    opened = gradindex.open(tmp_path / "idx")
    groups = {"p000.png": "ann", "p001.png": "bo", "p002.png": "ann"}
    with pytest.warns(UserWarning, match="1 group, such as 'bo': all pictures were skipped or"):
        (found,) = opened.query_groups(queries[0], groups)
    assert [group.group for group in found] == ["ann"]


def test_spaces_around_names_of_groups_do_not_count(index: gradindex.Index, tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    first, second, third = index.ids[:3]
    file.write_text(f"id, group\n{first},A ,\n{second}, A,\n {third},  ,\n")
    found = grouping(index.store, file, "")
    assert found.names == [NO_GROUP, "A"]
    assert [found.name_of(row) for row in range(3)] == ["A", "A", NO_GROUP]


def test_ids_of_other_code_points(model: Path, queries: list[Path], tmp_path: Path) -> None:
    """As a Mac decomposes the letters of names, and a table does not."""
    folder = make_pictures(tmp_path / "pictures", 2)
    (folder / "p000.png").rename(folder / "e\u0301.png")
    index = gradindex.build(tmp_path / "idx", model=model, data=folder, timesteps=2, dim=8)
    with pytest.raises(
        CallError, match="not in the index \\(other code points of the same letters"
    ):
        index.query_groups(queries[0], {"\u00e9.png": "ann"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,group\nnobody.png,x\n", r"the id 'nobody\.png' is not in the index"),
        ("id,group\na,x\nb,x\nc,x\nd,x\n", r"4 ids \('a', 'b', 'c', …\) are not in the index"),
        ("id,group\nann/000.png,x\nann/000.png,y\n", r"the id 'ann/000\.png' is in two groups"),
        ("name,artist\nann/000.png,x\n", r"whose first line is id,group"),
        ("id;group\nann/000.png;x\n", r"id,group, with a comma; this one's is 'id;group'"),
        ("id,group\n", r"has no line below the first; give each id and its group"),
        ("", r"whose first line is id,group"),
        (None, r"cannot be read"),
        (b"id,group\n\xff,x\n", r"not text in UTF-8; save it as CSV UTF-8"),
        ("id,group\nann/000.png,Smith, Ann\n", r"line 2 has more cells than the first; put quotes"),
    ],
)
def test_files_of_groups_that_do_not_fit(
    index: gradindex.Index, queries: list[Path], tmp_path: Path, text: Any, message: str
) -> None:
    file = tmp_path / "groups.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CallError, match=message) as caught:
        index.query_groups(queries[0], file)
    assert "\n" not in str(caught.value)


def test_folders_and_columns_that_are_not_there(
    tmp_path: Path, model: Path, pictures: Path, queries: list[Path]
) -> None:
    index = gradindex.build(
        tmp_path / "idx", model=model, data=pictures, timesteps=2, dim=16, device="cpu"
    )
    with pytest.raises(CallError, match="no id of this index has a folder in it"):
        index.query_groups(queries[0], "folder")
    with pytest.raises(CallError, match="without a table has no column 'artist'"):
        index.query_groups(queries[0], "artist")


def test_the_command_shows_groups(index: gradindex.Index, queries: list[Path]) -> None:
    place = index.store.location
    options = ["-k", "1", "--group-by", "folder", "--device", "cpu"]
    table = run("query", place, queries[0], *options)
    assert "groups (retrac, whitened, sums of scores with their 95 % range)" in table.stdout
    assert table.stdout.count(" ann") + table.stdout.count(" bob") >= 2
    answer = json.loads(run("query", place, queries[0], *options, "--format", "json").stdout)
    groups = answer["queries"][0]["groups"]
    assert {"group", "pictures", "score", "share", "low", "high", "below_noise"} <= groups[0].keys()
    assert sum(group["share"] for group in groups) == pytest.approx(1)
    refused = run("query", place, queries[0], "--group-by", "nothing.csv")
    assert refused.returncode == 2
    assert "nothing.csv: cannot be read" in refused.stderr
