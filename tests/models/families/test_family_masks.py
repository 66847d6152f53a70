"""Masked losses: scores equal a loop of autograd over the loss as kohya's scripts write it."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from conftest import make_model, make_pictures
from family_oracle import CAPTIONS, check_scores, read
from PIL import Image
from test_family_losses import hidden_states, latents_of
from tiny_pipelines import SIDE
from torch import Tensor
from torch.nn.functional import interpolate

import gradindex
from gradindex.builder.verify import data_damages
from gradindex.errors import CallError, RecipeMismatch
from gradindex.models.loading import load_denoiser
from gradindex.report.diagnose import _choose_queries
from gradindex.report.info import describe
from gradindex.report.training_sample import training_gradients


def make_masks(folder: Path, count: int, side: int = SIDE) -> list[Path]:
    """Colour masks with random numbers in each channel; a corner is 0, another one 255."""
    folder.mkdir()
    random = np.random.default_rng(7)
    files = []
    for number in range(count):
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        pixels[: side // 2, : side // 2, 0] = 0
        pixels[side // 2 :, side // 2 :, 0] = 255
        files.append(folder / f"p{number:03d}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


def read_mask(file: Path) -> Tensor:
    """The first channel, [1, 1, height, width] in 0 … 1."""
    pixels = np.array(Image.open(file))[..., 0]
    return torch.tensor(pixels, dtype=torch.float32)[None, None] / 255


def masked_loss(errors: Tensor, mask: Tensor) -> Tensor:
    """As `apply_masked_loss` of custom_train_functions.py, and then the mean of each sample."""
    return (errors * interpolate(mask, size=errors.shape[2:], mode="area")).mean([1, 2, 3])[0]


def test_scores_of_masked_latents(tmp_path: Path) -> None:
    """Pictures have masks, and the queries ones of ones."""
    folder = tiny_pipelines.stable_diffusion(tmp_path / "pipeline", "v_prediction")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    masks = dict(zip(CAPTIONS, make_masks(tmp_path / "masks", 3), strict=True))

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        with torch.no_grad():
            latents = latents_of(pipeline, x)
            hidden = hidden_states(pipeline, caption)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        errors = (pipeline.unet(noisy, timesteps, hidden).sample - target).square()
        mask = read_mask(masks[caption]) if caption in masks else torch.ones(1, 1, SIDE, SIDE)
        return masked_loss(errors, mask)

    index = check_scores(tmp_path, folder, pipeline.unet, loss, masks=tmp_path / "masks")
    assert " masked by files" in describe(index.store)
    assert index.store.header.data.masks == str(tmp_path / "masks")


def test_scores_of_masked_pixels(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", sample_size=SIDE, in_channels=3, out_channels=3)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    make_masks(tmp_path / "masks", 3)

    def mask_of(x: Tensor) -> Tensor:
        """That of the training picture which x is; ones for a query."""
        for file in (tmp_path / "data").glob("*.png"):
            if torch.equal(read(file), x):
                return read_mask(tmp_path / "masks" / file.name)
        return torch.ones(1, 1, SIDE, SIDE)

    def loss(x: Tensor, word: None, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        noisy = pipeline.scheduler.add_noise(x, noise, timesteps)
        errors = (pipeline.unet(noisy, timesteps).sample - noise).square()
        return masked_loss(errors, mask_of(x))

    options = {"latent": (3, SIDE, SIDE), "prompts": None, "masks": tmp_path / "masks"}
    check_scores(tmp_path, folder, pipeline.unet, loss, **options)


def masked_index(folder: Path, **options: Any) -> gradindex.Index:
    """An index over three pictures of a model of pixels."""
    model = make_model(folder / "model")
    data = make_pictures(folder / "data", 3)
    settings: dict[str, Any] = {"timesteps": 2, "projection": "none", "device": "cpu"}
    return gradindex.build(folder / "idx", model=model, data=data, **settings, **options)


@pytest.mark.parametrize("loss", ["mse", "l1", "mean-square"])
def test_gradients_do_not_depend_on_the_picture_where_the_mask_is_zero(
    tmp_path: Path, loss: str
) -> None:
    """For a model whose output at a place depends on its input there; x is what it predicts."""
    denoiser = load_denoiser(make_model(tmp_path / "model", prediction_type="sample"), device="cpu")
    random = torch.Generator().manual_seed(0)
    x, epsilon = torch.randn(2, 1, 1, 8, 8, generator=random)
    mask = torch.rand(1, 1, 8, 8, generator=random)
    mask[..., :5, :3] = 0
    other = x.clone()
    other[..., :5, :3] += 1
    weight = torch.randn(1, 1, 1, 1, generator=random, requires_grad=True)
    denoiser._predict = lambda noisy, t, conditions: (weight * noisy).tanh()

    def gradient(x: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        value = denoiser.losses(x, torch.tensor([300]), epsilon, conditions, loss)
        return torch.autograd.grad(value.sum(), weight)[0]

    masked = gradient(x, {"loss_mask": mask})
    torch.testing.assert_close(gradient(other, {"loss_mask": mask}), masked, rtol=1e-6, atol=0)
    assert (gradient(other, {}) - gradient(x, {})).abs() > 1e-3 * masked.abs()
    torch.testing.assert_close(gradient(x, {"loss_mask": torch.ones_like(mask)}), gradient(x, {}))


def test_alpha_channels_are_masks(tmp_path: Path) -> None:
    """A picture without one counts wholly, as in kohya's train_util.py with --alpha_mask."""
    masks = make_masks(tmp_path / "masks", 3, side=8)
    by_files = masked_index(tmp_path, masks=tmp_path / "masks")
    transparent = tmp_path / "transparent"
    transparent.mkdir()
    for number, file in enumerate(sorted((tmp_path / "data").iterdir())):
        picture = Image.open(file).convert("RGB")
        if number < 2:
            picture.putalpha(Image.open(masks[number]).getchannel(0))
        picture.save(transparent / file.name)
    options = {"model": tmp_path / "model", "data": transparent, "timesteps": 2}
    by_alpha = gradindex.build(
        tmp_path / "alpha", masks="alpha", projection="none", device="cpu", **options
    )
    plain = gradindex.build(tmp_path / "plain", projection="none", device="cpu", **options)
    rows = by_alpha.store.unnormalized[:]
    np.testing.assert_allclose(rows[:, :2], by_files.store.unnormalized[:, :2], rtol=1e-5)
    np.testing.assert_array_equal(rows[:, 2], plain.store.unnormalized[:, 2])
    assert np.abs(rows[:, :2] - plain.store.unnormalized[:, :2]).max() > 1e-3
    assert " masked by alpha channels" in describe(by_alpha.store)
    assert by_alpha.store.header.data.masks == "alpha"
    assert "masks" not in plain.store.recipe.to_json()


