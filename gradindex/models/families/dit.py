"""DiTTransformer2DModel: DiT, latents of pictures with class labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.configuration import require_count
from gradindex.models.examples import CLASS_LABELS
from gradindex.models.families.family import (
    Family,
    require_output,
    require_places,
    without_variance,
)


class DiT(Family):
    """diffusers' DiTTransformer2DModel (Peebles and Xie 2023)."""

    model_class = "DiTTransformer2DModel"
    module = "diffusers.models.transformers.dit_transformer_2d"
    captioned = False

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what makes no DiT; see `Family.check`."""
        super().check(arguments, file)
        for name in ("patch_size", "num_embeds_ada_norm"):
            require_count(arguments, name, file)
        require_places(arguments, file)
        require_output(arguments, file, variance=True)

    def classes(self, config: Any) -> int:
        """Return how many classes the model knows, the empty one of guidance not counted."""
        return config.num_embeds_ada_norm

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the model's noise, the first half of what it gives; see `Family.predict`."""
        height, width = noisy.shape[2:]
        if height != width:
            raise ModelError(
                f"DiT takes square pictures only, and these have latents of {width}x{height}: give"
                " one side as resolution"
            )
        labels = conditions[CLASS_LABELS]
        output = model(noisy, timestep=t, class_labels=labels, return_dict=False)[0]
        return without_variance(output, noisy)
