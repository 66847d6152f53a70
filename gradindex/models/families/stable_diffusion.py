"""UNet2DConditionModel: Stable Diffusion 1 and 2, SDXL, and their inpainting models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.configuration import require_count
from gradindex.models.families.family import TEXT, Encoded, Family
from gradindex.models.folder import shortened

TOKENS = 77  # of a caption, of CLIP
POOLED = "text_embeds"
TIME_IDS = "time_ids"
TIME_IDS_LENGTH = 6  # original size, corner and target size, two numbers each
MASKED = "masked_latents"  # of inpainting: the latent of the picture without what is masked

# Arguments of UNets that are given something else than captions, and what such a UNet is.
OTHER_KINDS = {
    "time_cond_proj_dim": "distilled from a teacher (LCM), whose loss is the teacher's",
    "class_embed_type": "given more than a caption (unCLIP, upscaling)",
    "encoder_hid_dim_type": "given other embeddings (DeepFloyd IF, Kandinsky)",
}


class StableDiffusion(Family):
    """diffusers' UNet2DConditionModel, with the captions of one CLIP, or of SDXL's two.

    An inpainting model takes the noisy latent, a mask, and the latent of what is not masked. As
    each picture is all that is learned of it, everything is masked: a mask of ones, and the latent
    of a grey picture.
    """

    model_class = "UNet2DConditionModel"
    module = "diffusers.models.unets.unet_2d_condition"

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse UNets that are given other things than Stable Diffusion's; see `Family.check`."""
        super().check(arguments, file)
        require_count(arguments, "out_channels", file)
        taken, given = arguments["in_channels"], arguments["out_channels"]
        if taken not in (given, 2 * given + 1):
            raise ModelError(
                f"{file}: the model takes {taken} channels and gives {given}: not a denoiser that"
                f" is known (known: {given} channels, and {2 * given + 1} of inpainting)"
            )
        for name, kind in OTHER_KINDS.items():
            if arguments[name] is not None:
                raise ModelError(
                    f"{file}: {name} = {shortened(arguments[name])}: a UNet {kind}; known are"
                    " Stable Diffusion 1, 2 and XL"
                )
        added = arguments["addition_embed_type"]
        if added not in (None, "text_time"):
            raise ModelError(
                f"{file}: addition_embed_type = {shortened(added)}: a UNet of this kind is not"
                " known; Stable Diffusion 1, 2 and XL are"
            )
        require_count(arguments, "cross_attention_dim", file)
        if added == "text_time":
            require_count(arguments, "addition_time_embed_dim", file)
            require_count(arguments, "projection_class_embeddings_input_dim", file)

    def channels(self, config: Any) -> int:
        """Return how many channels latents have: those that the UNet gives."""
        return int(config.out_channels)

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's hidden states and, for SDXL, its pooled embedding."""
        shapes: dict[str, tuple[int, ...]] = {TEXT: (TOKENS, config.cross_attention_dim)}
        if config.addition_embed_type == "text_time":
            time_numbers = config.addition_time_embed_dim * TIME_IDS_LENGTH
            pooled = config.projection_class_embeddings_input_dim - time_numbers
            shapes |= {POOLED: (pooled,), TIME_IDS: (TIME_IDS_LENGTH,)}
        return shapes

    def blank(self, config: Any) -> str | None:
        """Return the condition of inpainting models that is a masked picture's latent."""
        return MASKED if config.in_channels > config.out_channels else None

    def kohya_name(self, config: Any) -> str | None:
        """Return what kohya's scripts call the model in the names of latents."""
        return "sd" if config.addition_embed_type is None else "sdxl"

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the captions' hidden states, and SDXL's pooled embeddings."""
        is_xl = hasattr(pipeline, "text_encoder_2")
        encoded = pipeline.encode_prompt(
            list(captions),
            device=pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        if is_xl:
            return {TEXT: encoded[0], POOLED: encoded[2]}
        return {TEXT: encoded[0]}

    def sizes(
        self, original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]
    ) -> dict[str, list[float]]:
        """Return SDXL's micro-conditions (Podell et al. 2023, sec. 2.2)."""
        return {TIME_IDS: [*original, *corner, *target]}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int] | None:
        """Return the tokenizer of CLIP, and how many tokens it takes."""
        tokenizer = pipeline.tokenizer
        return tokenizer, tokenizer.model_max_length

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return what the UNet makes of noisy latents; see `Family.predict`."""
        added = {name: conditions[name] for name in (POOLED, TIME_IDS) if name in conditions}
        if MASKED in conditions:
            mask = torch.ones_like(noisy[:, :1])
            noisy = torch.cat([noisy, mask, conditions[MASKED]], dim=1)
        return model(
            noisy, t, conditions[TEXT], added_cond_kwargs=added or None, return_dict=False
        )[0]

    def random_conditions(
        self, config: Any, size: int, random: torch.Generator
    ) -> dict[str, Tensor]:
        """Return random conditions; sizes are those of a picture, not normal numbers."""
        conditions = super().random_conditions(config, size, random)
        if TIME_IDS in conditions:
            conditions[TIME_IDS] = conditions[TIME_IDS].abs() * 512
        return conditions
