"""The store: committed rows read back exactly, and nothing else is believed."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import zarr
from helpers import IDS, RECIPE, fill, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gradindex.errors import CallError, RecipeMismatch, StoreError
from gradindex.recipe import Recipe, grid
from gradindex.store import arrays as arrays_module
from gradindex.store import store as store_module
from gradindex.store.array_names import ROW_ARRAYS, WIDE, array_dtype
from gradindex.store.disk import Disk
from gradindex.store.location import locate
from gradindex.store.manifest import COPIES, COPY, HEADER, is_store, seal_header, unseal
from gradindex.store.records import DataSource, to_json
from gradindex.store.store import Store


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)


@pytest.fixture(scope="module")
def store_of_ten(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten pictures in shards of four and chunks of two."""
    with (
        mock.patch.object(store_module, "SHARD_ROWS", 4),
        mock.patch.object(store_module, "CHUNK_BYTES", 2 * 3 * 16 * 4),
    ):
        return fill(Store.create(tmp_path_factory.mktemp("ten") / "idx", RECIPE, IDS))


def test_rows_read_back(tmp_path: Path, small_shards: None) -> None:
    """Shapes, types, unit rows, norms and ids, after the store was opened anew."""
    fill(Store.create(tmp_path / "idx", RECIPE, IDS))
    store = Store(tmp_path / "idx")
    assert store.unnormalized.shape == store.normalized.shape == (2, 10, 3, 16)
    assert (store.unnormalized.dtype, store.normalized.dtype) == (np.float32, np.float16)
    assert store.sample_ids == IDS
    assert store.missing() == []
    expected = np.concatenate([rows_of(shard) for shard in store.shards() if shard.checkpoint == 1])
    np.testing.assert_array_equal(store.unnormalized[1], expected)
    np.testing.assert_allclose(store.norm[1], np.linalg.norm(expected, axis=2), rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(store.normalized[1].astype(float), axis=2), 1, rtol=1e-3
    )
    np.testing.assert_array_equal(store.timestep[0, 3], [50, 500, 950])


@pytest.mark.parametrize("name", ["unnormalized", "normalized", "norm", "codes", "scale"])
@pytest.mark.parametrize(
    ("pictures", "shard_rows", "chunk_rows"), [(8, 8, 1), (5, 8, 4), (1, 4, 4)]
)
def test_a_shards_file_is_the_one_that_zarr_makes(
    name: str, pictures: int, shard_rows: int, chunk_rows: int
) -> None:
    shape = (pictures, 3, 16) if name in WIDE else (pictures, 3)
    rows = np.random.default_rng(0).uniform(-100, 100, shape).astype(array_dtype(name))
    memory: dict[str, Any] = {}
    layout = (1, shard_rows, *shape[1:]), shard_rows, chunk_rows
    array = arrays_module._create(zarr.create_group(memory), name, *layout)
    array[0, :pictures] = rows
    file = memory[f"{name}/{arrays_module.shard_key(name, 0, 0)}"].to_bytes()
    assert arrays_module.shard_file(name, rows, shard_rows, chunk_rows) == file


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(
        st.sets(st.integers(0, 9), min_size=1), st.tuples(st.integers(0, 9), st.integers(1, 10))
    ),
    name=st.sampled_from(ROW_ARRAYS),
    at_once=st.sampled_from([1, 400, 1000]),
)
def test_rows_are_read_as_zarr_reads_them(
    store_of_ten: Store, rows: set[int] | tuple[int, int], name: str, at_once: int
) -> None:
    chosen = np.array(sorted(rows)) if isinstance(rows, set) else slice(rows[0], rows[0] + rows[1])
    assert store_of_ten.unnormalized.chunks[1] == 2
    with mock.patch.object(arrays_module, "READ_BYTES", at_once):
        np.testing.assert_array_equal(
            store_of_ten.read(name, 1, chosen), getattr(store_of_ten, name)[1][chosen]
        )


def test_ids_are_read_chunk_by_chunk(tmp_path: Path) -> None:
    with mock.patch.object(arrays_module, "CHUNK_IDS", 3):
        ids = Store.create(tmp_path / "idx", RECIPE, IDS).sample_ids
        assert [*ids] == IDS == [ids[row] for row in range(10)]
        assert (ids[-1], ids[2:7:2], len(ids), ids.index(IDS[8])) == (IDS[-1], IDS[2:7:2], 10, 8)
        assert ids != IDS[:-1]
        with pytest.raises(IndexError):
            _ = ids[10]


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-12, 1e12))
def test_unit_rows_survive_any_scale(
    tmp_path_factory: pytest.TempPathFactory, scale: float
) -> None:
    """Raw gradients of 1e-7 or 1e6 would lose everything in float16; unit rows do not."""
    store = fill(Store.create(tmp_path_factory.mktemp("s") / "idx", RECIPE, IDS), scale=scale)
    expected = (
        store.unnormalized[0].astype(np.float64) / store.norm[0].astype(np.float64)[..., None]
    )
    np.testing.assert_allclose(store.normalized[0], expected, atol=1e-3)


