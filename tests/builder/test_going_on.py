"""A build that goes on: what it reads of what is there, and which damages it finds."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDPMScheduler
from PIL import Image

import gradindex
from gradindex.builder import shard_gradients
from gradindex.builder.verify import damages
from gradindex.cli.main import main
from gradindex.data import picture_facts
from gradindex.data.dataset import Dataset
from gradindex.errors import RecipeMismatch, StoreError
from gradindex.gradients.events import Events
from gradindex.recipe import Recipe
from gradindex.store import store as store_module
from gradindex.store.store import Store

DIMS = (64, 4096)  # of two stores, a factor 64 apart
JSON_BYTES = 2000  # by which the JSON of two stores may differ: digits of sizes, recall, times


def random_gradients(
    denoiser: Any, capture: Any, recipe: Recipe, events: Events, *_: Any
) -> Callable[[], np.ndarray]:
    """What waits for random rows in place of pictures' gradients, [B, T, D] float32."""
    shape = len(events.names), recipe.per_picture, recipe.dim
    return lambda: np.random.default_rng(shape[0]).standard_normal(shape, np.float32)


def bytes_read() -> int:
    """What this process has read from files so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)


@pytest.fixture
def build(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., gradindex.Index]]:
    """A build of random rows, into tmp_path/idx by default, with factors and search files.

    Fewer pictures than numbers in a row would have none.
    """
    monkeypatch.setattr(shard_gradients, "launch_gradients", random_gradients)

    def call(index: str = "idx", **options: Any) -> gradindex.Index:
        defaults = {"model": model, "data": pictures, "timesteps": 2, "dim": 8, "batch_size": 4}
        return gradindex.build(tmp_path / index, **{**defaults, **options}, device="cpu")

    return call


@pytest.mark.skipif(
    not Path("/proc/self/io").exists() and not os.environ.get("GRADINDEX_REQUIRE_ALL"),
    reason="the system does not count reads",
)
def test_a_rerun_reads_as_much_of_a_large_store_as_of_a_small_one(
    build: Callable[..., gradindex.Index], tmp_path: Path
) -> None:
    """And a check reads all of it, so that the count would show it."""
    sizes, reads, checks = [], [], []
    for dim in DIMS:
        build(str(dim), dim=dim)
        sizes.append(bytes_in(tmp_path / str(dim)))
        for counts, check in ((reads, False), (checks, True)):
            before = bytes_read()
            build(str(dim), dim=dim, check=check)
            counts.append(bytes_read() - before)
    assert sizes[1] > 5 * sizes[0]
    assert abs(reads[1] - reads[0]) < JSON_BYTES
    assert checks[1] - reads[1] > 0.8 * sizes[1]


def test_a_resumed_build_reads_back_only_what_it_writes(
    build: Callable[..., gradindex.Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    (tmp_path / "idx/manifest/c000-s000001.json").unlink()
    read_back: list[tuple[int, int]] = []
    damaged = Store.damaged

    def watched(store: Store, entry: Any) -> list[str]:
        read_back.append(entry.rows)
        return damaged(store, entry)

    monkeypatch.setattr(Store, "damaged", watched)
    build()
    assert read_back == [(4, 8)]


def test_timesteps_that_are_not_given_are_the_usual_or_those_there_were(
    build: Callable[..., gradindex.Index],
    model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An index of an older gradindex, whose usual ones were others, goes on and grows."""
    usual = build("usual", timesteps=None).store.recipe.timesteps
    assert usual == build("weighted", timesteps="weighted:5").store.recipe.timesteps
    data = shutil.copytree(pictures, tmp_path / "data")
    old = build(data=data, timesteps=10).store.recipe.timesteps
    assert build(data=data, timesteps=None).store.recipe.timesteps == old
    dry = ["build", str(tmp_path / "idx"), "--model", str(model), "--data", str(data), "--dry-run"]
    main(dry)
    assert "10 gradients, each" in capsys.readouterr().out
    shutil.copy(sorted(data.iterdir())[0], data / "new.png")
    grown = build(data=data, timesteps=None)
    assert (grown.store.recipe.timesteps, "new.png" in grown.ids) == (old, True)
    with pytest.raises(RecipeMismatch):
        build(data=data, timesteps="weighted:5")
    assert build(data=data, timesteps=None, overwrite=True).store.recipe.timesteps == old
    other = tmp_path / "scheduler"
    DDPMScheduler(num_train_timesteps=500).save_pretrained(other)
    own = build("500", timesteps=None, scheduler=other).store.recipe.timesteps
    replaced = build(data=data, timesteps=None, scheduler=other, overwrite=True)
    assert (replaced.store.recipe.timesteps, len(own)) == (own, 5)
    for name in ("zarr.json", "manifest/header.json"):
        flip(tmp_path / "idx" / name)
    assert build(data=data, timesteps=None, overwrite=True).store.recipe.timesteps == usual


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """As a torn write: a kill leaves at most a draft, but a disk without syncs may lose an end."""
    os.truncate(file, file.stat().st_size - 1)


