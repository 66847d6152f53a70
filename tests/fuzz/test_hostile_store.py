"""Hostile files of an index: the true answer or one clear error, in bounded time and memory."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import numpy as np
import pytest
from hostile import nested
from hostile_index import HostileIndex, K
from hypothesis import strategies
from index_inputs import KINDS, with_checksum
from judging import Case, bounded
from refusals import budget, refusal

import gradindex
from gradindex.builder.verify import damages
from gradindex.errors import StoreError
from gradindex.gradients.projection import PROJECTIONS, TWO_SIDED
from gradindex.models.devices import DTYPES
from gradindex.store import soundness
from gradindex.store.digests import sha256
from gradindex.store.manifest import COPY, HEADER, SUMMARY, seal, seal_header, unseal
from gradindex.store.store import Store

ENTRY = "manifest/c000-s000000.json"
IDS_FILE = "sample_ids/c/0"


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return KINDS[request.param](tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
@budget(80)
@hypothesis.given(seed=strategies.integers(0, 2**32 - 1))
def test_a_hostile_index_answers_truly_or_says_what_is_wrong(case: Case, seed: int) -> None:
    assert case(Random(seed)) in (True, False)  # it raises where anything else comes of it


# --- inputs that were read wrongly once ----------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> HostileIndex:
    return HostileIndex(tmp_path_factory.mktemp("index"))


def store_refusal(act: Callable[[], Any]) -> str:
    """The text of the StoreError that something raises, with little memory."""
    return refusal(act, StoreError, seconds=10)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pictures": 10**12}, "pictures"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"chunk_rows": 3}, "chunk_rows"),
        ({"weights": [math.nan]}, "weights"),
        ({"weights": [1e39]}, "weights"),
        ({"checkpoints": []}, "checkpoints"),
        ({"removed": {"a": 9}}, "removed"),
        ({"model": "a\0b"}, "model"),
        ({"scheduler": "\ud800"}, "model"),
        ({"data": {"source": "d", "columns": {"color": "a"}}}, "data"),
        ({"files": {"../../outside": "0" * 64}}, "files"),
        ({"before": {"/dev/zero": "0" * 64}}, "before"),
        ({"digest": "0" * 64}, "digest"),
        ({"parameters": {"total": 0, "places": "conv_in"}}, "parameters"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    index: HostileIndex, fields: dict[str, Any], field: str
) -> None:
    folder = index.place(index.sealed_header(**fields))
    message = f"{folder}: zarr.json cannot be right ({field}); build it again with overwrite"
    assert store_refusal(lambda: gradindex.open(folder)) == message
    assert store_refusal(lambda: Store.mended(folder)) == message
    assert store_refusal(lambda: list(damages(folder))) == message
    assert not (folder.parent.parent / "outside").exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": "16"}, "recipe: Expected `int`, got `str` - at `$.dim`"),
        ({"timesteps": 5}, "recipe: Expected `array`, got `int` - at `$.timesteps`"),
        ({"timesteps": []}, "recipe: timesteps"),
        ({"image": [1, 8, 0]}, "recipe: image"),
        ({"dim": 0}, "recipe: dim"),
        ({"draws": 10**12}, "recipe: draws"),
        ({"dtype": "float99"}, "recipe: dtype"),
        ({"noise": "loud"}, "recipe: noise"),
        ({"projection": "none"}, "recipe: rank"),
        ({"params": "("}, "recipe: params"),
        ({"params": "conv", "part": "norms"}, "recipe: part"),
        ({"params": nested(400)}, "recipe: Expected `str | null`, got `array` - at `$.params`"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_refused(
    index: HostileIndex, fields: dict[str, Any], reason: str
) -> None:
    folder = index.place(index.sealed_recipe({**index.fields["recipe"], **fields}))
    assert store_refusal(lambda: gradindex.open(folder)) == (
        f"{folder}: zarr.json cannot be right ({reason}); build it again with overwrite"
    )


def test_rows_that_are_large_by_the_recipe_alone_are_missed_at_once(index: HostileIndex) -> None:
    """A query would first take as much memory for its own gradients."""
    recipe = {**index.fields["recipe"], "dim": 2**40}
    folder = index.place(index.sealed_recipe(recipe))
    assert store_refusal(lambda: gradindex.open(folder)) == (
        f"{folder}: unnormalized/c/0/0/0/0 has no row of {2 * 4 * 2**40:,} bytes;"
        " run the same build again with check, it mends that"
    )


def test_names_of_another_version_are_shown_in_one_line(index: HostileIndex) -> None:
    folder = index.place(index.sealed_recipe({**index.fields["recipe"], "a\nb\u2028": 1}))
    assert store_refusal(lambda: gradindex.open(folder)) == (
        "another version of gradindex made this index (it differs in a\\nb\\u2028): build it again"
    )


def test_a_version_of_any_kind_is_shown_in_short(index: HostileIndex) -> None:
    content = seal_header({**index.fields, "format": ["a" * 1000]})
    folder = index.place({HEADER: content, COPY: content})
    assert store_refusal(lambda: gradindex.open(folder)) == (
        f'{folder}: format version ["aaaaaaaaaaaaaaaaaa, this gradindex reads 1: update gradindex'
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": [1, 10**12, 2, 16]}, "they are of another store"),
        ({"shape": [1, 9, 2, 10**9]}, "they are of another store"),
        ({"data_type": "float64"}, "they are of another store"),
        ({"data_type": ["float32"]}, "zarr does not read them: "),
        ({"fill_value": {}}, "zarr does not read them: "),
        ({"codecs": [{"name": "unheard"}]}, "zarr does not read them: "),
    ],
)
def test_metadata_of_an_array_that_cannot_be_right_are_refused(
    index: HostileIndex, changes: dict[str, Any], problem: str
) -> None:
    name = "unnormalized/zarr.json"
    metadata = {**json.loads(index.files[name]), **changes}
    folder = index.place(index.sealed_copied(name, json.dumps(metadata).encode()))
    line = store_refusal(lambda: Store(folder).unnormalized)
    assert line.startswith(f"{folder}: metadata of arrays are damaged ({problem}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (struct.pack("<I", 2**32 - 1) + bytes(100), "holds 4294967295 ids, not 9"),
        (struct.pack("<I", 3) + bytes(100), "holds 3 ids, not 9"),
        (b"", "holds 0 ids, not 9"),
        (struct.pack("<II", 9, 50) + bytes(32), "holds no ids (corrupt buffer"),
        (struct.pack("<II", 9, 1) + b"\xff" + bytes(32), "holds no ids ('utf-8' codec can't"),
    ],
)
def test_ids_that_are_none_are_refused(index: HostileIndex, content: bytes, problem: str) -> None:
    folder = index.place(index.sealed_copied(IDS_FILE, with_checksum(content + bytes(4))))
    line = store_refusal(lambda: list(Store(folder).sample_ids))
    assert line.startswith(f"{folder}: {IDS_FILE} {problem}")


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": [0, 10**9]},
        {"skipped": [10**6]},
        {"skipped": [-1]},
        {"zero_gradients": 10**30},
        {"files": {"/dev/zero": {"bytes": 0, "sha256": ""}}},
    ],
)
def test_a_manifest_entry_of_other_rows_or_files_does_not_count(
    index: HostileIndex, fields: dict[str, Any]
) -> None:
    entry = {**unseal(index.files[ENTRY]), **fields}
    folder = index.place({ENTRY: seal(entry)})
    with bounded(seconds=10, megabytes=64):
        assert [shard.entry for shard in Store(folder).missing()] == [ENTRY]
        (line,) = damages(folder)
    assert line == f"{ENTRY} belongs elsewhere: pictures 0 to 8 do not count"


@pytest.mark.parametrize("fields", [{"skipped": [-1]}, {"skipped": [9]}, {"pictures": -5}])
def test_a_summary_of_other_rows_is_not_believed(
    index: HostileIndex, fields: dict[str, Any]
) -> None:
    summary = {**unseal(index.files[SUMMARY]), **fields}
    folder = index.place({SUMMARY: seal(summary)})
    assert Store.finished(folder).summary == Store(index.folder).summary


@pytest.mark.parametrize("row", [9, 10**15])
def test_a_removal_of_a_row_that_is_none_is_refused(index: HostileIndex, row: int) -> None:
    content = seal({"removed": {"a" * 32: row}})
    name = sha256(content)[:32]
    folder = index.place({f"removed/{name}.json": content, f"removed/{name}.copy.json": content})
    assert store_refusal(lambda: gradindex.open(folder)) == (
        f"{folder}: a removal names row {row}, and the index has 9 pictures;"
        " build it again with overwrite"
    )


def hits_of(
    index: HostileIndex, folder: Path, method: str, whiten: bool
) -> list[tuple[str, float]]:
    """The ids and scores of a query, to four digits."""
    with bounded(seconds=20, megabytes=128):
        hits = index.ask(gradindex.open(folder, device="cpu"), method, whiten, K)
    return [(name, float(f"{score:.4g}")) for name, _, score in hits]


@pytest.fixture(scope="module")
def true_hits(index: HostileIndex) -> Callable[[str, bool], list[tuple[str, float]]]:
    return lambda method, whiten: hits_of(index, index.folder, method, whiten)


def declared(content: bytes, place: int, number: int) -> bytes:
    """A FAISS file with another number of eight bytes at a place."""
    return content[:place] + struct.pack("<Q", number) + content[place + 8 :]


@pytest.mark.parametrize(
    ("place", "number"),
    [(8, 10**12), (8, 5), (37, 2**36), (37, 9 * 32 * 4 + 8)],
    ids=["vectors", "fewer vectors", "bytes", "more bytes"],
)
def test_a_faiss_file_that_declares_other_sizes_takes_no_memory(
    index: HostileIndex, true_hits: Callable[..., Any], place: int, number: int
) -> None:
    content = declared(index.files["faiss/tracin.faiss"], place, number)
    folder = index.place(index.sealed_search_file("tracin", content))
    assert hits_of(index, folder, "tracin", False) == true_hits("tracin", False)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_vectors_of_no_finite_numbers_are_not_used(
    index: HostileIndex, true_hits: Callable[..., Any], number: float
) -> None:
    vectors = np.full(9 * 32, number, "<f4").tobytes()
    content = index.files["faiss/tracin.faiss"]
    folder = index.place(index.sealed_search_file("tracin", content[: -len(vectors)] + vectors))
    assert hits_of(index, folder, "tracin", False) == true_hits("tracin", False)


@pytest.mark.parametrize(
    "fields",
    [
        {"candidates": 2**62 - 1},
        {"candidates": 0},
        {"candidates": 10**30},
        {"nprobe": 3},
        {"width": 16},
        {"factory": "IVF2,Flat"},
        {"rows": [0, 10**9]},
        {"rows": [3, 9]},
        {"file": "/dev/zero"},
    ],
)
def test_a_record_of_a_search_index_that_cannot_be_right_is_not_used(
    index: HostileIndex, true_hits: Callable[..., Any], fields: dict[str, Any]
) -> None:
    record = unseal(index.files["faiss/tracin.json"])
    if fields.keys() & {"rows", "file"}:
        fields = {"files": [{**record["files"][0], **fields}]}
    folder = index.place({"faiss/tracin.json": seal({**record, **fields})})
    assert hits_of(index, folder, "tracin", False) == true_hits("tracin", False)
    with bounded(seconds=10, megabytes=64):
        assert all(line.startswith("faiss/tracin") for line in damages(folder))


@pytest.mark.parametrize(
    "factor",
    [
        b"",
        bytes(86),
        bytes(16 * 16 * 4),
        np.full((16, 16), np.nan, "<f4").tobytes(),
        np.full((16, 16), 1e30, "<f4").tobytes(),
        (np.eye(16) * 1e-30).astype("<f4").tobytes(),
    ],
    ids=["empty", "short", "zero", "NaN", "huge", "tiny"],
)
def test_a_whitening_factor_that_is_none_is_made_anew(
    index: HostileIndex, true_hits: Callable[..., Any], factor: bytes
) -> None:
    folder = index.place(index.sealed_factor("retrac", factor))
    assert hits_of(index, folder, "retrac", True) == true_hits("retrac", True)


@pytest.mark.parametrize(
    "fields",
    [
        {"block": [9, 9]},
        {"block": [0, 1]},
        {"file": "/dev/zero"},
        {"lambda": math.nan},
        {"lambda": -1.0},
        {"damping": 0.0},
        {"counted": 10**30},
    ],
)
def test_a_record_of_whitening_that_cannot_be_right_is_made_anew(
    index: HostileIndex, true_hits: Callable[..., Any], fields: dict[str, Any]
) -> None:
    record = unseal(index.files["whiten/retrac.json"])
    if not fields.keys() & record.keys():
        first, *others = record["blocks"]
        fields = {"blocks": [{**first, **fields}, *others]}
    folder = index.place({"whiten/retrac.json": seal({**record, **fields})})
    assert hits_of(index, folder, "retrac", True) == true_hits("retrac", True)
    with bounded(seconds=10, megabytes=64):
        assert "whiten/retrac.json" in {line.split()[0] for line in damages(folder)}


def test_a_range_beyond_the_end_of_a_file_takes_no_memory(index: HostileIndex) -> None:
    store = Store(index.folder)
    with bounded(seconds=10, megabytes=64):
        (content,) = store.location.read_ranges([("norm/c/0/0/0", 8, 2**40)])
        (nothing,) = store.location.read_ranges([("norm/c/0/0/0", 2**39, 2**40)])
    assert content == index.files["norm/c/0/0/0"][8:]
    assert nothing == b""


def test_names_of_types_and_projections_are_those_of_the_other_packages() -> None:
    assert set(soundness.DTYPES) == set(DTYPES)
    assert set(soundness.PROJECTIONS) == {TWO_SIDED, *PROJECTIONS} - {"auto"}
