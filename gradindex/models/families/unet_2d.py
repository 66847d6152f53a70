"""UNet2DModel: DDPM on pixels, with class labels or without; LDM on latents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradindex.errors import ModelError
from gradindex.models.configuration import (
    is_count,
    require_argument,
    require_count,
    require_same_channels,
    require_size,
)
from gradindex.models.families.family import Family
from gradindex.models.folder import shortened

# Counts in a config.json, and whether null is allowed.
COUNTS = {
    "in_channels": False,
    "out_channels": False,
    "layers_per_block": False,
    "attention_head_dim": True,
    "norm_num_groups": True,
    "attn_norm_num_groups": True,
    "time_embedding_dim": True,
}
LARGEST_PADDING = 8
LENGTHS = {"num_class_embeds": 2**24, "num_train_timesteps": 2**20}  # the most rows of a table


class UNet2D(Family):
    """diffusers' UNet2DModel."""

    model_class = "UNet2DModel"
    module = "diffusers.models.unets.unet_2d"
    latent = None
    captioned = False

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what would be misread or take endless time or memory; diffusers checks the rest.

        Raises:
            ModelError: an argument has a value of another type or size than it can have.
        """
        for name, may_be_null in COUNTS.items():
            if name in arguments:
                require_count(arguments, name, file, may_be_null=may_be_null)
        for name, largest in LENGTHS.items():
            value = arguments.get(name)
            is_allowed = value is None or is_count(value, largest)
            require_argument(
                is_allowed, file, name, value, f"null or a whole number, 1 to {largest}"
            )
        widths = arguments["block_out_channels"]
        is_allowed = isinstance(widths, (list, tuple)) and all(map(is_count, widths))
        require_argument(is_allowed, file, "block_out_channels", widths, "a list of whole numbers")
        padding = arguments.get("downsample_padding")
        is_allowed = isinstance(padding, int) and 0 <= padding <= LARGEST_PADDING
        allowed = f"a whole number, 0 to {LARGEST_PADDING}"
        require_argument(is_allowed, file, "downsample_padding", padding, allowed)
        require_size(arguments, file)
        require_same_channels(arguments, file)
        if arguments["class_embed_type"] is not None:
            raise ModelError(
                f"{file}: class_embed_type {shortened(arguments['class_embed_type'])}:"
                " only learned class embeddings are known"
            )

    def classes(self, config: Any) -> int | None:
        """Return how many classes the model knows; None for an unconditional one."""
        return config.num_class_embeds

    def patch(self, config: Any) -> int:
        """Return 1: the size that config.json has is not cut into patches."""
        return 1
