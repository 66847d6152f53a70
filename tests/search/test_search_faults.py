"""Threads that share an index, FAISS that fails, indexes that may not be written to."""

import errno
import os
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, make_pictures

import gradindex
from gradindex.builder.upkeep import compact, remove
from gradindex.errors import CallError
from gradindex.search import ann_index
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import saved_ann_index
from gradindex.search.pictures import read_prompts
from gradindex.store.disk import Disk


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> gradindex.Index:
    """Two checkpoints, so that a shared one would be exchanged under a thread's feet.

    More pictures than numbers in a row: there are factors and search files.
    """
    place = tmp_path_factory.mktemp("faults")
    models = [make_model(place / "a"), make_model(place / "b", seed=1)]
    return gradindex.build(
        place / "idx",
        model=models[0],
        data=make_pictures(place / "pictures", 12),
        checkpoints=models,
        timesteps=3,
        dim=8,
        device="cpu",
    )


@pytest.fixture(scope="module")
def many_queries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(make_pictures(tmp_path_factory.mktemp("queries") / "q", 8, seed=5).iterdir())


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was written."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): file.stat().st_mtime_ns for file in files}


@pytest.mark.parametrize("whiten", [True, False, 0.01])
def test_threads_that_share_an_index_get_the_answers_of_one(
    index: gradindex.Index, many_queries: list[Path], whiten: bool | float
) -> None:
    path = index.store.location.path  # type: ignore[union-attr]
    calls = [([query], method) for query in many_queries for method in ("retrac", "tracin")]
    alone = gradindex.open(path, device="cpu")
    expected = [alone.query(query, 5, method, whiten=whiten) for query, method in calls]
    shared = gradindex.open(path, device="cpu")
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda call: shared.query(call[0], 5, call[1], whiten=whiten), calls)
        )
    assert answers == expected


def test_times_belong_to_the_answer(index: gradindex.Index, many_queries: list[Path]) -> None:
    first, second = index.query(many_queries[:2], 3)
    assert first.seconds == second.seconds
    assert first.seconds["gradients"] > 0
    assert first.seconds["search"] > 0


@pytest.mark.parametrize("factory", ["IVF4096,Flat", "IVF64,PQ8x12", "PQ16x10"])
def test_codes_that_cannot_be_made_of_few_pictures_are_a_scan(
    tmp_path: Path, index: gradindex.Index, many_queries: list[Path], factory: str
) -> None:
    """Said in one line; and `compact` of such an index succeeds."""
    shutil.copytree(index.store.location.path, tmp_path / "idx")  # type: ignore[union-attr]
    store = gradindex.open(tmp_path / "idx", device="cpu").store
    expected = gradindex.open(tmp_path / "idx", device="cpu").query(many_queries, 3, whiten=False)
    with pytest.warns(UserWarning, match=f"FAISS cannot make {factory} of these rows"):
        made = build_ann_index(store, "retrac", factory)
    assert (made.record.factory, made.record.asked) == ("store", factory)
    again = gradindex.open(tmp_path / "idx", device="cpu")
    assert again.query(many_queries, 3, whiten=False) == expected
    remove(tmp_path / "idx", ["p001.png"])
    with pytest.warns(UserWarning, match="queries scan the store"):
        compact(tmp_path / "idx")
    found = gradindex.open(tmp_path / "idx", device="cpu").query(many_queries, 11, whiten=False)
    assert all(len(result.hits) == 11 for result in found)


@pytest.mark.parametrize("damage", ["flipped", "gone", "of other rows", "no record"])
def test_a_reader_writes_nothing_and_scans(
    tmp_path: Path, index: gradindex.Index, many_queries: list[Path], damage: str
) -> None:
    """A copy whose search files do not serve gives the same answers, and stays as it is."""
    copy = tmp_path / "idx"
    shutil.copytree(index.store.location.path, copy)  # type: ignore[union-attr]
    expected = gradindex.open(copy, device="cpu").query(many_queries, 3)
    file, record = copy / "faiss/retrac-whitened.faiss", copy / "faiss/retrac-whitened.json"
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    elif damage == "of other rows":
        shutil.copy(copy / "faiss/tracin-whitened.json", record)
    else:
        record.unlink()
    before = files_of(copy)
    with pytest.warns(UserWarning, match="the store is scanned. `gradindex index .*` makes search"):
        answers = gradindex.open(copy, device="cpu").query(many_queries, 3)
    assert [result.ids for result in answers] == [result.ids for result in expected]
    assert files_of(copy) == before


