"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from gradindex.models.configuration import require_count
from gradindex.models.families.family import (
    POOLED,
    TEXT,
    Encoded,
    Family,
    require_output,
    require_places,
)

CLIP_TOKENS = 77
T5_TOKENS = 77  # as diffusers' training scripts have it; the pipeline generates with 256


class StableDiffusion3(Family):
    """diffusers' SD3Transformer2DModel (Esser et al. 2024), with the captions of two CLIPs and T5.

    A pipeline without T5 has zeros in its place, as it has when it generates.
    """

    model_class = "SD3Transformer2DModel"
    module = "diffusers.models.transformers.transformer_sd3"
    flow = True
    optional_parts = ("text_encoder_3", "tokenizer_3")

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what makes no SD3; see `Family.check`."""
        super().check(arguments, file)
        for name in (
            *("patch_size", "joint_attention_dim"),
            *("pooled_projection_dim", "pos_embed_max_size"),
        ):
            require_count(arguments, name, file)
        require_places(arguments, file)
        require_output(arguments, file)

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's hidden states and of its pooled embedding."""
        return {
            TEXT: (CLIP_TOKENS + T5_TOKENS, config.joint_attention_dim),
            POOLED: (config.pooled_projection_dim,),
        }

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the captions' hidden states and pooled embeddings."""
        if pipeline.text_encoder_3 is None:
            # The pipeline asks the model how wide T5's zeros are.
            pipeline.transformer = SimpleNamespace(config=config)
        encoded = pipeline.encode_prompt(
            list(captions),
            prompt_2=None,
            prompt_3=None,
            device=pipeline.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return {TEXT: encoded[0], POOLED: encoded[2]}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int]:
        """Return the tokenizer of T5, or else of CLIP, and how many tokens it takes."""
        if pipeline.tokenizer_3 is None:
            return pipeline.tokenizer, CLIP_TOKENS
        return pipeline.tokenizer_3, T5_TOKENS

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the velocity that the model predicts; see `Family.predict`."""
        return model(
            noisy,
            encoder_hidden_states=conditions[TEXT],
            pooled_projections=conditions[POOLED],
            timestep=t,
            return_dict=False,
        )[0]
