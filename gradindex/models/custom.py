"""A user's own denoiser: any model whose loss per sample the user can write; see docs/models.md.

It is an object with

- `model`: a torch module; gradients are taken of its parameters that require grad. It is set to
  eval mode and frozen.
- `shape`: channels, height and width of pictures as they are read, channels 1 or 3.
- `losses(x, t, noise, conditions)`: the loss of each sample, [B], never reduced over the batch,
  with x and noise [B, …] float32, t [B] and conditions {name: [B, …]}. It calls `model`, with the
  samples first.
- `num_train_timesteps`: timesteps are 0 … num_train_timesteps − 1; 1000 where it has none.

and, where it has them,

- `classes`: how many classes the model knows; then conditions have `class_labels`, [B] int64.
- `captioned` = True, for a model that is given captions.
- `encode(pictures, captions)`: the examples of pictures [B, channels, height, width] float32 in
  [−1, 1] and B captions or None, as (x [B, …], conditions {name: [B, …]}), tensors both.
- `version`: a text that is changed whenever `losses` or `encode` changes.
"""

import hashlib
from collections.abc import Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from gradindex.errors import CallError, GradindexError, ModelError, first_line
from gradindex.models.checkpoints import Checkpoints, Identity, identity_of
from gradindex.models.configuration import config_digest
from gradindex.models.denoiser import DenoiserDescription
from gradindex.models.devices import DTYPES, memory_of, plain_torch
from gradindex.models.examples import CLASS_LABELS, Examples, Pictures
from gradindex.models.processes import Timesteps, Weighted
from gradindex.recipe import CUSTOM, grid

NUM_TRAIN_TIMESTEPS = 1000
BLANK = ""  # the caption that the model is tried with before real ones come


# What of a model required grad when it was first seen: after that it is frozen.
_TRAINABLE: MutableMapping[nn.Module, list[str]] = WeakKeyDictionary()


class CustomDenoiser:
    """A user's denoiser, as the rest of gradindex uses one; the attributes are `Denoiser`'s.

    Raises:
        CallError: it lacks what every denoiser has, or has it of another type.
    """

    is_repeatable = False  # nobody knows what the user's Python does

    def __init__(self, given: Any, device: str, dtype: str) -> None:
        self._given = given
        self.model = _require(given, "model", nn.Module)
        _require(given, "losses", callable)
        shape: Any = tuple(_require(given, "shape", (tuple, list)))
        if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
            raise CallError(f"denoiser.shape = {shape}: give channels, height and width")
        self.trainable = _TRAINABLE.setdefault(self.model, _trainable(self.model))
        if not self.trainable:
            raise CallError("denoiser.model: no parameter of it requires grad")
        self.num_train_timesteps: int = getattr(given, "num_train_timesteps", NUM_TRAIN_TIMESTEPS)
        self.process = SimpleNamespace(grid=self._grid)
        captioned = bool(getattr(given, "captioned", False))
        self.family = SimpleNamespace(captioned=captioned, flow=False)
        self.scheduler_class = None
        self.digest = _weights_digest(self.model)
        self.model.eval().requires_grad_(False)
        self.cast(DTYPES[dtype], device)
        self.device = torch.device(device)
        self.encoder = CustomEncoder(given, device) if hasattr(given, "encode") else None
        version = str(getattr(given, "version", ""))
        self.description = DenoiserDescription(
            model=type(given).__name__,
            config=config_digest({"version": version, "model": type(self.model).__name__}),
            scheduler=f'{{"num_train_timesteps": {self.num_train_timesteps}}}',
            prediction_type=CUSTOM,
            image=self._example_shape(shape),
            classes=getattr(given, "classes", None),
            dtype=dtype,
            picture=None if self.encoder is None else shape,
            encoder=None if self.encoder is None else self.encoder.digest,
            captioned=self.family.captioned or None,
        )
        self.former_config = self.description.config

    def _example_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of x of one picture."""
        if self.encoder is None:
            return shape
        self._blank = self.encoder.encode(_blank_pictures(shape, self.family.captioned))
        channels, height, width = self._blank.x[0].shape
        return channels, height, width

    @property
    def memory(self) -> int:
        """Bytes of memory that the device has."""
        return memory_of(self.device)

    def _grid(self, timesteps: Timesteps) -> tuple[int, ...]:
        if isinstance(timesteps, Weighted):
            raise CallError(
                f"timesteps = 'weighted:{timesteps.count}': of an own denoiser's noise nothing is"
                " known; list the timesteps"
            )
        return grid(timesteps, self.num_train_timesteps)

    def cast(self, dtype: torch.dtype, device: str | None = None) -> None:
        """Have the model's weights in another precision, or on another device too."""
        nn.Module.to(self.model, device, dtype)
        self.dtype = dtype

    def losses(
        self, x: Tensor, t: Tensor, epsilon: Tensor, conditions: Mapping[str, Tensor], loss: str
    ) -> Tensor:
        """Return the loss of each sample, [B] float32; see `Denoiser.losses`.

        Raises:
            CallError: another loss than the denoiser's own is asked for.
            ModelError: the denoiser raises, or gives no loss of each sample.
        """
        if loss != "mse":
            raise CallError(f"loss = {loss!r}: a denoiser of your own has one loss, its own")
        try:
            losses = self._given.losses(x, t, epsilon, dict(conditions))
        except (torch.OutOfMemoryError, GradindexError):
            raise
        except Exception as error:  # the user's code raises anything
            raise ModelError(
                f"denoiser.losses raises {type(error).__name__} ({first_line(error)})"
            ) from error
        if not isinstance(losses, Tensor) or losses.shape != (len(x),):
            given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ModelError(
                f"denoiser.losses gives {given}: give the loss of each sample, ({len(x)},)"
            )
        return losses.float()

    def random_conditions(self, size: int, image: tuple[int, int, int]) -> dict[str, Tensor]:
        """Return conditions of `size` examples to try the model with: those of a blank picture."""
        conditions: dict[str, Tensor] = {}
        if self.encoder is not None:
            _, conditions = self._blank.batch([0] * size, self.device)
        if self.description.classes is not None:
            conditions[CLASS_LABELS] = torch.zeros(size, dtype=torch.long, device=self.device)
        return conditions