def test_a_zero_gradient_stays_zero_and_is_counted(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "idx", RECIPE, IDS)
    shard = store.shards()[0]
    rows = rows_of(shard)
    rows[2, 1] = 0
    store.write(shard, rows, np.zeros((10, 3), np.float32))
    assert store.norm[0, 2, 1] == 0
    assert not store.normalized[0, 2, 1].any()
    assert (
        json.loads((tmp_path / "idx/manifest/c000-s000000.json").read_text())["zero_gradients"] == 1
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    store = Store.create(tmp_path / "idx", RECIPE, IDS)
    shard = store.shards()[0]
    rows = rows_of(shard)
    rows[7, 0, 3] = value
    with pytest.raises(
        StoreError, match=r"gradient of 'folder/é7\.png' is not finite: nothing written"
    ):
        store.write(shard, rows, np.zeros((10, 3), np.float32))
    assert shard in store.missing()


def test_only_what_the_manifest_lists_counts(tmp_path: Path, small_shards: None) -> None:
    store = Store.create(tmp_path / "idx", RECIPE, IDS)
    shards = store.shards()
    assert [(s.checkpoint, s.start, s.stop) for s in shards[:4]] == [
        (0, 0, 4),
        (0, 4, 8),
        (0, 8, 10),
        (1, 0, 4),
    ]
    fill(store, shards[1:])
    assert store.missing() == shards[:1]
    with pytest.raises(
        StoreError,
        match=r"1 of 6 shards is missing or damaged \(c000-s000000 first\); run the same",
    ):
        list(store.entries())


@pytest.mark.parametrize("name", ROW_ARRAYS)
@pytest.mark.parametrize("damage", ["empty", "shorter", "gone"])
def test_a_file_of_another_size_makes_its_shard_missing(
    tmp_path: Path, name: str, damage: str
) -> None:
    store = fill(Store.create(tmp_path / "idx", RECIPE, IDS))
    file = next(path for path in (tmp_path / "idx" / name / "c" / "1").rglob("*") if path.is_file())
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "empty" else file.stat().st_size - 1)
    assert [shard.checkpoint for shard in store.missing()] == [1]
    fill(store, store.missing())
    assert store.missing() == []


@pytest.mark.parametrize("name", ROW_ARRAYS)
def test_a_flipped_byte_is_an_error_when_read(tmp_path: Path, name: str) -> None:
    fill(Store.create(tmp_path / "idx", RECIPE, IDS))
    file = next(path for path in (tmp_path / "idx" / name / "c" / "0").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{name} is damaged \(.*\); run the same build again"):
        Store(tmp_path / "idx").read(name, 0, slice(0, 10))


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "idx", RECIPE, IDS)
    for name in (HEADER, COPY):
        file = tmp_path / "idx" / name
        header = json.loads(file.read_text())["attributes"]["gradindex"]
        file.write_bytes(seal_header({**header, "format": 2}))
    with pytest.raises(
        StoreError, match="format version 2, this gradindex reads 1: update gradindex"
    ):
        Store(tmp_path / "idx")


def test_a_changed_header_is_not_believed(tmp_path: Path) -> None:
    """Its copy is; where both were changed, the store is refused."""
    Store.create(tmp_path / "idx", RECIPE, IDS)
    header, copy = tmp_path / "idx" / HEADER, tmp_path / "idx" / COPY
    header.write_text(header.read_text().replace('"seed": 0', '"seed": 1'))
    assert Store(tmp_path / "idx").recipe == RECIPE
    assert Store.mended(tmp_path / "idx").recipe == RECIPE
    assert header.read_bytes() == copy.read_bytes()
    for file in (header, copy):
        file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match="changed by hand"):
        Store(tmp_path / "idx")


@pytest.mark.parametrize("name", ["norm/zarr.json", "sample_ids/zarr.json", "sample_ids/c/0"])
def test_damaged_metadata_and_ids_are_mended_from_their_copies(tmp_path: Path, name: str) -> None:
    fill(Store.create(tmp_path / "idx", RECIPE, IDS))
    file, copy = tmp_path / "idx" / name, tmp_path / "idx" / COPIES / name
    whole = file.read_bytes()
    for damaged in (file, copy):
        damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        if damaged == file and name != "sample_ids/zarr.json":  # which only zarr reads
            with pytest.raises(StoreError, match=f"{name} was changed; run the same build again"):
                _ = (
                    Store(tmp_path / "idx").norm
                    if "norm" in name
                    else Store(tmp_path / "idx").sample_ids[0]
                )
        assert Store.mended(tmp_path / "idx").sample_ids == IDS
        assert file.read_bytes() == copy.read_bytes() == whole
    for damaged in (file, copy):
        damaged.unlink()
    with pytest.raises(
        StoreError, match=f"{name} is missing, and so was manifest/copies/{name}; build it again"
    ):
        Store.mended(tmp_path / "idx")


