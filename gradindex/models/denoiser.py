"""A denoiser: a frozen model with its noise schedule, whose loss is one number per sample.

This is all that the rest of gradindex needs of a model. A family that is called with other inputs,
or trained on another target, differs in `Denoiser._predict` and `Denoiser._target`.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradindex.errors import GradindexError, ModelError, first_line
from gradindex.models.configuration import config_digest, own_arguments
from gradindex.models.devices import DTYPES
from gradindex.models.schedules import PREDICTION_TYPES, SCHEDULE_FIELDS, alphas_cumprod
from gradindex.recipe import MEAN_SQUARE


@dataclass(frozen=True)
class DenoiserDescription:
    """What a model, its scheduler and its precision decide of a `Recipe`; see there."""

    model: str
    config: str
    scheduler: str
    prediction_type: str
    image: tuple[int, int, int]
    classes: int | None
    dtype: str

    def recipe_fields(self) -> dict[str, Any]:
        """Return these fields as keyword arguments of `Recipe`."""
        return asdict(self)


class Denoiser:
    """A frozen diffusers model with its noise schedule.

    Attributes:
        model: the module, in eval mode, every parameter frozen.
        trainable: names of the parameters that training would change.
        device: where the model is.
        digest: SHA-256 of the weight files.
        description: the fields of a Recipe that the model and its scheduler decide.
        former_config: what `description.config` was where config.json holds more than the model's
            own arguments, in stores that gradindex made before it left the rest out.
        num_train_timesteps: timesteps are 0 … num_train_timesteps − 1.

    Args:
        model: a diffusers model, as it was loaded.
        schedule: the configuration of its scheduler, from `read_schedule`.
        digest: SHA-256 of the weight files.
        device: "cpu" or "cuda".
        dtype: a key of `DTYPES`.
        former_config: see there.

    Raises:
        ModelError: model or schedule are of a kind that gradindex does not know.
    """

    def __init__(
        self,
        model: Any,
        schedule: dict[str, Any],
        digest: str,
        device: str,
        dtype: str,
        former_config: str | None = None,
    ) -> None:
        self.trainable = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        self.model = model.eval().requires_grad_(False)
        self.cast(DTYPES[dtype], device)
        self.device = torch.device(device)
        self.digest = digest
        self.description = _describe(model, schedule, dtype)
        self.former_config = former_config or self.description.config
        self.num_train_timesteps: int = schedule["num_train_timesteps"]
        alphas = alphas_cumprod(schedule).to(device)
        self._signal_scale = alphas.sqrt()
        self._noise_scale = (1 - alphas).sqrt()

    def cast(self, dtype: torch.dtype, device: str | None = None) -> None:
        """Have the model's weights in another precision, or on another device too."""
        # Not by the model's own `to`: diffusers' warns of casts even where nothing is wrong.
        nn.Module.to(self.model, device, dtype)

    @property
    def memory(self) -> int:
        """Bytes of memory that the device has."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def losses(
        self, x: Tensor, t: Tensor, epsilon: Tensor, labels: Tensor | None, loss: str
    ) -> Tensor:
        """Return the denoising loss of each sample, [B] float32, never reduced over the batch.

        `mean |model(x_t, t) − target|^p` over the picture's elements, with p = 2 for mse and 1 for
        l1 and `x_t = √ᾱ_t x + √(1 − ᾱ_t) ε` (Ho et al. 2020, eq. 4). For mean-square it is
        `mean model(x_t, t)²` (D-TRAK, Zheng et al. 2024).

        Args:
            x: pictures, [B, channels, height, width] float32 in [−1, 1].
            t: timesteps, [B] whole numbers.
            epsilon: noise, [B, channels, height, width] float32.
            labels: class labels, [B]; None for an unconditional model.
            loss: "mse", "l1" or "mean-square".
        """
        signal_scale = self._signal_scale[t].view(-1, 1, 1, 1)
        noise_scale = self._noise_scale[t].view(-1, 1, 1, 1)
        noisy = signal_scale * x + noise_scale * epsilon
        output = self._predict(noisy, t, labels)
        if loss == MEAN_SQUARE:
            return output.flatten(1).square().mean(1)
        target = self._target(x, epsilon, signal_scale, noise_scale)
        error = (output - target).flatten(1)
        return (error.abs() if loss == "l1" else error.square()).mean(1)

    def _predict(self, noisy: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """What the model makes of the noisy pictures, [B, channels, height, width] float32."""
        conditions = {} if labels is None else {"class_labels": labels}
        try:
            output = self.model(noisy.to(self.model.dtype), t, return_dict=False, **conditions)
        except (torch.OutOfMemoryError, GradindexError):
            raise
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            # A config.json can hold what only shows when the model is called.
            raise ModelError(
                f"the model cannot be run on pictures of {tuple(noisy.shape[1:])}"
                f" ({first_line(error)}); its config.json may not be the one it was trained with"
            ) from error
        return output[0].float()

    def _target(
        self, x: Tensor, epsilon: Tensor, signal_scale: Tensor, noise_scale: Tensor
    ) -> Tensor:
        """What the model was trained to predict, [B, channels, height, width] float32."""
        if self.description.prediction_type == "epsilon":
            return epsilon
        if self.description.prediction_type == "sample":
            return x
        # v of Salimans and Ho (2022), "Progressive distillation".
        return signal_scale * epsilon - noise_scale * x


def _describe(model: Any, schedule: dict[str, Any], dtype: str) -> DenoiserDescription:
    """The description of a model with this schedule, once it is sure that its loss is known."""
    config = model.config
    size = config.sample_size
    prediction_type = schedule["prediction_type"]
    if prediction_type not in PREDICTION_TYPES:
        raise ModelError(
            f"prediction_type {prediction_type!r}: known are {', '.join(PREDICTION_TYPES)}"
        )
    timesteps = schedule["num_train_timesteps"]
    table = getattr(model, "time_proj", None)
    if isinstance(table, nn.Embedding) and table.num_embeddings < timesteps:
        raise ModelError(
            f"the model has learned embeddings for {table.num_embeddings} timesteps, and its"
            f" scheduler has {timesteps}: name the scheduler that it was trained with"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return DenoiserDescription(
        model=type(model).__name__,
        config=config_digest(own_arguments(type(model), config)),
        scheduler=json.dumps(
            {name: schedule.get(name) for name in SCHEDULE_FIELDS}, sort_keys=True
        ),
        prediction_type=prediction_type,
        image=(config.in_channels, height, width),
        classes=config.num_class_embeds,
        dtype=dtype,
    )
