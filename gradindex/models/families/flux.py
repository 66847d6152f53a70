"""FluxTransformer2DModel: Flux.1 dev and schnell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.configuration import require_count
from gradindex.models.families.family import GUIDANCE, POOLED, TEXT, Encoded, Family
from gradindex.models.families.packed import SIDE, pack, require_axes, unpack

TOKENS = 512  # of a caption, of T5
LATENT_SIDE = 128  # of the pictures that Flux was made for; its config.json does not say
TIME_SCALE = 1000  # the model multiplies times in 0 … 1 with it, whatever the scheduler's number


class Flux(Family):
    """diffusers' FluxTransformer2DModel, with the captions of CLIP (pooled) and T5.

    Latents are packed two by two into a sequence.
    """

    model_class = "FluxTransformer2DModel"
    module = "diffusers.models.transformers.transformer_flux"
    flow = True

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what makes no Flux, or one that is given pictures; see `Family.check`."""
        for name in ("in_channels", "joint_attention_dim", "pooled_projection_dim"):
            require_count(arguments, name, file)
        require_axes(arguments, file)
        taken = arguments["in_channels"]
        given = arguments["out_channels"] or taken
        if taken != given:
            raise ModelError(
                f"{file}: the model takes {taken} channels and gives {given}: a Flux that is given"
                " pictures beside captions (Fill, Canny, Depth) is not known; dev and schnell are"
            )
        if taken % SIDE**2 or arguments["patch_size"] != 1:
            raise ModelError(
                f"{file}: in_channels = {taken}, patch_size = {arguments['patch_size']}: allowed"
                f" are multiples of {SIDE**2}, of packed latents, and patches of 1"
            )

    def channels(self, config: Any) -> int:
        """Return how many channels latents have before they are packed."""
        return int(config.in_channels) // SIDE**2

    def size(self, config: Any) -> tuple[int, int]:
        """Return height and width of the latents that Flux was made for."""
        return LATENT_SIDE, LATENT_SIDE

    def patch(self, config: Any) -> int:
        """Return the side of a packed square."""
        return SIDE

    def guidance(self, config: Any) -> bool:
        """Return whether the model is told a guidance scale: dev is, schnell is not."""
        return bool(config.guidance_embeds)

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's hidden states and of its pooled embedding."""
        return {
            TEXT: (TOKENS, config.joint_attention_dim),
            POOLED: (config.pooled_projection_dim,),
        }

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the captions' hidden states of T5 and pooled embeddings of CLIP."""
        hidden, pooled, _ = pipeline.encode_prompt(
            list(captions), device=pipeline.device, max_sequence_length=TOKENS
        )
        return {TEXT: hidden, POOLED: pooled}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int]:
        """Return the tokenizer of T5, and how many tokens it takes."""
        return pipeline.tokenizer_2, TOKENS

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the velocity that the model predicts; see `Family.predict`."""
        height, width = noisy.shape[2:]
        text = conditions[TEXT]
        output = model(
            pack(noisy),
            encoder_hidden_states=text,
            pooled_projections=conditions[POOLED],
            timestep=t / TIME_SCALE,
            img_ids=_positions(height // SIDE, width // SIDE).to(noisy.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device),
            guidance=conditions.get(GUIDANCE),
            return_dict=False,
        )[0]
        return unpack(output, height, width)


def _positions(rows: int, columns: int) -> Tensor:
    """The place of each packed square, [rows · columns, 3]: 0, its row, its column.

    >>> _positions(1, 2).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    places = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(rows), torch.arange(columns))
    return places.float()
