"""Compact rows: every row in codes of 8 bits, answered as full ones are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures, two_checkpoints
from helpers import IDS, RECIPE, fill, rows_of, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import gradindex
from gradindex.builder.upkeep import compact, remove
from gradindex.builder.verify import damages
from gradindex.errors import RecipeMismatch, StoreError
from gradindex.store import store as store_module
from gradindex.store.codes import LARGEST, decode, encode
from gradindex.store.shard_files import row_values
from gradindex.store.store import Store

COMPACT = replace(RECIPE, rows="compact")


@pytest.fixture
def options(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Two checkpoints × three timesteps × 128 numbers, in shards of four."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    return two_checkpoints(model, pictures, tmp_path, dim=128)


# --- codes ------------------------------------------------------------------------------------


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 20)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_a_code_is_off_by_half_a_scale(rows: np.ndarray) -> None:
    codes, scale = encode(rows)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= LARGEST
    decoded = decode(codes, scale)
    largest = np.abs(rows).max(-1, keepdims=True)
    # Half a scale, and the rounding of float32; of the very smallest numbers it has few digits.
    assert (np.abs(decoded - rows) <= largest * (0.5 / LARGEST + 1e-6) + 2.0**-140).all()
    # What was read back is encoded as the same rows, when an index is compacted or grows.
    again = decode(*encode(decoded))
    np.testing.assert_allclose(again, decoded, rtol=1e-6, atol=2.0**-140)


# --- the store --------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_to_a_hundredth(tmp_path: Path) -> None:
    store = fill(Store.create(tmp_path / "idx", COMPACT, IDS))
    for shard in store.shards():
        rows = rows_of(shard)
        some = slice(shard.start, shard.stop)
        read = store.read("unnormalized", shard.checkpoint, some)
        assert read.dtype == np.float32
        error = np.linalg.norm(read - rows, axis=2) / np.linalg.norm(rows, axis=2)
        assert 0 < error.max() < 0.01
        norm = np.linalg.norm(read.astype(np.float64), axis=2)
        np.testing.assert_allclose(store.read("norm", shard.checkpoint, some), norm, rtol=1e-6)
        unit = store.read("normalized", shard.checkpoint, some)
        assert unit.dtype == np.float16
        np.testing.assert_allclose(unit, read / norm[..., None], atol=1e-3)
        pieces = store.pieces("normalized", shard.checkpoint, some, np.float64)
        assert {piece.dtype for piece in pieces} == {np.dtype("float64")}


def test_zarr_reads_codes_and_scales(tmp_path: Path) -> None:
    store = fill(Store.create(tmp_path / "idx", COMPACT, IDS))
    expected = store.read("unnormalized", 1, slice(None))
    np.testing.assert_array_equal(decode(store.codes[1], store.scale[1]), expected)
    with pytest.raises(StoreError, match="no array 'normalized', but codes, scale, norm, time"):
        store.normalized  # noqa: B018
    full = fill(Store.create(tmp_path / "full", RECIPE, IDS))
    with pytest.raises(StoreError, match="has no array 'codes', but normalized, unnormalized"):
        full.codes  # noqa: B018


def test_a_zero_row_stays_zero_and_is_counted(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "idx", COMPACT, IDS)
    for shard in store.shards():
        rows = rows_of(shard)
        rows[0] = 0
        timestep = np.tile(np.float32([50, 500, 950]), (len(rows), 1))
        store.write(shard, rows, timestep)
    store.finish()
    assert store.summary.zero_gradients == 3 * len(store.shards())
    for name in ("unnormalized", "normalized"):
        assert not store.read(name, 0, slice(0, 1)).any()


@pytest.mark.parametrize("name", ["codes", "scale"])
def test_a_flipped_byte_is_an_error_when_read(tmp_path: Path, name: str) -> None:
    fill(Store.create(tmp_path / "idx", COMPACT, IDS))
    (file,) = (path for path in (tmp_path / "idx" / name / "c" / "0").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        Store(tmp_path / "idx").read("normalized", 0, slice(0, 3))


# --- builds and answers -----------------------------------------------------------------------


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("pairing", ["matched", "mean"])
def test_scores_are_those_of_rounded_rows(
    options: dict[str, Any],
    tmp_path: Path,
    queries: list[Path],
    pairing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them; and of matched ones of rows as they were, to two hundredths of the largest."""
    full = gradindex.build(tmp_path / "full", **options)
    small = gradindex.build(tmp_path / "small", rows="compact", **options)

    def rounded(rows: np.ndarray, units: Any, is_compact: bool) -> Any:
        return row_values(decode(*encode(rows)), units, is_compact)

    monkeypatch.setattr(store_module, "row_values", rounded)
    same = gradindex.build(tmp_path / "same", **options)
    for method in ("tracin", "retrac"):
        for whiten in (False, True):
            asked = {"method": method, "pairing": pairing, "whiten": whiten}
            found = small.scores(queries, **asked)
            assert relative(found, same.scores(queries, **asked)) < 1e-4
            if pairing == "matched":
                assert 0 < relative(found, full.scores(queries, **asked)) < 0.02
            for result, row in zip(small.query(queries, 3, **asked), found, strict=True):
                assert [hit.row for hit in result.hits] == np.argsort(-row)[:3].tolist()
                assert result.scores == row[[hit.row for hit in result.hits]].tolist()


def test_it_grows_is_compacted_and_verified(
    options: dict[str, Any], tmp_path: Path, queries: list[Path]
) -> None:
    data = make_pictures(tmp_path / "data", 6)
    options = {**options, "data": data, "rows": "compact"}
    gradindex.build(tmp_path / "idx", **options)
    whole = make_pictures(tmp_path / "whole", 10)
    more = gradindex.build(tmp_path / "idx", **{**options, "data": whole})
    at_once = gradindex.build(tmp_path / "once", **{**options, "data": whole})
    asked = {"method": "tracin", "whiten": False}
    assert relative(more.scores(queries, **asked), at_once.scores(queries, **asked)) < 1e-5
    remove(tmp_path / "idx", ["p003.png"])
    compact(tmp_path / "idx")
    compacted = gradindex.open(tmp_path / "idx", device="cpu")
    assert compacted.store.recipe.rows == "compact"
    expected = np.delete(at_once.scores(queries, **asked), 3, axis=1)
    assert relative(compacted.scores(queries, **asked), expected) < 1e-5
    assert list(damages(tmp_path / "idx")) == []
    with pytest.raises(RecipeMismatch, match="rows"):
        gradindex.build(tmp_path / "idx", **{**options, "data": whole, "rows": "full"})


def test_the_command_line_says_what_they_take(model: Path, pictures: Path, tmp_path: Path) -> None:
    command = ["build", "idx", "--model", model, "--data", pictures, "--rows", "compact"]
    command += ["--timesteps", "2", "--dim", "64", "--device", "cpu"]
    dry = run(*command, "--dry-run", cwd=tmp_path)
    assert "152 bytes of rows" in dry.stdout  # 2 × (64 codes, scale, norm and timestep)
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    info = run("info", "idx", cwd=tmp_path).stdout
    assert "codes" in info
    assert "unnormalized" not in info