def test_a_recipe_with_unknown_fields_is_refused() -> None:
    with pytest.raises(
        StoreError, match=r"another version of gradindex made this index \(it differs in sampler\)"
    ):
        Recipe.from_json({**RECIPE.to_json(), "sampler": "loss"})


def test_a_folder_that_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(CallError, match="not a gradindex index"):
        Store(tmp_path)
    with pytest.raises(CallError, match="not a gradindex index"):
        Store(tmp_path / "other.txt")
    with pytest.raises(CallError, match="no such index"):
        Store(tmp_path / "absent")


def test_creation_is_all_or_nothing(tmp_path: Path) -> None:
    """Whichever file the crash comes before, there is no store, and creating it again makes one."""
    publish = Disk.publish
    for limit in range(12):

        def fail(place: Disk, name: str, content: bytes, *, only_new: bool = False) -> None:
            if sum(file.is_file() for file in place.path.rglob("*")) == limit:  # noqa: B023
                raise OSError("disk full")
            publish(place, name, content, only_new=only_new)

        with mock.patch.object(Disk, "publish", fail), pytest.raises(OSError, match="disk full"):
            Store.create(tmp_path / str(limit), RECIPE, IDS)
        assert not is_store(locate(tmp_path / str(limit)))
        assert Store.create(tmp_path / str(limit), RECIPE, IDS).sample_ids == IDS


def test_the_first_of_two_that_create_a_store_wins(tmp_path: Path) -> None:
    Store.create(tmp_path / "idx", RECIPE, IDS, weights=[1])
    assert Store.create(tmp_path / "idx", RECIPE, IDS, weights=[2]).header.weights == [1]


def test_recipes_differ_field_by_field() -> None:
    other = Recipe.from_json({**RECIPE.to_json(), "seed": 1, "dim": 32})
    assert RECIPE.differences(other) == ["seed: 0, now 1", "dim: 16, now 32"]
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE
    assert other.digest != RECIPE.digest


def test_a_mismatch_lists_the_fields(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "idx", RECIPE, IDS)
    with pytest.raises(RecipeMismatch, match='other recipe: loss: "mse", now "l1"') as caught:
        store.require_recipe(Recipe.from_json({**RECIPE.to_json(), "loss": "l1"}), "other recipe")
    assert caught.value.differences == ['loss: "mse", now "l1"']


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (500,)), (2, (250, 750)), (10, tuple(range(50, 1000, 100)))]
)
def test_a_grid_is_made_of_midpoints(n: int, expected: tuple[int, ...]) -> None:
    assert grid(n, 1000) == expected
    assert len(set(grid(1000, 1000))) == 1000


@pytest.mark.parametrize("timesteps", [0, 1001, -1, [], [5, 5], [1000], [-1]])
def test_timesteps_outside_the_scheduler(timesteps: int | list[int]) -> None:
    with pytest.raises(CallError, match="timesteps = "):
        grid(timesteps, 1000)


def test_a_field_of_the_header_that_only_another_version_knows_stays(tmp_path: Path) -> None:
    store = fill(Store.create(tmp_path / "idx", RECIPE, IDS))
    later = seal_header({**to_json(store.header), "later": [1]})
    for name in (HEADER, COPY):
        (tmp_path / "idx" / name).write_bytes(later)
    Store(tmp_path / "idx").update_header(weights=[2, 3])
    header = json.loads((tmp_path / "idx" / HEADER).read_text())["attributes"]["gradindex"]
    assert (header["later"], header["weights"]) == ([1], [2, 3])
    assert Store.mended(tmp_path / "idx").header.weights == [2, 3]
    assert (tmp_path / "idx" / HEADER).read_bytes() == (tmp_path / "idx" / COPY).read_bytes()


def test_numpy_scalars_are_json_in_the_header(tmp_path: Path) -> None:
    data = DataSource(source=np.str_("d"), columns={"id": np.str_("name")})
    store = Store.create(
        tmp_path / "idx", RECIPE, IDS, weights=[np.float64(0.5), np.float32(0.25)], data=data
    )
    assert store.header.weights == [0.5, 0.25]
    assert store.header.data == data


@pytest.mark.parametrize("depth", [10, 985, 992, 993, 1000, 100_000])
def test_json_that_nests_deep_was_changed(depth: int) -> None:
    with pytest.raises(ValueError, match="was changed"):
        unseal(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
