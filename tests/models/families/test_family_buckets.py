"""Builds with aspect-ratio buckets: pictures of several shapes, each score as autograd has it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import oracles
import pytest
import tiny_pipelines
import torch
from conftest import make_model
from family_oracle import gradient
from helpers import run
from PIL import Image
from test_family_unets import inpainting_loss, sd_loss, sdxl_loss
from tiny_pipelines import SIDE
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import gradindex
from gradindex.errors import CallError, RecipeMismatch
from gradindex.gradients.sampling import mean_losses
from gradindex.models.examples import Examples
from gradindex.models.loading import load_denoiser
from gradindex.recipe import Recipe
from gradindex.report.info import describe

BUCKETS = [(16, 16), (20, 12), (12, 20)]  # width and height
# Size of a picture; what it is resized to and where the cut begins, left and top; its bucket.
# Widths come first, as Pillow has them.
SHAPES = [
    ((16, 16), (16, 16), (0, 0), (16, 16)),
    ((48, 24), (24, 12), (2, 0), (20, 12)),  # wide: resized, cut left and right
    ((12, 20), (12, 20), (0, 0), (12, 20)),
    ((24, 40), (12, 20), (0, 0), (12, 20)),
    ((32, 32), (16, 16), (0, 0), (16, 16)),
]
CAPTIONS = ["a square", "something wide", "high", "a high digit", "square too"]
QUERIES = [SHAPES[3], SHAPES[1]]  # a portrait is asked first
PROMPTS = ["a portrait", "a landscape"]
SMALL: dict[str, Any] = {"timesteps": [100, 700], "projection": "none", "device": "cpu"}


def write(folder: Path, shapes: Sequence[Any], captions: Sequence[str], seed: int) -> list[Path]:
    """Smooth pictures of these shapes, p0.png, p1.png, …, with captions beside them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    files = []
    for number, (shape, caption) in enumerate(zip(shapes, captions, strict=True)):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize(shape[0], Image.Resampling.BICUBIC)
        files.append(folder / f"p{number}.png")
        picture.save(files[-1])
        files[-1].with_suffix(".txt").write_text(caption)
    return files


def read(file: Path, shape: Any) -> Tensor:
    """A picture in its bucket, [1, 3, height, width] float32 in [−1, 1]."""
    _, resized, (left, top), (width, height) = shape
    picture = Image.open(file).resize(resized, Image.Resampling.BILINEAR)
    pixels = np.array(picture.crop((left, top, left + width, top + height)))
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None] / 127.5 - 1


def sizes(shape: Any) -> list[int]:
    """SDXL's: height and width of the picture, top and left of the cut, height and width of it."""
    (width, height), _, (left, top), (bucket_width, bucket_height) = shape
    return [height, width, top, left, bucket_height, bucket_width]


