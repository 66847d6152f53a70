"""`verify`: whatever is done to a file of an index, its name is the answer, and nothing else."""

import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import gradindex
from gradindex.builder.verify import damages
from gradindex.errors import StoreError
from gradindex.search.query_gradients import QueryGradients
from gradindex.store import store as store_module

Damage = Callable[[Path], None]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[np.random.default_rng(len(content)).integers(len(content))] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def swap(file: Path) -> None:
    """Put a sibling's content in its place, as a copy gone wrong would."""
    others = [
        other
        for other in file.parent.parent.rglob(f"*{file.suffix}")
        if other.is_file() and other != file
    ]
    same = [other for other in others if other.read_bytes() != file.read_bytes()]
    file.write_bytes(same[0].read_bytes() if same else b"another file")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> Path:
    """Nine pictures in shards of four at one checkpoint; rows of eight numbers, so with factors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_ROWS", 4)
        place = tmp_path_factory.mktemp("built") / "idx"
        gradindex.build(place, model=model, data=pictures, timesteps=2, dim=8, device="cpu")
    return place


def files_of(index: Path) -> list[str]:
    return sorted(file.relative_to(index).as_posix() for file in index.rglob("*") if file.is_file())


def test_a_whole_index_has_no_damage(built: Path) -> None:
    assert list(damages(built)) == []
    metadata, ids, header, shards, summary, faiss, factors = (
        2 * 5,
        2,
        2,
        3 * (4 + 1),
        1,
        4 * 2,
        2 * (2 + 1),
    )
    assert len(files_of(built)) == metadata + ids + header + shards + summary + faiss + factors


@pytest.mark.parametrize("damage", [flip, cut, empty, swap, Path.unlink])
def test_every_damaged_file_is_named(built: Path, tmp_path: Path, damage: Damage) -> None:
    for number, name in enumerate(files_of(built)):
        place = tmp_path / str(number)
        shutil.copytree(built, place)
        damage(place / name)
        assert [line.split()[0] for line in damages(place)] == [name]


def test_all_damages_are_named_at_once_and_mended(
    built: Path, tmp_path: Path, model: Path, pictures: Path
) -> None:
    place = tmp_path / "idx"
    shutil.copytree(built, place)
    names = [name for name in files_of(place) if name != "zarr.json" and "/copies/" not in name]
    for name in names:
        flip(place / name)
    found = {line.split()[0] for line in damages(place)}
    unknown = {
        name
        for name in names
        if name.endswith((".faiss", ".f32")) or ("/c/" in name and "sample_ids" not in name)
    }
    assert found == set(names) - unknown  # what described these is damaged itself
    options = {"timesteps": 2, "dim": 8, "device": "cpu"}
    gradindex.build(place, model=model, data=pictures, check=True, **options)
    assert list(damages(place)) == []
    for name in files_of(built):
        if Path(name).match("faiss/*.json"):  # these say how long a query took
            continue
        assert (place / name).read_bytes() == (built / name).read_bytes()


@pytest.mark.filterwarnings("ignore:.*the store is scanned")
@pytest.mark.parametrize("method", ["tracin", "retrac"])
@pytest.mark.parametrize("damage", [flip, cut, empty, swap, Path.unlink])
def test_no_answer_comes_from_damaged_files(
    built: Path,
    tmp_path: Path,
    queries: list[Path],
    damage: Damage,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A query of an index that was open before or is opened after: the true answer, or an error.

    The query's gradients, which are no matter of the index, are taken once.
    """
    opened = gradindex.open(built)
    blocks = opened.gradients.blocks(opened.to_query(queries), [method])
    monkeypatch.setattr(QueryGradients, "blocks", lambda *_: blocks)
    truth = gradindex.open(built).scores(queries, method)
    top = [result.ids for result in gradindex.open(built).query(queries, 3, method)]
    refused = 0
    for number, name in enumerate(files_of(built)):
        place = tmp_path / str(number)
        shutil.copytree(built, place)
        before = gradindex.open(place)
        damage(place / name)
        for index in (lambda: before, lambda: gradindex.open(place)):  # noqa: B023
            try:
                np.testing.assert_array_equal(index().scores(queries, method), truth)
                assert [result.ids for result in index().query(queries, 3, method)] == top
            except StoreError:
                refused += 1
    # a cut takes what only zarr reads of a shard's file: the index of its chunks
    assert refused >= (2 if damage == cut else 12)


SEALED = (
    "manifest/c000-s000000.json",
    "manifest/summary.json",
    "faiss/tracin.json",
    "faiss/retrac-whitened.json",
    "whiten/retrac.json",
)


@pytest.mark.parametrize(("name", "other"), list(permutations(SEALED, 2)))
def test_a_whole_file_of_another_kind_is_not_taken(
    built: Path, tmp_path: Path, model: Path, pictures: Path, name: str, other: str
) -> None:
    """Such as the search files of the other method, which would propose the wrong candidates."""
    place = tmp_path / "idx"
    shutil.copytree(built, place)
    shutil.copy(place / other, place / name)
    assert [line.split()[0] for line in damages(place)] == [name]
    gradindex.build(place, model=model, data=pictures, timesteps=2, dim=8, device="cpu")
    assert list(damages(place)) == []


def test_an_unfinished_index_names_what_is_missing(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "idx"
    shutil.copytree(built, place)
    (place / "manifest/c000-s000001.json").unlink()
    shutil.rmtree(place / "faiss")
    assert list(damages(place)) == [
        "manifest/c000-s000001.json is missing: pictures 4 to 7 do not count"
    ]
