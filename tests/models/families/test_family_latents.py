"""Builds over the latents that kohya's sd-scripts left beside the pictures (`--latents npz`)."""

import shutil
from collections.abc import Mapping
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
from test_family_buckets import BUCKETS, CAPTIONS, SHAPES, SMALL, write
from test_family_unets import clip_tokens, scheduler_of
from torch import Tensor
from torch.nn.functional import mse_loss

import gradindex
from gradindex.builder.verify import data_damages
from gradindex.errors import CallError, DataError, RecipeMismatch
from gradindex.models.examples import Pictures
from gradindex.models.loading import load_denoiser
from gradindex.report.diagnose import report
from gradindex.report.info import describe

PROMPT = "a portrait"


def cache(file: Path, shape: Any, seed: int, name: str = "{stem}.npz", key: str = "") -> Path:
    """Write what kohya's scripts write of a picture: not what its VAE makes, to tell them apart."""
    width, height = shape[3]
    random = np.random.default_rng(seed)
    latents = random.standard_normal((4, height // 2, width // 2)).astype(np.float32)
    arrays = {
        "latents": latents,
        "original_size": np.array([2 * width, 2 * height]),
        "crop_ltrb": np.array([1.0, 2.0, 1.0 + width, 2.0 + height]),
        "latents_flipped": -latents,
        "alpha_mask": np.ones((height, width), np.float32),
    }
    original = f"{shape[0][0]:04d}x{shape[0][1]:04d}"
    path = file.with_name(name.format(stem=file.stem, size=original))
    np.savez(path, **{f"{name}{key.format(*latents.shape[1:])}": a for name, a in arrays.items()})
    return path


def sizes_in(shape: Any) -> list[int]:
    """SDXL's sizes, as the files above and kohya's scripts have them: heights and tops first."""
    width, height = shape[3]
    return [2 * height, 2 * width, 2, 1, height, width]


def loss_of_latent(pipeline: Any, latent: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
    """The loss as kohya's train_network.py and sdxl_train_network.py have it, of one latent.

    `latent` is scaled. SDXL's sizes are those of `sizes_in`.
    """
    timesteps = torch.tensor([t]).long()
    noisy = scheduler_of(pipeline).add_noise(latent, noise, timesteps)
    with torch.no_grad():
        if hasattr(pipeline, "text_encoder_2"):
            hidden, _, pooled, _ = pipeline.encode_prompt(
                caption, do_classifier_free_guidance=False
            )
        else:
            hidden, pooled = (
                pipeline.text_encoder(clip_tokens(pipeline.tokenizer, caption))[0],
                None,
            )
    height, width = latent.shape[2:]
    sizes = torch.tensor([[4 * height, 4 * width, 2, 1, 2 * height, 2 * width]]).float()
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
    return mse_loss(pipeline.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample, noise)


def rows(pipeline: Any, latents: list[np.ndarray], captions: list[str]) -> np.ndarray:
    """The gradient of each latent at the two timesteps, [latents, 2, D]."""
    table = []
    for latent, caption in zip(latents, captions, strict=True):
        scaled = torch.from_numpy(latent)[None] * pipeline.vae.config.scaling_factor
        for t in SMALL["timesteps"]:
            epsilon = torch.tensor(gradindex.noise(0, None, t, 0, latent.shape))[None]
            loss = loss_of_latent(pipeline, scaled, caption, t, epsilon)
            table.append(gradient(pipeline.unet, loss))
    return np.stack(table).reshape(len(latents), 2, -1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of three shapes, with kohya's older files of latents and captions beside them."""
    for number, file in enumerate(write(tmp_path / "data", SHAPES, CAPTIONS, 1)):
        cache(file, SHAPES[number], number)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Saved pipelines, {name: folder}."""
    place = tmp_path_factory.mktemp("pipelines")
    names = ("sd", "sdxl", "flux", "inpainting")
    return {name: tiny_pipelines.PIPELINES[name](place / name) for name in names}


def build(place: Path, model: Path, data: Path, **options: Any) -> gradindex.Index:
    return gradindex.build(
        place, model=model, data=data, **{**SMALL, "latents": "npz", "buckets": BUCKETS, **options}
    )


@pytest.mark.parametrize(
    ("model", "name", "key"),
    [
        ("sd", "{stem}.npz", ""),
        ("sd", "{stem}_{size}_sd.npz", ""),
        ("sdxl", "{stem}_{size}_sdxl.npz", ""),
        ("sdxl", "{stem}_{size}_sdxl.npz", "_{0}x{1}"),
    ],
)
def test_scores_equal_a_loop_of_autograd_over_the_files(
    tmp_path: Path, saved: Mapping[str, Path], model: str, name: str, key: str
) -> None:
    files = write(tmp_path / "data", SHAPES, CAPTIONS, 1)
    latents = []
    for number, file in enumerate(files):
        with np.load(cache(file, SHAPES[number], number, name, key)) as arrays:
            latents.append(arrays[f"latents{key}".format(*arrays[arrays.files[0]].shape[1:])])
    (portrait,) = write(tmp_path / "queries", SHAPES[2:3], [PROMPT], 2)
    # A file beside the query is not taken: it is asked by the mean of its latent.
    cache(portrait, SHAPES[2], 9)
    index = build(tmp_path / "index", saved[model], tmp_path / "data")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(saved[model])
    pipeline.unet.requires_grad_(True)
    training = rows(pipeline, latents, CAPTIONS)
    np.testing.assert_allclose(
        index.store.unnormalized[:][0], training, rtol=1e-4, atol=1e-5 * np.abs(training).max()
    )
    if model == "sd":
        x = torch.from_numpy(index.read_pictures(portrait))
        with torch.no_grad():
            mean = pipeline.vae.encode(x).latent_dist.mode()[0].numpy()
        asked = rows(pipeline, [mean], [PROMPT])
        for method in ("tracin", "retrac"):
            truth = oracles.score([training], [asked], [1], method, "matched")
            scores = index.scores(portrait, method, whiten=False)
            np.testing.assert_allclose(scores, truth, rtol=1e-4)
        with pytest.warns(UserWarning, match="are among the training pictures"):
            index.audit(tmp_path / "data", 1)
    assert index.store.recipe.latents == "npz"
    assert "the largest bucket, as they lay beside the pictures" in describe(index.store)
    assert list(data_damages(tmp_path / "index")) == []


def test_sizes_of_sdxl_are_those_of_the_files(saved: Mapping[str, Path]) -> None:
    assert sizes_in(SHAPES[1]) == [24, 40, 2, 1, 12, 20]
    encoder = load_denoiser(saved["sdxl"], resolution=(16, 16), latents="npz").encoder
    latent = np.full((4, 8, 8), 2, np.float32)
    black = np.zeros((1, 3, 16, 16), np.float32)
    given = Pictures(black, ["a"], captions=["a"], latents=[latent])
    scale = diffusers.AutoencoderKL.from_pretrained(saved["sdxl"] / "vae").config.scaling_factor
    np.testing.assert_allclose(encoder.encode(given).x[0], 2 * scale, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_depend_neither_on_batch_size_nor_on_restarts(
    tmp_path: Path, data: Path, saved: Mapping[str, Path], batch_size: int
) -> None:
    whole = build(tmp_path / "a", saved["sd"], data)
    few = tmp_path / "few"
    few.mkdir()
    for numbers in ((3, 1), (0, 2, 4)):
        for number in numbers:
            for file in data.glob(f"p{number}*"):
                shutil.copy(file, few)
        index = build(tmp_path / "b", saved["sd"], few, batch_size=batch_size)
    np.testing.assert_allclose(
        index.store.unnormalized[:],
        whole.store.unnormalized[:][:, [1, 3, 0, 2, 4]],
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_file_that_was_exchanged_is_found(
    tmp_path: Path, data: Path, saved: Mapping[str, Path]
) -> None:
    """By its bytes, where it is as long as before."""
    build(tmp_path / "a", saved["sd"], data)
    build(tmp_path / "a", saved["sd"], data)
    cache(data / "p1.png", SHAPES[1], 8)
    with pytest.raises(RecipeMismatch, match=r"'p1.png' is another picture now"):
        build(tmp_path / "a", saved["sd"], data)
    assert len(list(data_damages(tmp_path / "a"))) == 1
    index = build(tmp_path / "a", saved["sd"], data, overwrite=True)
    assert index.thumbnail(1) is not None
    (data / "p1.npz").unlink()
    assert gradindex.open(tmp_path / "a").thumbnail(1) is None


def test_reports_read_the_files_too(tmp_path: Path, data: Path, saved: Mapping[str, Path]) -> None:
    index = build(tmp_path / "a", saved["sdxl"], data)
    diagnosis = report(index, queries=2, k=2, compared=2)
    assert diagnosis["queries"] == ["p0.png", "p4.png"]


def test_pictures_of_other_sizes_say_which_buckets_fit(
    tmp_path: Path, data: Path, saved: Mapping[str, Path]
) -> None:
    with pytest.raises(CallError) as caught:
        build(tmp_path / "a", saved["sd"], data, buckets=None, resolution=16)
    assert str(caught.value) == (
        f"{data / 'p1.npz'}: latents of a picture of another size than this build's; in place of"
        " resolution give buckets = 20x12,16x16,12x20"
    )
    assert not (tmp_path / "a").exists()


def test_pictures_without_a_file_are_listed(
    tmp_path: Path, data: Path, saved: Mapping[str, Path]
) -> None:
    for number in (0, 3):
        (data / f"p{number}.npz").unlink()
    with pytest.raises(DataError) as caught:
        build(tmp_path / "a", saved["sd"], data)
    assert str(caught.value) == (
        f"{data}: 2 of 5 pictures have no latents beside them: 'p0.png', 'p3.png'; kohya's scripts"
        " leave them there with --cache_latents_to_disk, x.npz or x_0640x0480_sd.npz"
    )


def test_files_of_another_kind_of_model(
    tmp_path: Path, data: Path, saved: Mapping[str, Path]
) -> None:
    (data / "p2.npz").rename(data / "p2_0012x0020_sdxl.npz")
    with pytest.raises(DataError, match=r"p2_0012x0020_sdxl.npz: latents of a model that kohya's"):
        build(tmp_path / "a", saved["sd"], data)
    cache(data / "p2.png", SHAPES[2], 2, "{stem}_{size}_sd.npz")
    with pytest.raises(DataError, match=r"p2.png: has several files of latents, 'p2_0012x0020_sd."):
        build(tmp_path / "a", saved["sd"], data)


def test_models_whose_latents_are_not_taken(
    tmp_path: Path, data: Path, saved: Mapping[str, Path]
) -> None:
    with pytest.raises(CallError, match="taken for Stable Diffusion 1, 2 and XL alone; give lat"):
        build(tmp_path / "a", saved["flux"], data)
    pixels = make_model(tmp_path / "ddpm", sample_size=16, in_channels=3, out_channels=3)
    with pytest.raises(CallError, match="latents = 'npz': the model takes pictures, not latents"):
        build(tmp_path / "a", pixels, data)


def test_a_damaged_file_stops_the_build_or_is_skipped(
    tmp_path: Path, data: Path, saved: Mapping[str, Path]
) -> None:
    (data / "p2.npz").write_bytes(b"PK\3\4 no npz")
    with pytest.raises(DataError, match=r"p2.npz: latents that cannot be read \(.*skip_bad leaves"):
        build(tmp_path / "a", saved["sd"], data)
    index = build(tmp_path / "a", saved["sd"], data, skip_bad=True, overwrite=True)
    assert index.store.excluded == [2]


def test_the_command_line(tmp_path: Path, data: Path, saved: Mapping[str, Path]) -> None:
    given = ["--model", saved["sd"], "--data", data, "--device", "cpu", "--dim", 16]
    given += ["--timesteps", 1, "--latents", "npz"]
    wrong = run("build", tmp_path / "index", *given)
    assert wrong.returncode == 2
    (line,) = wrong.stderr.splitlines()
    assert line.endswith("in place of resolution give --buckets 20x12,16x16,12x20")
    done = run("build", tmp_path / "index", *given, "--buckets", "20x12,16x16,12x20")
    assert done.returncode == 0, done.stderr
    assert "buckets: 12x20 (2), 16x16 (2), 20x12 (1); 3 sizes" in done.stderr
    # The pictures are larger than their buckets, and none of them is resized.
    assert "\nlatents: from .npz files beside the pictures\n" in done.stderr
    assert "resized" not in done.stderr
    plain = run("build", tmp_path / "plain", *given[:-2], "--buckets", "10x6,8x8,6x10")
    assert "pictures: 5 resized" in plain.stderr
