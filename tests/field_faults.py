"""Small inputs that gradindex once read wrongly or refused badly: the files of each.

Each function's docstring says what is right.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from conftest import make_model
from PIL import Image, features
from pyarrow import parquet

FORMATS = ["png", "JPG", "bmp", "tif", "gif", "ppm", "jfif", "jp2"]
FORMATS += ["avif"] if features.check("avif") else []  # of Pillow 11.3 and later
PILLOW_NAMES = {"jfif": "JPEG", "JPG": "JPEG"}  # of formats whose suffix Pillow does not write
WEIGHTS = "diffusion_pytorch_model.safetensors"


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Return a smooth picture in colour."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def fill(path: Path, names: Iterable[str]) -> None:
    for seed, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path / name)


def write_table(file: Path, **columns: list[Image.Image | None]) -> None:
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    datasets.Dataset.from_dict(columns, features).to_parquet(file)


def colour_model(path: Path, **config: object) -> Path:
    """Save a pipeline of 16 × 16 pixels in colour."""
    return make_model(path, **{"sample_size": 16, "in_channels": 3, "out_channels": 3, **config})


def exif(out: Path) -> None:
    """A JPEG taken sideways (orientation 6) and the same picture upright are one picture."""
    blocks = np.kron(np.arange(12).reshape(3, 4) * 20, np.ones((8, 8))).astype(np.uint8)
    shown = Image.fromarray(blocks).convert("RGB")
    tags = Image.Exif()
    tags[0x0112] = 6
    shown.transpose(Image.Transpose.ROTATE_90).save(out / "sideways.jpg", exif=tags, quality=95)
    shown.save(out / "upright.png")


def hidden_folder(out: Path) -> None:
    """`.ipynb_checkpoints` is neither indexed nor a class: cat is 0, dog is 1."""
    fill(out, ["cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png", ".ipynb_checkpoints/0.png"])


def split_folders(out: Path) -> None:
    """The pictures of `train` are taken, which is said; the classes are cat and dog."""
    fill(out, ["train/cat/0.png", "train/dog/1.png", "test/cat/2.png", "test/dog/3.png"])


def linked_folder(out: Path) -> None:
    """A class folder that is a link is followed, a link to nowhere is named."""
    fill(out / "set", ["cat/0.png", "dog/1.png"])
    fill(out / "elsewhere", ["5.png", "6.png"])
    (out / "set/bird").symlink_to("../elsewhere")
    (out / "set/dog/gone.png").symlink_to("../../nowhere.png")


def other_formats(out: Path) -> None:
    """Every format that Pillow reads is indexed."""
    for seed, suffix in enumerate(FORMATS):
        picture(seed).save(out / f"{seed}.{suffix}", PILLOW_NAMES.get(suffix))


def split_words(out: Path) -> None:
    """Names with `train` and `test` in them are names: all six pictures, ids as written."""
    names = ["train-station.png", "steam train 2.png", "test-card.png", "a.png", "b.png", "c.png"]
    fill(out, names)
    rows = [json.dumps({"file_name": name, "text": name}) for name in names]
    (out / "metadata.jsonl").write_text("\n".join(rows))


def two_columns(out: Path) -> None:
    """Of `conditioning_image` and `image` the second is taken, though it comes later."""
    first, second = ([picture(seed + start) for seed in range(4)] for start in (0, 9))
    write_table(out / "data.parquet", conditioning_image=first, image=second)


def stray_table(out: Path) -> None:
    """A table of something else beside pictures (img2dataset's layout): ids stay paths."""
    fill(out, ["00000/a.png", "00000/b.png"])
    table = pa.table({"url": ["x", "y"], "similarity": [0.1, 0.2]})
    parquet.write_table(table, out / "00000.parquet")


def empty_cell(out: Path) -> None:
    """A row without a picture is named; --skip-bad leaves it out."""
    write_table(out / "data.parquet", image=[picture(0), None, picture(2)])


def float_picture(out: Path) -> None:
    """A TIFF of 32 bits among good pictures is named; --skip-bad leaves it out."""
    fill(out, ["0.png", "1.png"])
    pixels = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    Image.fromarray(pixels).save(out / "deep.png", "TIFF")


def brackets(out: Path) -> None:
    """`[ ]` in paths of folders, tables and indexes are letters, not patterns."""
    fill(out / "set [v2]", ["0.png", "1.png"])
    rows = '{"file_name": "0.png"}\n{"file_name": "1.png"}\n'
    (out / "set [v2]/metadata.jsonl").write_text(rows)


def foreign_json(out: Path) -> None:
    """A metadata.csv without file names, another tool's state.json: plain folders of pictures."""
    fill(out / "kaggle", ["0.png", "1.png"])
    (out / "kaggle/metadata.csv").write_text("id,score\n0,1.0\n")
    fill(out / "tool", ["0.png", "1.png"])
    (out / "tool/state.json").write_text("{}")
    (out / "tool/dataset_info.json").write_text("{}")


def latent_folder(out: Path) -> None:
    """The UNet of a pipeline with a VAE does not take pictures for latents."""
    colour_model(out / "ldm")
    shutil.copytree(out / "ldm/unet", out / "ldm/checkpoint-500/unet")
    parts = json.loads((out / "ldm/model_index.json").read_text())
    parts["vae"] = ["diffusers", "AutoencoderKL"]
    (out / "ldm/model_index.json").write_text(json.dumps(parts))


def unexpected_weights(out: Path) -> None:
    """Weights that hold more than config.json says are refused."""
    attention = {
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
    }
    colour_model(out / "full", **attention)
    colour_model(out / "thin")
    shutil.copy(out / "full/unet" / WEIGHTS, out / "thin/unet")


def ema(out: Path) -> None:
    """Two checkpoints whose config.json has EMAModel's own fields are of one run.

    And the pipeline of the same weights answers an index that was built from them.
    """
    colour_model(out / "pipeline")
    for step in (2, 4):
        folder = out / f"checkpoint-{step}" / "unet_ema"
        shutil.copytree(out / "pipeline/unet", folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"optimization_step": step, "decay": 0.9999, "min_decay": 0.0, "power": 0.75}
        (folder / "config.json").write_text(json.dumps(config))


def shards_and_single(out: Path) -> None:
    """Beside shards with an index another single file does not count."""
    from diffusers import UNet2DModel

    colour_model(out / "m")
    network = UNet2DModel.from_pretrained(out / "m/unet")
    shutil.copytree(out / "m", out / "shards")
    (out / "shards/unet" / WEIGHTS).unlink()
    network.save_pretrained(out / "shards/unet", max_shard_size="40KB")
    colour_model(out / "other", seed=1)
    shutil.copytree(out / "shards", out / "both")
    shutil.copy(out / "other/unet" / WEIGHTS, out / "both/unet")


def photographs(out: Path) -> None:
    """Four pictures of 12 megapixels: an HTML answer stays under 2 MB."""
    random = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((4000, 3000), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.normal(0, 6, (3000, 4000, 1)).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out / f"{number}.jpg", quality=90)
