"""PixArtTransformer2DModel: PixArt-α and PixArt-Σ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradindex.models.configuration import require_count
from gradindex.models.families.family import (
    TEXT,
    TEXT_MASK,
    Encoded,
    Family,
    require_output,
    require_places,
    without_variance,
)

RESOLUTION = "resolution"
ASPECT_RATIO = "aspect_ratio"
SIZED_SAMPLE = 128  # the sample_size of PixArt-α's models that are told the picture's size
ALPHA_TOKENS, SIGMA_TOKENS = 120, 300  # of a caption


class PixArt(Family):
    """diffusers' PixArtTransformer2DModel (Chen et al. 2024), with the captions of T5."""

    model_class = "PixArtTransformer2DModel"
    module = "diffusers.models.transformers.pixart_transformer_2d"

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what makes no PixArt; see `Family.check`."""
        super().check(arguments, file)
        for name in ("patch_size", "caption_channels"):
            require_count(arguments, name, file)
        require_places(arguments, file)
        require_output(arguments, file, variance=True)

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's hidden states, and of α's sizes where it has them."""
        shapes: dict[str, tuple[int, ...]] = {
            TEXT: (ALPHA_TOKENS, config.caption_channels),
            TEXT_MASK: (ALPHA_TOKENS,),
        }
        sized = config.use_additional_conditions
        if sized or (sized is None and config.sample_size == SIZED_SAMPLE):
            shapes |= {RESOLUTION: (2,), ASPECT_RATIO: (1,)}
        return shapes

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the captions' hidden states and masks."""
        encoded = pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, device=pipeline.device
        )
        return {TEXT: encoded[0], TEXT_MASK: encoded[1]}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int]:
        """Return the tokenizer of T5, and how many tokens PixArt-α or -Σ takes."""
        is_sigma = type(pipeline).__name__.startswith("PixArtSigma")
        return pipeline.tokenizer, SIGMA_TOKENS if is_sigma else ALPHA_TOKENS

    def sizes(
        self, original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]
    ) -> dict[str, list[float]]:
        """Return height and width of what was cut out, and the one by the other."""
        height, width = target
        return {RESOLUTION: [height, width], ASPECT_RATIO: [height / width]}

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the model's noise, the first half of what it gives; see `Family.predict`."""
        output = model(
            noisy,
            encoder_hidden_states=conditions[TEXT],
            timestep=t,
            encoder_attention_mask=conditions[TEXT_MASK],
            added_cond_kwargs={name: conditions.get(name) for name in (RESOLUTION, ASPECT_RATIO)},
            return_dict=False,
        )[0]
        return without_variance(output, noisy)

    def random_conditions(
        self, config: Any, size: int, random: torch.Generator
    ) -> dict[str, Tensor]:
        """Return random conditions; sizes are those of a picture, not normal numbers."""
        conditions = super().random_conditions(config, size, random)
        if RESOLUTION in conditions:
            conditions[RESOLUTION] = conditions[RESOLUTION].abs() * 512
            conditions[ASPECT_RATIO] = conditions[ASPECT_RATIO].abs()
        return conditions
