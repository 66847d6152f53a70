"""SanaTransformer2DModel: Sana 1 and 1.5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.configuration import require_count
from gradindex.models.families.family import (
    TEXT,
    TEXT_MASK,
    Encoded,
    Family,
    require_output,
    require_places,
)

TOKENS = 300  # of a caption


class Sana(Family):
    """diffusers' SanaTransformer2DModel (Xie et al. 2025), with the captions of Gemma 2."""

    model_class = "SanaTransformer2DModel"
    module = "diffusers.models.transformers.sana_transformer"
    flow = True

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what makes no Sana, and Sana Sprint; see `Family.check`."""
        super().check(arguments, file)
        for name in ("patch_size", "caption_channels"):
            require_count(arguments, name, file)
        require_places(arguments, file)
        require_output(arguments, file)
        if arguments["guidance_embeds"]:
            raise ModelError(
                f"{file}: guidance_embeds = true: Sana Sprint is distilled from a teacher, whose"
                " loss is not known; Sana 1 and 1.5 are"
            )

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's hidden states and mask."""
        return {TEXT: (TOKENS, config.caption_channels), TEXT_MASK: (TOKENS,)}

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the captions' hidden states and masks, without an instruction before them."""
        encoded = pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=pipeline.device,
            max_sequence_length=TOKENS,
        )
        return {TEXT: encoded[0], TEXT_MASK: encoded[1]}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int]:
        """Return the tokenizer of Gemma, and how many tokens it takes."""
        return pipeline.tokenizer, TOKENS

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the velocity that the model predicts; see `Family.predict`."""
        return model(
            noisy,
            encoder_hidden_states=conditions[TEXT],
            timestep=t * model.config.timestep_scale,
            encoder_attention_mask=conditions[TEXT_MASK],
            return_dict=False,
        )[0]