def test_training_pictures_are_masked_wherever_their_gradients_are_taken(tmp_path: Path) -> None:
    """`diagnose` takes them anew; asked as queries they have masks of ones."""
    make_masks(tmp_path / "masks", 3, side=8)
    index = masked_index(tmp_path, masks=tmp_path / "masks")
    store = index.store
    denoiser = index.gradients.checkpoints[0]
    rows = np.array([2, 0])
    ((_, again),) = training_gradients(index, denoiser, store.recipe, rows)
    np.testing.assert_allclose(again, store.unnormalized[0][rows], rtol=1e-5)
    dataset = index.training_pictures.require()
    expected = read_mask(tmp_path / "masks" / "p002.png")[0]
    np.testing.assert_allclose(dataset.read(2, (1, 8, 8)).mask, expected, atol=1e-7)
    assert _choose_queries(index, [], 2, None).pictures.masks is None


def test_another_mask_is_another_picture(tmp_path: Path) -> None:
    masks = make_masks(tmp_path / "masks", 3, side=8)
    options = {"masks": tmp_path / "masks"}
    masked_index(tmp_path, **options)
    masked_index(tmp_path, **options)
    pixels = np.array(Image.open(masks[1]))
    pixels[7, 7] ^= 255
    Image.fromarray(pixels).save(masks[1])
    with pytest.raises(RecipeMismatch, match=r"p001\.png"):
        masked_index(tmp_path, **options)
    with pytest.raises(RecipeMismatch, match=r'masks: "files", now null'):
        masked_index(tmp_path)
    assert any(
        "'p001.png' is another picture now" in fault for fault in data_damages(tmp_path / "idx")
    )
    (tmp_path / "masks").rename(tmp_path / "moved")
    index = gradindex.open(tmp_path / "idx", device="cpu")
    assert len(index.query(tmp_path / "data" / "p000.png")[0].hits) == 3
    message = r"masks: no such folder; put them back, or run the same build with masks = NEW, where"
    with pytest.raises(CallError, match=message):
        list(data_damages(tmp_path / "idx"))
    with pytest.raises(CallError, match=message):
        index.training_pictures.require()
    options["masks"] = tmp_path / "moved"
    pixels[7, 7] ^= 255
    Image.fromarray(pixels).save(tmp_path / "moved" / masks[1].name)  # as it was
    masked_index(tmp_path, **options)
    assert list(data_damages(tmp_path / "idx")) == []


@pytest.mark.parametrize("projection", ["none", "auto"])
def test_a_mask_of_zeros_is_named_once(tmp_path: Path, projection: str) -> None:
    """However often its picture is read: at two checkpoints, and for a two-sided projection."""
    (tmp_path / "masks").mkdir()
    for number in range(3):
        mask = Image.new("L", (8, 8), 0 if number == 1 else 255)
        mask.save(tmp_path / "masks" / f"p00{number}.png")
    model = make_model(tmp_path / "model")
    settings = {"timesteps": 2, "projection": projection, "dim": 16, "device": "cpu"}
    with pytest.warns(UserWarning, match="zero") as caught:
        index = gradindex.build(
            tmp_path / "idx",
            model=model,
            checkpoints=[model, make_model(tmp_path / "later", seed=1)],
            data=make_pictures(tmp_path / "data", 3),
            masks=tmp_path / "masks",
            **settings,
        )
    lines = [str(warning.message) for warning in caught]
    assert [line.partition(": ")[2] for line in lines] == [
        "the mask of 'p001.png' is zero all over, and so is the gradient",
        "4 of 12 gradients are zero, and score 0 whatever is asked; the parameters that count may"
        " be untrained, or dtype too narrow for them",
    ]
    assert not index.store.unnormalized[:, 1].any()
    assert np.abs(index.store.unnormalized[:, [0, 2]]).max() > 0
