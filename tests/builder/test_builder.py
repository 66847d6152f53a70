"""A build: stopped and rerun, batched any way, over any kind of data, it gives the same rows."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import make_model, make_pictures
from PIL import Image
from safetensors.torch import load_file, save_file

import gradindex
from gradindex.builder.verify import damages
from gradindex.data.dataset import Dataset
from gradindex.data.images import DecodedPicture, to_array
from gradindex.errors import CallError, DataError, ModelError, RecipeMismatch, StoreError
from gradindex.gradients.capture import Capture
from gradindex.search import ann_index as ann_index_module
from gradindex.store import store as store_module
from gradindex.store.store import Store

Build = Callable[..., gradindex.Index]


@pytest.fixture
def build(tmp_path: Path, model: Path, pictures: Path) -> Build:
    """`gradindex.build` with small defaults, into tmp_path/idx."""

    def call(**options: Any) -> gradindex.Index:
        defaults = {
            "model": model,
            "data": pictures,
            "timesteps": [100, 700],
            "dim": 64,
            "device": "cpu",
        }
        return gradindex.build(options.pop("index", tmp_path / "idx"), **{**defaults, **options})

    return call


def arrays_of(index: gradindex.Index) -> dict[str, np.ndarray]:
    return {name: getattr(index.store, name)[:] for name in store_module.ROW_ARRAYS}


def assert_same_rows(one: gradindex.Index, two: gradindex.Index, tolerance: float = 1e-4) -> None:
    """Equal up to float rounding: within `tolerance` of each row's norm."""
    left, right = one.store.unnormalized[:], two.store.unnormalized[:]
    scale = np.linalg.norm(right, axis=-1, keepdims=True)
    assert (np.linalg.norm(left - right, axis=-1, keepdims=True) <= tolerance * scale).all()


@pytest.mark.parametrize("noise", ["shared", "own"])
def test_batch_size_changes_nothing(build: Build, tmp_path: Path, noise: str) -> None:
    one = build(batch_size=1, noise=noise, draws=2)
    for batch_size in (3, 64):
        assert_same_rows(
            build(index=tmp_path / str(batch_size), batch_size=batch_size, noise=noise, draws=2),
            one,
        )


@pytest.mark.parametrize("noise", ["shared", "own"])
def test_order_and_company_change_nothing(
    build: Build, tmp_path: Path, pictures: Path, noise: str
) -> None:
    """A picture has the same row alone, and in a set that is sorted differently."""
    whole = build(noise=noise)
    some = tmp_path / "some"
    some.mkdir()
    for name in ("p007.png", "p002.png"):
        (some / name).write_bytes((pictures / name).read_bytes())
    part = build(index=tmp_path / "part", data=some, noise=noise)
    rows = [whole.store.sample_ids.index(name) for name in part.store.sample_ids]
    np.testing.assert_allclose(
        part.store.unnormalized[:], whole.store.unnormalized[:][:, rows], rtol=1e-3, atol=1e-6
    )