ROWS, ENTRY = "unnormalized/c/0/1/0/0", "manifest/c000-s000001.json"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((ROWS, cut), (ROWS, Path.unlink), (ENTRY, cut), (ENTRY, flip), (ENTRY, Path.unlink)),
        *(("faiss/retrac.faiss", cut), ("faiss/retrac.json", flip)),
        ("whiten/tracin-0-0.f32", cut),
    ],
)
def test_what_sizes_and_seals_tell_is_mended_without_a_check(
    build: Callable[..., gradindex.Index], tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    build()
    whole = (tmp_path / "idx" / name).read_bytes()
    damage(tmp_path / "idx" / name)
    build()
    assert list(damages(tmp_path / "idx")) == []
    if name != "faiss/retrac.json":  # which says how long a query took
        assert (tmp_path / "idx" / name).read_bytes() == whole


@pytest.mark.parametrize("name", [ROWS, "faiss/retrac.faiss", "whiten/tracin-0-0.f32"])
def test_a_flipped_byte_is_named_by_verify_and_mended_by_a_check(
    build: Callable[..., gradindex.Index], tmp_path: Path, name: str
) -> None:
    build()
    whole = (tmp_path / "idx" / name).read_bytes()
    flip(tmp_path / "idx" / name)
    index = build()
    assert list(damages(tmp_path / "idx")) == [f"{name} was changed"]
    if name == ROWS:
        message = r"unnormalized is damaged \(.*\); run the same build again with check"
        with pytest.raises(StoreError, match=message):
            index.ranker.scores("tracin", np.ones((1, 1, 2, 8), np.float32))
    build(check=True)
    assert (tmp_path / "idx" / name).read_bytes() == whole


def test_a_flipped_byte_in_a_shard_that_grows_is_not_copied(
    build: Callable[..., gradindex.Index], tmp_path: Path, pictures: Path
) -> None:
    """Its old rows are read for the new one, and made anew where they are damaged."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    last = sorted(data.iterdir())[-3:]
    for file in last:
        file.rename(tmp_path / file.name)
    build(data=data)
    flip(tmp_path / "idx" / ROWS)
    for file in last:
        (tmp_path / file.name).rename(file)
    build(data=data)
    assert list(damages(tmp_path / "idx")) == []


# --- parts


def test_a_part_looks_at_the_files_of_its_pictures_alone(
    build: Callable[..., gradindex.Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads the entries of its shards alone before it begins."""
    build()
    looked_at: set[str] = set()
    stat_digest = picture_facts.stat_digest

    def watched(folder: Path, names: Sequence[str]) -> str:
        looked_at.update(names)
        return stat_digest(folder, names)

    monkeypatch.setattr(picture_facts, "stat_digest", watched)
    build(part=(2, 3))
    # The first one tells that ids are paths.
    assert looked_at == {"p000.png", "p008.png"}


def test_a_part_refuses_other_pictures_of_its_own(
    build: Callable[..., gradindex.Index], tmp_path: Path, pictures: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    build(data=data)
    shutil.copy(data / "p001.png", data / "p005.png")  # of the second of three shards
    for part in ((0, 3), (2, 3)):
        build(data=data, part=part)
    for part in ((1, 3), (0, 1)):
        with pytest.raises(RecipeMismatch, match=r"'p005\.png' is another picture now"):
            build(data=data, part=part)


def test_a_file_that_changes_while_it_is_read_is_noticed_by_the_next_build(
    build: Callable[..., gradindex.Index],
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its size, time and inode are those from before its bytes were read."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    read = Dataset.read

    def read_and_replaced(dataset: Dataset, row: int, *arguments: Any) -> Any:
        picture = read(dataset, row, *arguments)
        if dataset.sample_ids[row] == "p005.png":
            other = Image.new("L", (8, 8), 7)
            other.save(data / "p005.png")
        return picture

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "read", read_and_replaced)
        build(data=data)
    entry = gradindex.open(tmp_path / "idx").store.entry_of(5)
    assert entry is not None
    assert entry.stat(5) != picture_facts.stat_digest(data, ["p005.png"])
    assert entry.stat(6) == picture_facts.stat_digest(data, ["p006.png"])