def rows(
    model: nn.Module,
    loss: Any,
    files: Sequence[Path],
    shapes: Sequence[Any],
    words: Sequence[Any],
    channels: int,
    factor: int,
) -> np.ndarray:
    """The gradient of each picture at the two timesteps, [pictures, 2, D]."""
    table = []
    for file, shape, word in zip(files, shapes, words, strict=True):
        width, height = shape[3]
        for t in SMALL["timesteps"]:
            latent = (channels, height // factor, width // factor)
            epsilon = torch.tensor(gradindex.noise(0, None, t, 0, latent))[None]
            table.append(gradient(model, loss(read(file, shape), word, t, epsilon)))
    return np.stack(table).reshape(len(files), 2, -1)


def check_buckets(
    folder: Path,
    pipeline: Path,
    model: nn.Module,
    loss: Any,
    *,
    channels: int = 4,
    factor: int = 2,
    captioned: bool = True,
) -> gradindex.Index:
    """Build over pictures of three shapes, ask two of them, and compare all scores with autograd's.

    Args:
        loss: of a picture in [−1, 1], its caption, a timestep and noise of its latent's shape.
        channels: of a latent. factor: pixels of a side for each of its numbers.
        captioned: whether the model is given captions.
    """
    files = write(folder / "data", SHAPES, CAPTIONS, 1)
    queries = write(folder / "queries", QUERIES, PROMPTS, 2)
    asked = {"prompt": PROMPTS} if captioned else {}
    index = gradindex.build(
        folder / "index", model=pipeline, data=folder / "data", buckets=BUCKETS, **SMALL
    )
    model.requires_grad_(True)
    training = rows(model, loss, files, SHAPES, CAPTIONS, channels, factor)
    query_rows = rows(model, loss, queries, QUERIES, PROMPTS, channels, factor)
    assert np.abs(training).max() > 0
    for method in ("tracin", "retrac"):
        truth = oracles.score([training], [query_rows], [1], method, "matched")
        scores = index.scores(queries, method, whiten=False, **asked)
        np.testing.assert_allclose(scores, truth, rtol=1e-4)
    reopened = gradindex.open(folder / "index")
    np.testing.assert_array_equal(
        reopened.scores(queries, whiten=False, **asked),
        index.scores(queries, whiten=False, **asked),
    )
    return index


@pytest.mark.parametrize("name", ["sd", "sdxl", "inpainting"])
def test_scores_equal_a_loop_of_autograd(tmp_path: Path, name: str) -> None:
    folder = tiny_pipelines.PIPELINES[name](tmp_path / "pipeline")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    sizes_of = {
        caption: sizes(shape)
        for caption, shape in zip(CAPTIONS + PROMPTS, SHAPES + QUERIES, strict=True)
    }
    loss = {
        "sd": sd_loss,
        "sdxl": lambda pipeline: sdxl_loss(pipeline, sizes_of),
        "inpainting": inpainting_loss,
    }[name](pipeline)
    index = check_buckets(tmp_path, folder, pipeline.unet, loss)
    recipe = index.store.recipe
    assert recipe.buckets == ((20, 12), (16, 16), (12, 20))
    assert (recipe.picture, recipe.image) == ((3, 16, 16), (4, 8, 8))
    assert Recipe.from_json(recipe.to_json()) == recipe
    text = describe(index.store)
    assert "\nbuckets     12x20,16x16,20x12\n" in text
    assert "4 × 8 × 8 of pictures of 16x16, the largest bucket, the VAE's mean" in text


def test_scores_of_flux_equal_a_loop_of_autograd(tmp_path: Path) -> None:
    """Places of packed latents that are not square."""
    folder = tiny_pipelines.flux(tmp_path / "pipeline", guidance=False)
    pipeline = diffusers.FluxPipeline.from_pretrained(folder)
    kind = diffusers.FluxPipeline

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        sigma = torch.tensor([t]) / 1000
        with torch.no_grad():
            latents = (pipeline.vae.encode(x).latent_dist.mode() - 0.1) * 0.4
            hidden, pooled, text_places = pipeline.encode_prompt(caption, None)
        _, channels, height, width = latents.shape
        noisy = (1 - sigma) * latents + sigma * noise
        prediction = pipeline.transformer(
            hidden_states=kind._pack_latents(noisy, 1, channels, height, width),
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=text_places,
            img_ids=kind._prepare_latent_image_ids(
                1, height // 2, width // 2, "cpu", torch.float32
            ),
        ).sample
        return mse_loss(kind._unpack_latents(prediction, 2 * height, 2 * width, 2), noise - latents)

    check_buckets(tmp_path, folder, pipeline.transformer, loss)


def test_scores_of_pixels_equal_a_loop_of_autograd(tmp_path: Path) -> None:
    """A UNet2DModel takes any size that it can halve."""
    folder = make_model(tmp_path / "pipeline", sample_size=16, in_channels=3, out_channels=3)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)

    def loss(x: Tensor, caption: None, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        noisy = pipeline.scheduler.add_noise(x, noise, timesteps)
        return mse_loss(pipeline.unet.eval()(noisy, timesteps).sample, noise)

    index = check_buckets(
        tmp_path, folder, pipeline.unet, loss, channels=3, factor=1, captioned=False
    )
    assert index.store.recipe.image == (3, 16, 16)
    assert index.store.recipe.picture is None


@pytest.mark.parametrize("noise", ["shared", "own"])
def test_rows_depend_neither_on_batch_size_nor_on_order(tmp_path: Path, noise: str) -> None:
    folder = tiny_pipelines.sdxl(tmp_path / "pipeline")
    files = write(tmp_path / "data", SHAPES, CAPTIONS, 1)
    options = {**SMALL, "model": folder, "buckets": BUCKETS, "noise": noise}
    whole = gradindex.build(tmp_path / "a", data=tmp_path / "data", batch_size=64, **options)
    truth = whole.store.unnormalized[:]
    for batch_size in (1, 3):
        place = tmp_path / f"by-{batch_size}"
        index = gradindex.build(place, data=tmp_path / "data", batch_size=batch_size, **options)
        rows = index.store.unnormalized[:]
        np.testing.assert_allclose(rows, truth, rtol=1e-4, atol=1e-6)
    # Begun with some of the pictures, the others come after them: another order.
    few = tmp_path / "few"
    few.mkdir()
    for numbers in ((1, 3, 4), (0, 2)):
        for number in numbers:
            for file in (files[number], files[number].with_suffix(".txt")):
                (few / file.name).write_bytes(file.read_bytes())
        index = gradindex.build(tmp_path / "c", data=few, **options)
    rows = index.store.unnormalized[:]
    assert index.store.sample_ids[0] == "p1.png"
    np.testing.assert_allclose(rows, truth[:, [1, 3, 4, 0, 2]], rtol=1e-4, atol=1e-6)


def test_losses_of_pictures_of_several_shapes_are_those_of_each_alone(tmp_path: Path) -> None:
    folder = make_model(tmp_path, sample_size=16, in_channels=3, out_channels=3)
    denoiser = load_denoiser(folder)
    random = np.random.default_rng(0)
    arrays = [random.uniform(-1, 1, (3, *size)).astype(np.float32) for size in [(16, 16), (20, 12)]]
    arrays.append(arrays[0] / 2)
    together = mean_losses(denoiser, Examples(arrays), [10, 500], 2, 0, "mse")
    alone = [mean_losses(denoiser, Examples([a]), [10, 500], 2, 0, "mse")[0] for a in arrays]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_step_makes_the_sizes_of_the_resolution(tmp_path: Path) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path / "pipeline")
    write(tmp_path / "data", SHAPES, CAPTIONS, 1)
    options = {**SMALL, "model": folder, "data": tmp_path / "data"}
    index = gradindex.build(tmp_path / "a", buckets=4, resolution=SIDE, **options)
    high = ((24, 8), (28, 8), (32, 8), (20, 12))
    wide = ((12, 20), (8, 24), (8, 28), (8, 32))
    assert index.store.recipe.buckets == (*high, (16, 16), *wide)
    # The model's own size where no resolution is given; the same build goes on.
    again = gradindex.build(tmp_path / "a", buckets=4, **options)
    assert again.store.recipe == index.store.recipe
    with pytest.raises(RecipeMismatch, match="buckets: "):
        gradindex.build(tmp_path / "a", **options)