def test_a_stopped_build_goes_on_and_equals_one_shot(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two of three shards, then rerun: bitwise the same.

    Only the missing shard is made.
    """
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    whole = build(index=tmp_path / "whole")
    write, written, stopping = Store.write, [], [2]  # two threads write, in any order

    def stops(self: Store, shard: Any, *args: Any) -> None:
        if shard.number in stopping:
            raise KeyboardInterrupt
        write(self, shard, *args)
        written.append(shard.name)

    monkeypatch.setattr(Store, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        build()
    stopping.clear()
    with pytest.raises(gradindex.GradindexError, match="1 of 3 shards is missing"):
        gradindex.open(tmp_path / "idx")
    written.clear()
    resumed = build()
    assert len(written) == 1
    for name, array in arrays_of(whole).items():
        np.testing.assert_array_equal(arrays_of(resumed)[name], array)


@pytest.mark.slow
def test_kill_9_loses_nothing(tmp_path: Path, model: Path) -> None:
    """Killed again and again while it writes: in the end the rows are those of one shot."""
    data = make_pictures(tmp_path / "data", 40)
    code = (
        "import sys, torch, gradindex; from gradindex.store import store;"
        "torch.set_num_threads(1); store.SHARD_ROWS = 4;"
        f"gradindex.build(sys.argv[1], model={str(model)!r}, data={str(data)!r},"
        " timesteps=4, dim=32, device='cpu')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "whole")], check=True)
    killed = 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "idx")])
        before = (
            len(list((tmp_path / "idx" / "manifest").glob("*.json")))
            if (tmp_path / "idx").exists()
            else 0
        )
        while process.poll() is None and not (
            (tmp_path / "idx/manifest").exists()
            and len(list((tmp_path / "idx/manifest").glob("*.json"))) > before
        ):
            time.sleep(0.002)
        time.sleep(0.01 * killed)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        if process.returncode == 0:
            break
    assert killed >= 2
    whole, resumed = gradindex.open(tmp_path / "whole"), gradindex.open(tmp_path / "idx")
    for name, array in arrays_of(whole).items():
        np.testing.assert_array_equal(arrays_of(resumed)[name], array)


@pytest.mark.slow
def test_two_builders_at_once_do_no_harm(tmp_path: Path, model: Path) -> None:
    """Both make the same index in the same place, and both end well.

    It is what one of them would have made.
    """
    data = make_pictures(tmp_path / "data", 600)
    options = [
        "--model",
        str(model),
        "--data",
        str(data),
        "--timesteps",
        "2",
        "--dim",
        "16",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "gradindex", "build"]
    both = [
        subprocess.Popen([*command, str(tmp_path / "idx"), *options], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert list(damages(tmp_path / "idx")) == []
    subprocess.run([*command, str(tmp_path / "whole"), *options], check=True, capture_output=True)
    one, two = gradindex.open(tmp_path / "whole"), gradindex.open(tmp_path / "idx")
    assert one.store.summary == two.store.summary


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_make_the_same_index(
    build: Build,
    tmp_path: Path,
    model: Path,
    queries: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
) -> None:
    """Whatever their number, also more than there are shards.

    Only when the last is made does the index answer.
    """
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    options = {"checkpoints": [model, make_model(tmp_path / "second", seed=1)]}
    whole = build(index=tmp_path / "whole", **options)
    for number in reversed(range(parts)):
        build(part=(number, parts), **options)
        if number * 6 // parts:  # of six shards
            with pytest.raises(StoreError, match="run the same build again"):
                gradindex.open(tmp_path / "idx")
    index = gradindex.open(tmp_path / "idx")
    for name, array in arrays_of(whole).items():
        np.testing.assert_array_equal(arrays_of(index)[name], array)
    assert index.query(queries) == whole.query(queries)


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_there_is_not(build: Build, part: tuple[int, int]) -> None:
    with pytest.raises(CallError, match=r"part = .*: give \(I, N\)"):
        build(part=part)


def test_a_rebuild_with_another_recipe_is_refused(build: Build) -> None:
    build()
    with pytest.raises(RecipeMismatch, match="seed: 0, now 1") as caught:
        build(seed=1, draws=2)
    assert caught.value.differences == ["draws: 1, now 2", "seed: 0, now 1"]
    assert build(seed=1, overwrite=True).store.recipe.seed == 1


def test_a_rebuild_over_other_data_is_refused(build: Build, tmp_path: Path) -> None:
    build()
    other = make_pictures(tmp_path / "other", 3)
    with pytest.raises(
        RecipeMismatch,
        match=r"data: 6 of 9 pictures are gone, such as 'p003\.png'; `remove` them first",
    ):
        build(data=other)


def test_new_weights_of_checkpoints_need_no_new_rows(
    build: Build, model: Path, queries: list[Path]
) -> None:
    one = build(checkpoints={str(model): 1.0}).scores(queries, "tracin")
    two = build(checkpoints={str(model): 2.0}).scores(queries, "tracin")
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


def test_an_index_that_is_overwritten_stays_until_the_new_one_is_whole(
    build: Build, tmp_path: Path, bad_pictures: Path
) -> None:
    build()
    for _ in range(2):
        with pytest.raises(DataError):
            build(data=bad_pictures, overwrite=True, seed=1)
    kept = gradindex.open(tmp_path / "idx.replaced")
    assert kept.store.recipe.seed == 0
    build(data=bad_pictures, overwrite=True, seed=1, skip_bad=True)
    assert not (tmp_path / "idx.replaced").exists()


def test_a_build_mends_what_was_damaged(build: Build, tmp_path: Path, queries: list[Path]) -> None:
    """Lost names, a changed header, flipped bytes of rows and manifest.

    Every file is again as it was, but for the search index's record, which says how long a query
    took.
    """
    scores, index = build().scores(queries), tmp_path / "idx"
    shutil.rmtree(index / "sample_ids/c")
    with pytest.raises(
        StoreError, match=r"sample_ids/c/0 is missing; run the same build again with check, it"
    ):
        gradindex.open(index).query(queries)
    build()
    whole = {file: file.read_bytes() for file in index.rglob("*") if file.is_file()}
    for file, content in whole.items():
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        np.testing.assert_array_equal(build(check=True).scores(queries), scores)
        assert file.read_bytes() == content or file.match("faiss/*.json")
    assert list(damages(index)) == []


def test_without_faiss_nothing_is_written(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann_index_module.require_faiss.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(gradindex.GradindexError, match="FAISS is not installed"):
        build()
    assert not (tmp_path / "idx").exists()


def test_a_folder_that_is_something_else_is_left_alone(build: Build, pictures: Path) -> None:
    before = sorted(pictures.iterdir())
    with pytest.raises(CallError, match="exists and is not a gradindex index"):
        build(index=pictures, overwrite=True)
    assert sorted(pictures.iterdir()) == before


# --- pictures --------------------------------------------------------------------------------


@pytest.fixture
def bad_pictures(tmp_path: Path) -> Path:
    folder = make_pictures(tmp_path / "bad", 6)
    whole = (folder / "p001.png").read_bytes()
    (folder / "p001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "p004.png").write_text("not a picture")
    return folder


def test_a_bad_picture_stops_the_build_and_is_named(build: Build, bad_pictures: Path) -> None:
    with pytest.raises(
        DataError, match=r"'p001.png' is not a readable picture \(.*\); skip_bad leaves such"
    ):
        build(data=bad_pictures)


def test_skip_bad_leaves_them_out(build: Build, bad_pictures: Path, queries: list[Path]) -> None:
    index = build(data=bad_pictures, skip_bad=True)
    assert index.store.excluded == [1, 4]
    scores = index.scores(queries)
    assert np.isnan(scores[:, [1, 4]]).all()
    assert np.isfinite(scores[:, [0, 2, 3, 5]]).all()
    for result in index.query(queries, 10, opponents=True):
        assert sorted(hit.row for hit in result.hits) == [0, 2, 3, 5]
        assert sorted(hit.row for hit in result.opponents or []) == [0, 2, 3, 5]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_repaired_picture_is_filled_in(build: Build, bad_pictures: Path, skip_bad: bool) -> None:
    """Stopped at bad pictures or run without them, then repaired.

    The same build makes the rows that lack.
    """
    if skip_bad:
        assert build(data=bad_pictures, skip_bad=True).store.excluded == [1, 4]
    else:
        with pytest.raises(DataError):
            build(data=bad_pictures)
    for name in ("p001.png", "p004.png"):
        shutil.copy(bad_pictures / "p000.png", bad_pictures / name)
    index = build(data=bad_pictures)
    assert index.store.excluded == []
    np.testing.assert_allclose(
        index.store.unnormalized[0, 4], index.store.unnormalized[0, 0], rtol=1e-3, atol=1e-6
    )


def test_pictures_that_changed_are_another_data_set(
    build: Build, tmp_path: Path, pictures: Path
) -> None:
    """Same names, other contents; and a table without ids under the same row numbers."""
    data = tmp_path / "mine"
    shutil.copytree(pictures, data)
    build(data=data)
    shutil.copy(data / "p001.png", data / "p000.png")
    with pytest.raises(RecipeMismatch, match=r"data: 'p000\.png' is another picture now"):
        build(data=data)
    files = [str(file) for file in sorted(pictures.iterdir())]
    for name, some in [("a", files[:4]), ("b", files[4:8])]:
        table = datasets.Dataset.from_dict({"image": some}).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"{name}.parquet")
    build(index=tmp_path / "t", data=tmp_path / "a.parquet")
    with pytest.raises(RecipeMismatch, match="data: '0' is another picture now"):
        build(index=tmp_path / "t", data=tmp_path / "b.parquet")


def test_not_one_picture_can_be_read(build: Build, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_text("text")
    with pytest.raises(DataError, match="not one of 1 picture tried can be read"):
        build(data=tmp_path / "data", skip_bad=True)


def test_tables_with_odd_columns(build: Build, tmp_path: Path, pictures: Path) -> None:
    files = [str(file) for file in sorted(pictures.iterdir())][:3]
    columns = {"image": files, "number": [1, 2, 3], "label": ["cat", "dog", "cat"]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "t.parquet")
    assert build(data=tmp_path / "t.parquet").store.shape[1] == 3  # nobody asked for the label
    with pytest.raises(CallError, match="column 'number' holds no pictures"):
        build(data=tmp_path / "t.parquet", columns=gradindex.Columns(image="number"))
    with pytest.raises(CallError, match="label column 'label' does not hold whole numbers"):
        build(data=tmp_path / "t.parquet", columns=gradindex.Columns(label="label"))
    table = datasets.Dataset.from_dict({"image": [files[0], None]}).cast_column(
        "image", datasets.Image()
    )
    table.to_parquet(tmp_path / "null.parquet")
    with pytest.raises(DataError, match="'1' is not a readable picture"):
        build(index=tmp_path / "n", data=tmp_path / "null.parquet")
    assert build(
        index=tmp_path / "n", data=tmp_path / "null.parquet", skip_bad=True
    ).store.excluded == [1]


def test_only_the_train_split_of_a_parquet_folder(
    build: Build, tmp_path: Path, pictures: Path
) -> None:
    files = [str(file) for file in sorted(pictures.iterdir())]
    (tmp_path / "hub/data").mkdir(parents=True)
    for split, some in [("train", files[:4]), ("test", files[4:])]:
        table = datasets.Dataset.from_dict({"image": some}).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    assert build(data=tmp_path / "hub").store.shape[1] == 4


def test_empty_and_missing_folders(build: Build, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CallError, match="empty: no pictures there"):
        build(data=tmp_path / "empty")
    with pytest.raises(CallError, match="absent: no such file or folder"):
        build(data=tmp_path / "absent")
    assert not (tmp_path / "idx").exists()


def test_any_size_and_mode(build: Build, tmp_path: Path) -> None:
    """Grey, colour, 16-bit and transparent pictures of any size.

    They become the model's size and channels.
    """
    folder = tmp_path / "mixed" / "deep"
    folder.mkdir(parents=True)
    grey = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(grey * 100).save(folder / "sixteen.png")
    Image.fromarray((grey % 256).astype(np.uint8)).save(folder / "grey.webp", lossless=True)
    Image.new("RGBA", (8, 50), (10, 200, 30, 120)).save(folder / "alpha.PNG")
    Image.new("RGB", (50, 8), (10, 200, 30)).save(folder / "colour.jpeg")
    index = build(data=tmp_path / "mixed")
    assert index.store.sample_ids == [
        "deep/alpha.PNG",
        "deep/colour.jpeg",
        "deep/grey.webp",
        "deep/sixteen.png",
    ]
    assert (index.store.norm[:] > 0).all()


def test_resize_crop_and_modes_give_the_expected_numbers() -> None:
    """A wide picture keeps its middle; 16 bits are scaled, not clipped.

    Colour becomes Pillow's grey.
    """
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200  # what is left of 48 × 16 after the centre crop to a square
    np.testing.assert_allclose(
        to_array(Image.fromarray(wide), (1, 8, 8))[0, :, 1:7], 200 / 127.5 - 1, atol=1e-6
    )
    sixteen = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))
    np.testing.assert_allclose(to_array(sixteen, (1, 8, 8)), 200 / 127.5 - 1, atol=1e-6)
    colour = to_array(Image.new("RGB", (8, 8), (10, 200, 30)), (3, 8, 8))
    np.testing.assert_allclose(colour[:, 0, 0], np.float32([10, 200, 30]) / 127.5 - 1, atol=1e-6)
    grey = to_array(Image.new("RGB", (8, 8), (10, 200, 30)), (1, 8, 8))
    np.testing.assert_allclose(grey, 124 / 127.5 - 1, atol=1e-6)
    with pytest.raises(CallError, match="a picture of mode 'F'"):
        to_array(Image.new("F", (8, 8)), (1, 8, 8))


def test_a_picture_of_the_right_size_keeps_its_pixels(pictures: Path) -> None:
    from gradindex.data.opening import open_dataset

    array = open_dataset(pictures).picture(2, (1, 8, 8))
    pixels = np.asarray(Image.open(pictures / "p002.png"), dtype=np.float32)
    np.testing.assert_array_equal(array, (pixels / 127.5 - 1)[None])


@pytest.mark.parametrize("kind", ["imagefolder", "save_to_disk", "parquet", "parquet folder"])
def test_tables_give_the_rows_of_the_folder(
    build: Build, tmp_path: Path, pictures: Path, kind: str
) -> None:
    files = sorted(pictures.iterdir())
    names = [file.name for file in files]
    columns = gradindex.Columns(id="name")
    if kind == "imagefolder":
        source, columns = tmp_path / "images", gradindex.Columns()
        source.mkdir()
        for file in files:
            (source / file.name).write_bytes(file.read_bytes())
        lines = [json.dumps({"file_name": name, "caption": "a digit"}) for name in names]
        (source / "metadata.jsonl").write_text("\n".join(lines))
    else:
        table = datasets.Dataset.from_dict({"pic": [str(file) for file in files], "name": names})
        table = table.cast_column("pic", datasets.Image())
        source = tmp_path / "table"
        if kind == "save_to_disk":
            table.save_to_disk(source)
        else:
            source.mkdir()
            table.to_parquet(source / "train.parquet")
            source = source / "train.parquet" if kind == "parquet" else source
    index = build(data=source, columns=columns, index=tmp_path / "table-idx")
    assert index.store.sample_ids == names
    assert_same_rows(index, build())
    assert index.thumbnail(0) is not None


def test_columns_that_do_not_exist_and_ids_that_repeat(
    build: Build, tmp_path: Path, pictures: Path
) -> None:
    files = [str(file) for file in sorted(pictures.iterdir())]
    table = datasets.Dataset.from_dict({"image": files, "name": ["a", "b", "a", *"defghi"]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(CallError, match="no column 'title'; there are image, name"):
        build(data=tmp_path / "t.parquet", columns=gradindex.Columns(id="title"))
    with pytest.raises(DataError, match="1 id stands for several pictures, such as 'a'"):
        build(data=tmp_path / "t.parquet", columns=gradindex.Columns(id="name"))


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["unet in pipeline", "bare", "trainer", "ema", "weights file", "bin"]
)
def test_model_layouts_give_the_same_rows(
    build: Build, tmp_path: Path, model: Path, layout: str
) -> None:
    place, options = tmp_path / "m", {}
    weights = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    config, scheduler = (
        (model / "unet/config.json").read_text(),
        model / "scheduler/scheduler_config.json",
    )
    folder = {"trainer": place / "unet", "ema": place / "unet_ema"}.get(layout, place)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    options["model"] = place
    if layout == "unet in pipeline":
        options["model"] = model / "unet"
    elif layout == "bare":
        (place / "scheduler_config.json").write_bytes(scheduler.read_bytes())
    elif layout == "weights file":
        save_file(weights, tmp_path / "step.safetensors")
        options |= {"model": model, "checkpoints": [tmp_path / "step.safetensors"]}
    elif layout == "bin":
        (place / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(weights, place / "diffusion_pytorch_model.bin")
        options["scheduler"] = model / "scheduler"
    else:
        options["scheduler"] = scheduler
    index = build(index=tmp_path / "layout-idx", **options)
    assert_same_rows(index, build(), 1e-6)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def test_a_pickle_is_never_run(
    build: Build, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "evil"
    place.mkdir()
    (place / "config.json").write_bytes((model / "unet/config.json").read_bytes())
    torch.save({"weight": Payload()}, place / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(model=place, scheduler=model / "scheduler")
    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(checkpoints=[tmp_path / "evil.pt"])
    assert not (tmp_path / "owned").exists()


def test_models_that_cannot_be_used(build: Build, tmp_path: Path, model: Path) -> None:
    with pytest.raises(CallError, match="absent: no such file or folder"):
        build(model=tmp_path / "absent")
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match="no model here"):
        build(model=tmp_path / "m")
    config = json.loads((model / "unet/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(
        CallError, match=r"no scheduler_config.json found; name its folder with --scheduler"
    ):
        build(model=tmp_path / "m")
    with pytest.raises(ModelError, match="no weights"):
        build(model=tmp_path / "m", scheduler=model / "scheduler")
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "_class_name": "Mystery"}))
    with pytest.raises(ModelError, match="a model of class 'Mystery'; gradindex knows UNet2DModel"):
        build(model=tmp_path / "m", scheduler=model / "scheduler")
    assert not (tmp_path / "idx").exists()


def test_channels_that_pictures_do_not_have(build: Build, tmp_path: Path) -> None:
    place = make_model(tmp_path / "four", in_channels=4, out_channels=4)
    with pytest.raises(CallError, match="the model takes 4 channels; pictures have 1"):
        build(model=place)


def test_nan_weights_are_named(build: Build, tmp_path: Path, model: Path) -> None:
    weights = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"][0] = np.nan
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match=r"weights 'conv_in\.bias' hold NaN or infinity"):
        build(checkpoints=[tmp_path / "nan.safetensors"])
    assert not (tmp_path / "idx").exists()


def test_a_gradient_that_is_not_finite_is_named(
    build: Build, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that overflow are seen before anything is written.

    One bad row is named and not committed.
    """
    weights = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_out.weight"] *= 1e30
    save_file(weights, tmp_path / "huge.safetensors")
    with pytest.raises(ModelError, match="the model's gradient is not finite"):
        build(checkpoints=[tmp_path / "huge.safetensors"])
    assert not (tmp_path / "idx").exists()
    read = Dataset.read

    def broken(self: Dataset, row: int, *sizes: Any) -> DecodedPicture:
        picture = read(self, row, *sizes)
        return picture._replace(array=picture.array * (np.inf if row == 7 else 1))

    monkeypatch.setattr(Dataset, "read", broken)
    with pytest.raises(ModelError, match=r"gradient of 'p007.png' at timestep 100 is not finite"):
        build()
    assert len(Store(tmp_path / "idx").missing()) == 1


def test_a_batch_that_does_not_fit_is_halved(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, gradients, sizes = build(index=tmp_path / "whole"), Capture.gradients, []

    def small_device(
        self: Capture, losses: Callable[[], torch.Tensor], *scale: float
    ) -> torch.Tensor:
        rows = gradients(self, losses, *scale)
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no memory")
        return rows

    monkeypatch.setattr(Capture, "gradients", small_device)
    assert_same_rows(build(batch_size=8), whole)
    assert {8, 4} < set(sizes)
    monkeypatch.setattr(
        Capture, "gradients", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))
    )
    with pytest.raises(ModelError, match="two pictures at one timestep do not fit"):
        build(index=tmp_path / "never")