def test_an_index_that_may_not_be_written_to_answers(
    index: gradindex.Index, many_queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = index.store.location.path  # type: ignore[union-attr]
    expected = gradindex.open(path, device="cpu").query(many_queries, 3, whiten=0.01)

    def refuse(self: Disk, name: str, content: bytes, *, only_new: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Disk, "publish", refuse)
    opened = gradindex.open(path, device="cpu")
    for whiten in (True, False):
        assert opened.query(many_queries, 3, whiten=whiten)
    assert opened.query(many_queries, 3, whiten=0.01) == expected


def test_factors_are_made_in_memory_where_there_are_none(
    tmp_path: Path, index: gradindex.Index, many_queries: list[Path]
) -> None:
    copy = tmp_path / "idx"
    shutil.copytree(index.store.location.path, copy)  # type: ignore[union-attr]
    expected = index.scores(many_queries)
    shutil.rmtree(copy / "whiten")
    found = gradindex.open(copy, device="cpu").scores(many_queries)
    np.testing.assert_array_equal(found, expected)
    assert not (copy / "whiten").exists()


def test_without_faiss_a_query_scans(
    index: gradindex.Index, many_queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = index.store.location.path  # type: ignore[union-attr]
    expected = gradindex.open(path, device="cpu").query(many_queries, 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    ann_index.require_faiss.cache_clear()
    with pytest.warns(UserWarning, match="FAISS is not installed.*; the store is scanned"):
        answers = gradindex.open(path, device="cpu").query(many_queries, 3)
    assert [result.ids for result in answers] == [result.ids for result in expected]
    ann_index.require_faiss.cache_clear()


def test_faiss_under_another_name_is_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    """conda's and one's own build are called `faiss`; what counts is that it imports."""
    ann_index.require_faiss.cache_clear()
    monkeypatch.setattr(ann_index, "distributions", lambda: [])
    assert ann_index.require_faiss().__name__ == "faiss"


@pytest.mark.slow
def test_exact_rows_of_a_model_that_is_wider_than_faiss_reads(tmp_path: Path) -> None:
    """2.7 million parameters without a projection: no search files, a scan answers."""
    model = make_model(
        tmp_path / "model",
        sample_size=16,
        layers_per_block=2,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    pictures = make_pictures(tmp_path / "pictures", 4, size=16)
    index = gradindex.build(
        tmp_path / "idx",
        model=model,
        data=pictures,
        timesteps=1,
        projection="none",
        device="cpu",
    )
    assert index.store.shape[3] > 2**20
    for method in ("tracin", "retrac"):
        assert saved_ann_index(index.store, method).record.factory == "store"  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (result,) = index.query([pictures / "p002.png"], 1, whiten=False)
    assert (result.ids, round(result.scores[0], 4)) == (["p002.png"], 1.0)
    with pytest.raises(CallError, match=r"FAISS reads vectors of 1,048,576 numbers at the most"):
        build_ann_index(index.store, "tracin", "flat")


def test_one_picture_is_one_query(index: gradindex.Index, many_queries: list[Path]) -> None:
    path = many_queries[0]
    (expected,) = index.query([path], 3)
    (alone,) = index.query(str(path), 3)
    assert alone.hits == expected.hits
    (of_bytes,) = index.query(path.read_bytes(), 3)
    assert of_bytes.hits == expected.hits
    made = (picture for picture in many_queries[:2])
    assert next(result.ids for result in index.query(made, 3)) == expected.ids
    np.testing.assert_array_equal(index.scores(path), index.scores([path]))
    with pytest.raises(CallError, match="give"):
        index.query(path.parent, 3)


@pytest.mark.parametrize("prompt", ["a\udc80b", ["a dog", "\ud800"]])
def test_prompts_that_are_no_text(prompt: str | list[str]) -> None:
    """Bytes on a command line that are not UTF-8: no tokenizer takes them."""
    with pytest.raises(CallError, match=r"^prompt = '.*\\ud[c8][80]0.*': not UTF-8$"):
        read_prompts(prompt, ["a.png", "b.png"], [])
    assert read_prompts(["a dog", ""], ["a.png", "b.png"], []) == ["a dog", ""]