class CustomEncoder:
    """The encoder of a user's denoiser; see `Encoder`."""

    latents = None

    def __init__(self, given: Any, device: str) -> None:
        self._given = given
        self._device = device
        self.digest = hashlib.sha256(str(getattr(given, "version", "")).encode()).hexdigest()
        self.latents_key, self.captions_key = self.digest, None  # captions go with pictures

    def release(self) -> None:
        """Do nothing: what the object keeps in memory is its own affair."""

    def say_what_was_cut(self) -> None:
        """Say nothing: how long a caption may be is the object's own affair, too."""

    @torch.no_grad()
    @plain_torch()
    def encode(self, pictures: Pictures) -> Examples:
        """Return the examples of B pictures.

        Raises:
            ModelError: the denoiser raises, or does not give B of everything.
        """
        if not len(pictures.arrays):
            return Examples([])
        arrays = torch.from_numpy(np.stack(list(pictures.arrays))).to(self._device)
        captions = None if pictures.captions is None else list(pictures.captions)
        try:
            x, conditions = self._given.encode(arrays, captions)
            columns = {"x": x, **conditions}
            encoded = {name: values.detach().cpu().numpy() for name, values in columns.items()}
        except Exception as error:  # the user's code raises anything
            raise ModelError(
                f"denoiser.encode raises {type(error).__name__} ({first_line(error)})"
            ) from error
        for name, values in encoded.items():
            if len(values) != len(arrays):
                raise ModelError(
                    f"denoiser.encode gives {len(values)} {name} for {len(arrays)} pictures"
                )
        latents = encoded.pop("x").astype(np.float32)
        labels = Examples.of_pictures(latents, pictures.labels).conditions
        return Examples(latents, {**encoded, **labels})


class OneDenoiser(Checkpoints):
    """A user's denoiser as the only checkpoint of its run."""

    def __init__(self, given: Any, device: str, dtype: str) -> None:
        super().__init__([""], "", None, device, dtype)
        self._denoiser: Any = CustomDenoiser(given, device, dtype)

    def __getitem__(self, number: int) -> Any:
        return self._denoiser

    def encoder_of(self, number: int) -> Any:
        """Return the denoiser's encoder, or None."""
        return self._denoiser.encoder

    def _identify(self, number: int) -> tuple[Identity, str]:
        return identity_of(self._denoiser), self._denoiser.digest


def _blank_pictures(shape: tuple[int, ...], captioned: bool) -> Pictures:
    """A black picture, with an empty caption where the model is given any."""
    return Pictures(
        np.zeros((1, *shape), np.float32), ["blank"], None, [BLANK] if captioned else None
    )


def _trainable(model: nn.Module) -> list[str]:
    """The names of the parameters that require grad."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _require(given: Any, name: str, kind: Any) -> Any:
    """Return an attribute of a user's denoiser; CallError where it is of another kind."""
    value = getattr(given, name, None)
    fits = callable(value) if kind is callable else isinstance(value, kind)
    if not fits:
        raise CallError(
            f"denoiser: a {type(given).__name__} has no fitting {name!r}; docs/models.md says what"
            " a denoiser of your own must have"
        )
    return value


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights, by their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