def test_a_recipe_without_buckets_is_what_it_was(tmp_path: Path) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path / "pipeline")
    write(tmp_path / "data", SHAPES, CAPTIONS, 1)
    index = gradindex.build(tmp_path / "a", model=folder, data=tmp_path / "data", **SMALL)
    recipe = index.store.recipe
    assert "buckets" not in recipe.to_json()
    assert replace(recipe, buckets=None).digest == recipe.digest
    one = gradindex.build(
        tmp_path / "b", model=folder, data=tmp_path / "data", buckets=[(16, 16)], **SMALL
    )
    np.testing.assert_array_equal(one.store.unnormalized[:], index.store.unnormalized[:])
    assert one.store.recipe.digest != recipe.digest


def test_tensors_of_any_bucket_are_asked(tmp_path: Path) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path / "pipeline")
    files = write(tmp_path / "data", SHAPES, CAPTIONS, 1)
    index = gradindex.build(
        tmp_path / "a", model=folder, data=tmp_path / "data", buckets=BUCKETS, **SMALL
    )
    portrait = index.read_pictures(files[3])
    assert portrait.shape == (1, 3, 20, 12)
    np.testing.assert_array_equal(
        index.scores(portrait[0], prompt="a"), index.scores(files[3], prompt="a")
    )
    with pytest.raises(CallError, match="belong to buckets of different sizes; give one at once"):
        index.read_pictures(files)
    with pytest.raises(
        CallError, match=r"\(3, 8, 8\): give \(3, 16, 16\) or the size of another bucket, with"
    ):
        index.scores(np.zeros((3, 8, 8)), prompt="a")


