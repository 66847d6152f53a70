"""A denoiser of the user's own: its scores are those of plain autograd; what it must have."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradindex
from gradindex.errors import CallError, ModelError
from gradindex.random_numbers import noise
from gradindex.recipe import grid

TIMESTEPS = (10, 60)
OPTIONS: dict[str, Any] = {"timesteps": TIMESTEPS, "projection": "none", "device": "cpu"}


class Denoiser:
    """Two convolutions, trained to tell noise by a loss that diffusers does not have."""

    shape = (1, 8, 8)
    num_train_timesteps = 100

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1)
        self.model = nn.Sequential(*layers)

    def losses(self, x: Tensor, t: Tensor, noise: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        share = ((t + 1) / self.num_train_timesteps).view(-1, 1, 1, 1)
        error = self.model((1 - share) * x + share * noise) - noise
        return torch.log1p(error.square()).flatten(1).mean(1)


class Encoding(Denoiser):
    """Takes every other pixel, and adds the length of the caption."""

    captioned = True
    version = "1"

    def encode(
        self, pictures: Tensor, captions: list[str] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert captions is not None
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return pictures[:, :, ::2, ::2], {"length": lengths / 10}

    def losses(self, x: Tensor, t: Tensor, noise: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        shift = conditions["length"].view(-1, 1, 1, 1)
        return super().losses(x + shift, t, noise, {})


def gradient(denoiser: Any, x: np.ndarray, timestep: int, **conditions: float) -> np.ndarray:
    """Plain autograd on one picture."""
    epsilon = torch.from_numpy(noise(0, None, timestep, 0, x.shape))[None]
    given = {name: torch.tensor([value]) for name, value in conditions.items()}
    x, t = torch.from_numpy(x)[None], torch.tensor([timestep])
    loss = denoiser.losses(x, t, epsilon, given).sum()
    parts = torch.autograd.grad(loss, list(denoiser.model.parameters()))
    return np.concatenate([part.flatten().numpy() for part in parts]).astype(np.float64)


def assert_true_scores(scores: dict[str, np.ndarray], rows: np.ndarray, query: np.ndarray) -> None:
    """Both methods' scores are those of gradients: rows [N, T, D], query [T, D]."""
    units = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    unit_query = query / np.linalg.norm(query, axis=-1, keepdims=True)
    tracin = np.einsum("ntd,td->n", rows, query) / len(TIMESTEPS)
    retrac = np.einsum("ntd,td->n", units, unit_query) / len(TIMESTEPS)
    np.testing.assert_allclose(
        scores["tracin"][0], tracin, rtol=1e-4, atol=1e-4 * abs(tracin).max()
    )
    # Unit rows are kept in float16.
    np.testing.assert_allclose(scores["retrac"][0], retrac, rtol=1e-3, atol=1e-3)


def test_scores_are_those_of_autograd(tmp_path: Path, pictures: Path, queries: list[Path]) -> None:
    index = gradindex.build(tmp_path / "idx", denoiser=Denoiser(), data=pictures, **OPTIONS)
    scores = index.scores_by_method(queries[0], "tracin", "retrac", whiten=False)
    truth = Denoiser()
    dataset = index.training_pictures.require()
    arrays = [dataset.picture(row, truth.shape) for row in range(len(dataset))]
    rows = np.array([[gradient(truth, array, t) for t in TIMESTEPS] for array in arrays])
    asked = index.read_pictures(queries[0])[0]
    query = np.array([gradient(truth, asked, t) for t in TIMESTEPS])
    assert_true_scores(scores, rows, query)


def test_its_usual_timesteps_are_evenly_spaced(tmp_path: Path, pictures: Path) -> None:
    """For weighted ones its noise would have to be known."""
    index = gradindex.build(tmp_path / "idx", denoiser=Denoiser(), data=pictures, dim=8)
    assert index.store.recipe.timesteps == grid(10, Denoiser.num_train_timesteps)


def test_examples_and_captions_are_its_own(
    tmp_path: Path, pictures: Path, queries: list[Path]
) -> None:
    index = gradindex.build(
        tmp_path / "idx", denoiser=Encoding(), data=pictures, caption="four", **OPTIONS
    )
    assert index.store.recipe.image == (1, 4, 4)
    scores = index.scores_by_method(queries[0], "tracin", "retrac", whiten=False, prompt="of eight")
    truth = Encoding()
    dataset = index.training_pictures.require()
    rows = np.array(
        [
            [
                gradient(truth, dataset.picture(row, truth.shape)[:, ::2, ::2], t, length=0.4)
                for t in TIMESTEPS
            ]
            for row in range(len(dataset))
        ]
    )
    asked = index.read_pictures(queries[0])[0][:, ::2, ::2]
    query = np.array([gradient(truth, asked, t, length=0.8) for t in TIMESTEPS])
    assert_true_scores(scores, rows, query)


def test_an_index_is_opened_with_the_denoiser_that_made_it(
    tmp_path: Path, pictures: Path, queries: list[Path]
) -> None:
    gradindex.build(tmp_path / "idx", denoiser=Denoiser(), data=pictures, **OPTIONS)
    opened = gradindex.open(tmp_path / "idx", denoiser=Denoiser(), device="cpu")
    assert len(opened.query(queries[0], k=3)[0].hits) == 3
    with pytest.raises(CallError, match=r"built with a denoiser of class Denoiser; give it"):
        gradindex.open(tmp_path / "idx", device="cpu").query(queries[0])
    with pytest.raises(CallError, match="checkpoints"):  # other weights
        gradindex.open(tmp_path / "idx", denoiser=Denoiser(1), device="cpu").query(queries[0])


def test_what_a_denoiser_must_have(tmp_path: Path, pictures: Path, model: Path) -> None:
    def refusal(denoiser: Any, **options: Any) -> str:
        with pytest.raises((CallError, ModelError)) as caught:
            gradindex.build(tmp_path / "idx", denoiser=denoiser, data=pictures, **OPTIONS | options)
        assert not (tmp_path / "idx").exists()
        return str(caught.value)

    assert "a Linear has no fitting 'model'" in refusal(nn.Linear(1, 1))
    assert "give one of them" in refusal(Denoiser(), model=model)
    assert "has one loss, its own" in refusal(Denoiser(), loss="l1")
    assert "latents = 'sample': a denoiser of your own" in refusal(Denoiser(), latents="sample")
    weighted = refusal(Denoiser(), timesteps="weighted:3")
    assert weighted.startswith("timesteps = 'weighted:3': of an own denoiser's noise nothing is")
    odd = Denoiser()
    odd.shape = (8, 8)
    assert "denoiser.shape = (8, 8): give channels, height and width" in refusal(odd)
    frozen = Denoiser()
    frozen.model.requires_grad_(False)
    assert "no parameter of it requires grad" in refusal(frozen)
    reduced = Denoiser()
    reduced.losses = lambda x, t, noise, conditions: reduced.model(x).mean()
    assert "denoiser.losses gives (): give the loss of each sample, (" in refusal(reduced)
    broken = Denoiser()
    broken.losses = lambda x, t, noise, conditions: 1 / 0
    assert "denoiser.losses raises ZeroDivisionError" in refusal(broken)


def test_the_example_of_the_docs(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "Mine" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(pictures)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["index"].query(sorted(pictures.glob("*.png"))[0], k=3)[0].hits) == 3