def test_checkpoints_of_different_models_are_refused(
    build: Build, tmp_path: Path, model: Path
) -> None:
    other = make_model(tmp_path / "other", prediction_type="sample")
    with pytest.raises(ModelError, match="is of another model or scheduler than"):
        build(checkpoints=[model, other])


def test_a_latent_pipeline_without_its_vae_is_refused(build: Build, tmp_path: Path) -> None:
    place = make_model(tmp_path / "latent")
    parts = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(
        json.dumps({**parts, "vqvae": ["diffusers", "VQModel"]})
    )
    with pytest.raises(ModelError, match="the pipeline's vqvae, which makes latents"):
        build(model=place)


def test_a_training_checkpoint_takes_the_models_scheduler(
    build: Build, tmp_path: Path, model: Path
) -> None:
    shutil.copytree(model / "unet", tmp_path / "far/away/out/checkpoint-500/unet")
    assert_same_rows(
        build(checkpoints=[tmp_path / "far/away/out/checkpoint-500"]),
        build(index=tmp_path / "i"),
        1e-6,
    )


def test_colour_and_classes(build: Build, tmp_path: Path, queries: list[Path]) -> None:
    """A class-conditional colour model: labels come from folders, a query names its own."""
    place = make_model(tmp_path / "cond", in_channels=3, out_channels=3, num_class_embeds=2)
    for label in ("cat", "dog"):
        make_pictures(tmp_path / "classes" / label, 3, mode="RGB")
    index = build(model=place, data=tmp_path / "classes")
    rows = index.store.unnormalized[0]
    assert np.abs(rows[0] - rows[3]).max() > 1e-6  # the same picture under another label
    with pytest.raises(CallError, match="class-conditional: give class_label, 0 to 1"):
        index.query(queries)
    with pytest.raises(CallError, match="class_label = 2: give one from 0 to 1"):
        index.query(queries, class_label=2)
    hits = index.query([tmp_path / "classes/dog/p001.png"], 1, class_label=1, whiten=False)[0].hits
    assert (hits[0].id, round(hits[0].score, 5)) == ("dog/p001.png", 1)
    with pytest.raises(CallError, match="pictures have no label"):
        build(model=place, data=tmp_path / "classes/cat", overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps = 0: give 1 to 1000"),
        ({"timesteps": [1000]}, "give distinct timesteps from 0 to 999"),
        ({"dim": 0}, "dim = 0: give a whole number, 1 or more"),
        ({"draws": 0}, "draws = 0"),
        ({"noise": "pink"}, "noise = 'pink': allowed are 'shared', 'own'"),
        ({"loss": "huber"}, "loss = 'huber'"),
        ({"projection": "fjlt"}, "projection = 'fjlt'"),
        ({"params": "("}, "not a regular expression"),
        ({"params": "lora"}, "params = 'lora': no part of a model, and found in none of the 144"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_wrong_calls(build: Build, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as caught:
        build(**options)
    assert message in str(caught.value)
    assert caught.value.exit_status == 2
    assert not (tmp_path / "idx").exists()


def test_params_pick_parameters(build: Build, tmp_path: Path, queries: list[Path]) -> None:
    """Rows over some parameters are the columns of the rows over all of them."""
    whole = build(projection="none")
    part = build(index=tmp_path / "part", projection="none", params=r"^conv_in\.")
    width = part.store.recipe.parameter_count
    assert width == 8 * 9 + 8
    names = dict(whole.gradients.checkpoints[0].model.named_parameters())
    start = sum(p.numel() for p in list(names.values())[: list(names).index("conv_in.weight")])
    error = part.store.unnormalized[0] - whole.store.unnormalized[0, :, :, start : start + width]
    assert (
        np.linalg.norm(error, axis=-1) < 1e-5 * part.store.norm[0]
    ).all()  # norms that are not chosen round otherwise
