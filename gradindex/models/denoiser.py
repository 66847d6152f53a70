"""A denoiser: a frozen model with its noise process, whose loss is one number per sample.

This is all that the rest of gradindex needs of a model. How it is called is its family's affair
(`families`), how noise is mixed and what the model predicts is its process's (`processes`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradindex.data.buckets import Buckets, bucket_sizes, largest_size, sizes_text
from gradindex.data.images import Size
from gradindex.errors import CallError, GradindexError, ModelError, first_line
from gradindex.models.configuration import config_digest, own_arguments
from gradindex.models.devices import DTYPES, memory_of
from gradindex.models.examples import INPUT_NOISE, LOSS_MASK
from gradindex.models.families import FAMILIES
from gradindex.models.families.family import GUIDANCE, Family
from gradindex.models.pipeline import Encoder
from gradindex.models.processes import make_process
from gradindex.recipe import MEAN_SQUARE

GUIDANCE_SCALE = 3.5  # what diffusers' scripts tell a model with guidance embedding


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
    picture: tuple[int, int, int] | None = None
    encoder: str | None = None
    latents: str | None = None
    captioned: bool | None = None
    guidance: float | None = None
    base: str | None = None
    buckets: tuple[Size, ...] | None = None

    def recipe_fields(self) -> dict[str, Any]:
        """Return these fields as keyword arguments of `Recipe`."""
        return asdict(self)


class Denoiser:
    """A frozen diffusers model with its noise process.

    Attributes:
        model: the module, in eval mode, every parameter frozen.
        trainable: names of the parameters that training would change.
        device: where the model is. dtype: of its weights.
        digest: SHA-256 of the weight files, or of the adapter's where the model has one.
        family: how the model is called.
        process: its noise process.
        encoder: makes latents and conditions; None for a model of pixels.
        description: the fields of a Recipe that the model and its scheduler decide.
        former_config: what `description.config` was where config.json holds more than the model's
            own arguments, in stores that gradindex made before it left the rest out.
        num_train_timesteps: S, see `Process`.
        is_repeatable: whether a loss is the work of the device alone, so that what it did for one
            batch can be repeated for the next without running any Python.

    Args:
        model: a diffusers model, as it was loaded; one without weights is only described.
        schedule: the configuration of its scheduler, from `read_schedule`.
        digest: see there.
        device: "cpu" or "cuda".
        dtype: a key of `DTYPES`.
        former_config: see there.
        encoder: see there.
        resolution: height and width of pictures before they are encoded; None: those that the model
            was made for.
        guidance: the scale that a model with guidance embedding was told in training; None:
            `GUIDANCE_SCALE`.
        base: SHA-256 of the weight files of a model with an adapter; None: it has none.
        buckets: a step of their sides, with which their areas are at most the resolution's; or
            their heights and widths; None: pictures have one size.

    Raises:
        ModelError: model or schedule are of a kind that gradindex does not know.
        CallError: resolution or buckets do not fit the model, or it is told no guidance.
    """

    is_repeatable = True

    def __init__(
        self,
        model: Any,
        schedule: dict[str, Any],
        digest: str,
        device: str,
        dtype: str,
        former_config: str | None = None,
        encoder: Encoder | None = None,
        resolution: tuple[int, int] | None = None,
        guidance: float | None = None,
        base: str | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        self.trainable = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        self.model = model.eval().requires_grad_(False)
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        if not any(parameter.is_meta for parameter in model.parameters()):
            self.cast(self.dtype, device)
        self.digest = digest
        self.family: Family = FAMILIES[type(model).__name__]
        self.process = make_process(schedule, device)
        self.scheduler_class = schedule.get("_class_name")
        self.encoder = encoder
        self.num_train_timesteps = self.process.num_train_timesteps
        self.description = replace(self._describe(dtype, resolution, guidance, buckets), base=base)
        self.former_config = former_config or self.description.config
        _require_timesteps(model, self.num_train_timesteps)

    def make_ready(self) -> None:
        """Have the weights in the model, where it shares it with other checkpoints.

        Called before a recorded pass is repeated, in which numbers of Python's, as the scale of an
        adapter, stay what they were.
        """

    def cast(self, dtype: torch.dtype, device: str | None = None) -> None:
        """Have the model's weights in another precision, or on another device too."""
        # Not by the model's own `to`: diffusers' warns of casts even where nothing is wrong.
        nn.Module.to(self.model, device, dtype)
        self.dtype = dtype

    @property
    def memory(self) -> int:
        """Bytes of memory that the device has."""
        return memory_of(self.device)

    def losses(
        self, x: Tensor, t: Tensor, epsilon: Tensor, conditions: Mapping[str, Tensor], loss: str
    ) -> Tensor:
        """Return the denoising loss of each sample, [B] float32, never reduced over the batch.

        `mean |model(x_t, t) − target|^p` over the elements of x, with p = 2 for mse and 1 for l1;
        x_t and target are those of `Process.noisy` and `Process.target`. For mean-square it is
        `mean model(x_t, t)²` (D-TRAK, Zheng et al. 2024). Input perturbation adds to the noise in
        x_t and not to the target (Ning et al. 2023, alg. 1). With a mask each element is multiplied
        with it before the mean over all of them, as kohya's `apply_masked_loss` has it.

        Args:
            x: pictures in [−1, 1] or scaled latents, [B, channels, height, width] float32.
            t: timesteps [B], whole numbers, or float32 for flow matching.
            epsilon: noise, of the shape of x, float32.
            conditions: {name: [B, …]} of what else the model is given, see `Family.predict`; and
                `INPUT_NOISE`, where the input is perturbed, and `LOSS_MASK`, [B, 1, height, width].
            loss: "mse", "l1" or "mean-square".
        """
        given = dict(conditions)
        added, mask = given.pop(INPUT_NOISE, None), given.pop(LOSS_MASK, None)
        mixed_in = epsilon if added is None else epsilon + added
        output = self._predict(self.process.noisy(x, mixed_in, t), t, given)
        error = output if loss == MEAN_SQUARE else output - self.process.target(x, epsilon, t)
        errors = error.abs() if loss == "l1" else error.square()
        if mask is not None:
            errors = errors * mask
        return errors.flatten(1).mean(1)

    def random_conditions(self, size: int, image: tuple[int, int, int]) -> dict[str, Tensor]:
        """Return random conditions of `size` examples, {name: [size, …]}, to try the model with.

        Args:
            image: the shape of an example.
        """
        random = torch.Generator().manual_seed(0)
        conditions = self.family.random_conditions(self.model.config, size, random)
        if blank := self.family.blank(self.model.config):
            conditions[blank] = torch.randn((size, *image), generator=random)
        return {name: values.to(self.device) for name, values in conditions.items()}

    def _predict(self, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """What the model makes of noisy examples, [B, channels, height, width] float32."""
        dtype = self.dtype
        given = {
            name: values.to(dtype) if values.is_floating_point() else values
            for name, values in conditions.items()
        }
        if self.description.guidance is not None:
            given[GUIDANCE] = noisy.new_full((len(noisy),), self.description.guidance)
        try:
            output = self.family.predict(self.model, noisy.to(dtype), t, given)
        except (torch.OutOfMemoryError, GradindexError):
            raise
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            # A config.json can hold what only shows when the model is called.
            raise ModelError(
                f"the model cannot be run on pictures of {tuple(noisy.shape[1:])}"
                f" ({first_line(error)}); its config.json may not be the one it was trained with"
            ) from error
        return output.float()

    def _describe(
        self,
        dtype: str,
        resolution: Size | None,
        guidance: float | None,
        buckets: Buckets | None,
    ) -> DenoiserDescription:
        """The description of the model, once it is sure that its loss is known."""
        config = self.model.config
        size = self.family.size(config)
        factor = 1 if self.encoder is None else self.encoder.factor
        if resolution is None and size is not None:
            resolution = size[0] * factor, size[1] * factor
        if resolution is None and (buckets is None or isinstance(buckets, int)):
            raise CallError(
                "resolution: the model's config.json has no sample_size; give the side of the"
                " pictures that it was trained on"
            )
        sizes = None
        if buckets is not None:
            sizes = bucket_sizes(buckets, resolution)
            given = f"buckets = {buckets if isinstance(buckets, int) else sizes_text(sizes)}"
            resolution = largest_size(sizes)
        else:
            assert resolution is not None, "an error otherwise"
            given = f"resolution = {sizes_text([resolution])}"
        height, width = resolution
        picture = None
        if self.encoder is not None:
            picture = (3, height, width)
            _require_multiples(factor, self.family.patch(config), sizes or [resolution], given)
            height, width = height // factor, width // factor
        if self.family.guidance(config):
            guidance = GUIDANCE_SCALE if guidance is None else float(guidance)
        elif guidance is not None:
            raise CallError(
                f"guidance = {guidance}: a {type(self.model).__name__} without guidance embedding"
                " is told none; leave it out"
            )
        return DenoiserDescription(
            model=type(self.model).__name__,
            config=config_digest(own_arguments(type(self.model), config)),
            scheduler=self.process.fields,
            prediction_type=self.process.prediction_type,
            image=(self.family.channels(config), height, width),
            classes=self.family.classes(config),
            dtype=dtype,
            picture=picture,
            encoder=None if self.encoder is None else self.encoder.digest,
            latents=None if self.encoder is None else self.encoder.latents,
            captioned=self.family.captioned or None,
            guidance=guidance,
            buckets=sizes,
        )


def _require_multiples(factor: int, patch: int, sizes: Sequence[Size], given: str) -> None:
    """Raise CallError unless all sides make latents that the model takes.

    Args:
        factor: of the VAE. patch: of the model.
        sizes: heights and widths of pictures.
        given: the option and its value.
    """
    step = factor * patch
    if any(side % step for size in sizes for side in size):
        raise CallError(
            f"{given}: give multiples of {step} (the VAE makes one number of"
            f" {factor} pixels a side{f', the model patches of {patch}' if patch > 1 else ''})"
        )


def _require_timesteps(model: Any, timesteps: int) -> None:
    """Raise ModelError where a model has learned fewer embeddings than there are timesteps."""
    table = getattr(model, "time_proj", None)
    if isinstance(table, nn.Embedding) and table.num_embeddings < timesteps:
        raise ModelError(
            f"the model has learned embeddings for {table.num_embeddings} timesteps, and its"
            f" scheduler has {timesteps}: name the scheduler that it was trained with"
        )