@pytest.mark.parametrize(
    ("name", "buckets", "message"),
    [
        ("sd", [(16, 16), (15, 16)], "buckets = 15x16,16x16: give multiples of 2 (the VAE makes"),
        ("sd", 3, "buckets = 3: give multiples of 2 (the VAE makes one number of 2 pixels a side)"),
        ("flux", [(16, 18)], "buckets = 16x18: give multiples of 4 (the VAE makes one number of"),
    ],
)
def test_sizes_that_the_vae_or_model_cannot_divide(
    tmp_path: Path, name: str, buckets: Any, message: str
) -> None:
    folder = tiny_pipelines.PIPELINES[name](tmp_path)
    given = buckets if isinstance(buckets, int) else [(h, w) for w, h in buckets]
    with pytest.raises(CallError) as caught:
        load_denoiser(folder, resolution=None if name == "flux" else (SIDE, SIDE), buckets=given)
    assert str(caught.value).startswith(message)


def test_sizes_that_a_model_does_not_take(tmp_path: Path) -> None:
    """DiT takes squares, a UNet2DModel what it can halve."""
    folder = tiny_pipelines.dit(tmp_path / "dit")
    for label in range(2):
        write(tmp_path / f"data/{label}", SHAPES, CAPTIONS, label)
    options = {**SMALL, "data": tmp_path / "data", "buckets": BUCKETS}
    with pytest.raises(CallError) as caught:
        gradindex.build(tmp_path / "i", model=folder, **options)
    assert str(caught.value) == (
        "buckets: the model takes no pictures of 12x20 (DiT takes square pictures only, and these"
        " have latents of 6x10: give one side as resolution)"
    )
    folder = make_model(tmp_path / "ddpm", sample_size=16, in_channels=3, out_channels=3)
    with pytest.raises(CallError, match="buckets: the model takes no pictures of 13x16 "):
        gradindex.build(
            tmp_path / "i", model=folder, **{**options, "buckets": [(16, 16), (13, 16)]}
        )
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    "buckets", [0, -8, True, "64", [], [(8,)], [(8, 0)], [8, 16], 1.5, [(8, "x")]]
)
def test_buckets_that_are_none(tmp_path: Path, buckets: Any) -> None:
    with pytest.raises(CallError, match=r"^buckets = .*: give the step of their sides, such as 64"):
        gradindex.build(tmp_path / "i", model="m", data="d", buckets=buckets, device="cpu")


def test_buckets_beside_other_options(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="these are the sizes of the pictures; leave out resol"):
        gradindex.build("i", model="m", data="d", buckets=BUCKETS, resolution=16, device="cpu")
    with pytest.raises(CallError, match="a denoiser of your own has one shape; leave out buckets"):
        gradindex.build("i", denoiser=object(), data="d", buckets=8, device="cpu")


def test_the_command_line(tmp_path: Path) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path / "pipeline")
    write(tmp_path / "data", SHAPES, CAPTIONS, 1)
    (portrait,) = write(tmp_path / "queries", SHAPES[3:4], ["a portrait"], 2)
    given = ["--model", folder, "--data", tmp_path / "data", "--device", "cpu", "--dim", 16]
    given += ["--timesteps", 2, "--buckets", "16x16,20x12,12x20"]
    dry = run("build", tmp_path / "index", *given, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    held = "12x20 (2), 16x16 (2), 20x12 (1); 3 sizes"
    assert f"buckets     {held}\n" in dry.stdout
    done = run("build", tmp_path / "index", *given)
    assert done.returncode == 0, done.stderr
    assert f"buckets: {held}\n" in done.stderr
    assert "pictures: 3 resized\n" in done.stderr
    asked = run("query", tmp_path / "index", portrait, "-k", 1)
    assert asked.returncode == 0, asked.stderr
    wrong = run("build", tmp_path / "other", *given[:-1], "16x")
    assert wrong.returncode == 2
    assert "'16x': give the step of their sides, such as 64, or WxH,WxH,…" in wrong.stderr
