"""What gradindex must know of a class of models, and what most of them have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.configuration import (
    is_count,
    require_argument,
    require_count,
    require_size,
)
from gradindex.models.examples import CLASS_LABELS
from gradindex.models.folder import shortened

# Names of conditions that several families have.
TEXT = "encoder_hidden_states"  # of captions, [B, tokens, numbers]
TEXT_MASK = "encoder_attention_mask"  # 1 for the tokens of a caption, 0 for padding, [B, tokens]
POOLED = "pooled_projections"  # a caption in one row of numbers, [B, numbers]
LARGEST_SIDE = 1024  # of latents, that a transformer has a table of places for
GUIDANCE = "guidance"  # the guidance scale that a distilled model is told, [B]

Encoded = Mapping[str, Tensor | Sequence[Tensor]]  # what captions make, see `Family.text`


class Family:
    """A class of diffusers models: how it is made, called, and given its captions.

    A new family is a subclass in a file of its own, and a line in `families.FAMILIES`. What it does
    not redefine is that of most transformers of latents.

    Attributes:
        model_class: name of the class, as config.json has it.
        module: where diffusers has the class.
        latent: whether it works on the latents of a VAE: always, never, or (None) where a pipeline
            with a VAE is around it.
        captioned: whether it is given captions.
        flow: whether it is trained by flow matching alone.
        optional_parts: text encoders and tokenizers that its pipeline can do without.
    """

    model_class: ClassVar[str]
    module: ClassVar[str]
    latent: ClassVar[bool | None] = True
    captioned: ClassVar[bool] = True
    flow: ClassVar[bool] = False
    optional_parts: ClassVar[tuple[str, ...]] = ()

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse arguments of config.json that make no model, or one whose loss is not known.

        Args:
            arguments: of the model's class. file: the config.json, for the error.

        Raises:
            ModelError: what it says would be misread, or take endless time or memory.
        """
        require_count(arguments, "in_channels", file)
        require_size(arguments, file, may_be_null=True)

    def channels(self, config: Any) -> int:
        """Return how many channels x has: those of pictures, or of latents."""
        return int(config.in_channels)

    def size(self, config: Any) -> tuple[int, int] | None:
        """Return height and width of x that the model was made for; None: it does not say."""
        size = config.sample_size
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def patch(self, config: Any) -> int:
        """Return what height and width of x must be multiples of."""
        return int(getattr(config, "patch_size", 1) or 1)

    def classes(self, config: Any) -> int | None:
        """Return how many classes the model knows; None for a model without class labels."""
        return None

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return {condition: shape of one example's} of what `predict` is given, in float32."""
        return {}

    def guidance(self, config: Any) -> bool:
        """Return whether the model is told a guidance scale, the condition `GUIDANCE`, [B]."""
        return False

    def blank(self, config: Any) -> str | None:
        """Return the condition that is the latent of a picture all masked out; None: none is."""
        return None

    def kohya_name(self, config: Any) -> str | None:
        """Return what kohya's scripts call the model in the names of latents; None: not taken."""
        return None

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the conditions that captions make, {condition: [U, …], or U tensors}.

        Args:
            pipeline: of diffusers, with its text encoders and tokenizers.
            captions: U of them.
            config: of the model.
        """
        return {}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int] | None:
        """Return the tokenizer that takes most of a caption, and how many tokens it takes."""
        return None

    def sizes(
        self, original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]
    ) -> dict[str, list[float]]:
        """Return the conditions that the geometry of one picture makes.

        Args:
            original: its height and width before it was resized.
            corner: top and left of what was cut out of the resized picture.
            target: height and width of what was cut out.
        """
        return {}

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return what the model makes of noisy examples, [B, channels, height, width].

        Args:
            model: in its own precision; it is called with the samples first, by position.
            noisy: x with noise, [B, channels, height, width] in the model's precision.
            t: timesteps [B], whole numbers or float32.
            conditions: {name: [B, …]}, floating point numbers in the model's precision.
        """
        return model(noisy, t, return_dict=False, **conditions)[0]

    def random_conditions(
        self, config: Any, size: int, random: torch.Generator
    ) -> dict[str, Tensor]:
        """Return random conditions of `size` examples, to try a model with."""
        conditions = {
            name: torch.randn((size, *shape), generator=random)
            for name, shape in self.condition_shapes(config).items()
        }
        if TEXT_MASK in conditions:
            conditions[TEXT_MASK] = torch.ones(conditions[TEXT_MASK].shape, dtype=torch.long)
        if self.classes(config) is not None:
            conditions[CLASS_LABELS] = torch.zeros(size, dtype=torch.long)
        return conditions


def require_places(arguments: Mapping[str, Any], file: Path) -> None:
    """Raise ModelError unless the side of latents is one that a table of places can be made for."""
    side = arguments["sample_size"]
    allowed = f"a whole number, 1 to {LARGEST_SIDE}"
    require_argument(is_count(side, LARGEST_SIDE), file, "sample_size", side, allowed)


def require_output(arguments: Mapping[str, Any], file: Path, *, variance: bool = False) -> None:
    """Raise ModelError unless a model gives as many channels as it takes.

    Args:
        arguments, file: see `Family.check`; `out_channels` may be null.
        variance: whether it may give twice as many: what it predicts, and then a variance.
    """
    taken = arguments["in_channels"]
    given = arguments["out_channels"]
    allowed = (None, taken, 2 * taken) if variance else (None, taken)
    if given not in allowed:
        twice = f", or {2 * taken} with a learned variance" if variance else ""
        raise ModelError(
            f"{file}: the model takes {taken} channels and gives {shortened(given)}: allowed are as"
            f" many{twice}"
        )


def without_variance(output: Tensor, noisy: Tensor) -> Tensor:
    """Return the first channels of what a model gives, as many as `noisy` has: its prediction.

    A learned variance follows them (Nichol and Dhariwal 2021); the loss of the prediction does not
    depend on it.
    """
    return output[:, : noisy.shape[1]]
