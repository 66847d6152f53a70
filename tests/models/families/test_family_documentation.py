"""docs/models.md: the family that it shows works, and its table has them all."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from family_oracle import check_scores
from torch import Tensor
from torch.nn.functional import mse_loss

from gradindex.models.families import FAMILIES

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
SECTION = PAGE.partition("## A new family in about 30 lines")[2]


def test_the_tables_have_every_family() -> None:
    for name in FAMILIES:
        assert len(re.findall(rf"^\|.*`{name}`.*\|$", PAGE, re.MULTILINE)) >= 2, name


def test_the_family_that_is_shown_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1]
    assert len(code.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(code, names)
    family = names["AuraFlow"]()
    monkeypatch.setitem(FAMILIES, family.model_class, family)
    folder = tmp_path / "pipeline"
    diffusers.AuraFlowPipeline(
        tokenizer=tiny_pipelines.t5_tokenizer(),
        text_encoder=tiny_pipelines.t5(4),
        vae=tiny_pipelines.vae(),
        transformer=tiny_pipelines.make(
            "AuraFlowTransformer2DModel",
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=tiny_pipelines.T5_WIDTH,
            caption_projection_dim=8,
            pos_embed_max_size=16,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    ).save_pretrained(folder)
    pipeline = diffusers.AuraFlowPipeline.from_pretrained(folder)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        """What the pipeline's own steps make of a latent, in reverse."""
        sigma = torch.tensor([t]) / 1000
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode()
            latents = latents * pipeline.vae.config.scaling_factor
            words = pipeline.tokenizer(
                [caption], padding="max_length", max_length=256, return_tensors="pt"
            )
            hidden = pipeline.text_encoder(**words)[0] * words["attention_mask"][..., None]
        share = sigma.view(1, 1, 1, 1)
        prediction = pipeline.transformer(
            (1 - share) * latents + share * noise, encoder_hidden_states=hidden, timestep=sigma
        ).sample
        return mse_loss(prediction, noise - latents)

    check_scores(tmp_path, folder, pipeline.transformer, loss)
