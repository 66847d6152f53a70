"""The checkpoints of one training run."""

import gc
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Size

from gradindex.data.buckets import Buckets
from gradindex.errors import ModelError
from gradindex.models.denoiser import Denoiser, DenoiserDescription
from gradindex.models.devices import free_memory_of
from gradindex.models.loading import load_denoiser
from gradindex.models.pipeline import Encoder
from gradindex.models.refusals import require_path
from gradindex.models.trainer_notes import TrainerNotes
from gradindex.recipe import MEAN

# Of the device's memory: the most that checkpoints take together, beside what gradients take.
KEPT_SHARE = 1 / 4
# Of what is free: the most that one takes which is loaded beside others.
NEXT_SHARE = 1 / 2
ROOMY = 3 / 4  # of the device's memory: where so much is free, encoders fit beside checkpoints

# What all checkpoints of a run share: the parameters' shapes, too.
Identity = tuple[DenoiserDescription, dict[str, Size]]


class Checkpoints:
    """The checkpoints of one run, loaded when asked for; as many stay in memory as fit.

    What a recipe says of them is known without them: of those that are not in memory, configuration
    and headers tell the shapes, and weights are read one by one, for their digest.

    Args:
        paths: where the weights of each checkpoint are; see `load_denoiser`, also for the rest.
        model: the run's model, for checkpoints that are bare weights files.
        scheduler: a scheduler folder or its JSON file; found beside the model when None.
        device: "cpu" or "cuda".
        dtype: of the weights while gradients are taken.
        resolution, latents, seed, guidance, buckets: see `load_denoiser`.
        processes: how many such processes share the device's memory.

    Attributes:
        notes: what the trainer of an adapter says of the run; None: nothing.

    Raises:
        CallError: the model is no path.
    """

    notes: TrainerNotes | None = None

    def __init__(
        self,
        paths: Sequence[str | Path],
        model: str | Path,
        scheduler: str | Path | None,
        device: str,
        dtype: str,
        *,
        resolution: tuple[int, int] | None = None,
        latents: str = MEAN,
        seed: int = 0,
        guidance: float | None = None,
        buckets: Buckets | None = None,
        processes: int = 1,
    ) -> None:
        require_path("model", model)
        self._paths = list(paths)
        self._model = model
        self._scheduler = scheduler
        self._device = device
        self._dtype = dtype
        self._resolution = resolution
        self._latents = latents
        self._seed = seed
        self._guidance = guidance
        self._buckets = buckets
        self._processes = processes
        self._loaded: dict[int, Denoiser] = {}  # the one that was used last at the end
        self._identities: dict[int, tuple[Identity, str]] = {}  # see `_identify`
        self._encoders: dict[int, Encoder | None] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Denoiser:
        denoiser = self._loaded.pop(number, None)
        if denoiser is None:
            self._make_room_for_one()
            denoiser = self._load(self._paths[number], model=self._model)
            self._note(number, denoiser)
            denoiser.encoder = self._encoders[number]
        self._loaded[number] = denoiser
        return denoiser

    @property
    def device(self) -> torch.device:
        """Where they are, whether any is loaded or not."""
        return torch.device(self._device)

    def _make_room_for_one(self) -> None:
        """Let checkpoints go until there is room for another; all have the same shapes.

        They are asked for in turns, so the one that was used last goes first: it is the one that is
        asked for latest again.
        """
        while self._loaded:
            denoiser = next(iter(self._loaded.values()))
            size = _weight_bytes(denoiser)
            together = (len(self._loaded) + 1) * size * self._processes
            fits = together <= KEPT_SHARE * denoiser.memory
            if fits and size <= NEXT_SHARE * free_memory_of(denoiser.device):
                return
            del denoiser
            self._loaded.popitem()
            gc.collect()  # errors that imports caught may refer to it

    def _note(self, number: int, denoiser: Denoiser) -> None:
        """Note what a checkpoint is, and its encoder.

        Raises:
            ModelError: it is another one than it was before.
        """
        identity = identity_of(denoiser), denoiser.digest
        if self._identities.setdefault(number, identity) != identity:
            raise ModelError(
                f"checkpoint {self._paths[number]}: it was written over since it was looked at; let"
                " its training end, and begin again"
            )
        self._shared_encoder(number, denoiser.encoder)

    def _shared_encoder(self, number: int, encoder: Encoder | None) -> Encoder | None:
        """The encoder of a checkpoint: another one's where that makes the same examples."""
        if number not in self._encoders:
            self._encoders[number] = encoder
            for other in self._encoders.values():
                if encoder is not None and other is not None and _are_alike(encoder, other):
                    self._encoders[number] = other
                    break
        return self._encoders[number]

    def _load(self, path: str | Path, **options: Any) -> Denoiser:
        """The denoiser at a path; the options are those of `load_denoiser`, beside the run's."""
        return load_denoiser(
            path,
            scheduler=self._scheduler,
            device=self._device,
            dtype=self._dtype,
            resolution=self._resolution,
            latents=self._latents,
            seed=self._seed,
            guidance=self._guidance,
            buckets=self._buckets,
            **options,
        )

    @property
    def encoder(self) -> Encoder | None:
        """What makes latents and conditions at the first checkpoint; None for models of pixels."""
        return self.encoder_of(0)

    def encoder_of(self, number: int) -> Encoder | None:
        """Return what makes latents and conditions at a checkpoint.

        It is one for all, unless files of theirs or adapters have text encoders or a VAE too.
        """
        if number not in self._encoders:
            self._identify(number)
        return self._encoders[number]

    def make_room(self) -> None:
        """Let the checkpoints in memory go, unless there is plenty of room beside them."""
        if self._loaded and not is_roomy(next(iter(self._loaded.values()))):
            self.release()

    def release(self) -> None:
        """Let the checkpoints in memory go."""
        self._loaded.clear()
        gc.collect()  # errors that imports caught may refer to them

    def recipe_fields(self, stored_config: str | None = None) -> dict[str, Any]:
        """Return the fields of a `Recipe` that models and scheduler decide, as keyword arguments.

        The first checkpoint is loaded for it; of the others files are read, one after the other.

        Args:
            stored_config: the field `config` of a store's recipe, see `config_digest`.

        Raises:
            ModelError: a checkpoint cannot be loaded, or differs from the first in more than the
                values of its weights.
        """
        first_identity = None
        digests = []
        for number, path in enumerate(self._paths):
            identity, digest = self._identify(number)
            first_identity = first_identity or identity
            if identity != first_identity:
                raise ModelError(
                    f"checkpoint {path} is of another model or scheduler than {self._paths[0]}"
                )
            digests.append(digest)
        assert first_identity is not None, "a run has one checkpoint or more"
        description, _ = first_identity
        fields = {**description.recipe_fields(), "checkpoints": tuple(digests)}
        if stored_config not in (None, description.config):
            fields["config"] = self.config_digest(stored_config)
        return fields

    def config_digest(self, stored: str | None) -> str:
        """Return the field `config` of a `Recipe`, the store's own one where both are right.

        Gradindex once made it of all that config.json holds, EMAModel's own fields too; a store
        that was built then keeps it.

        Args:
            stored: the field in a store's recipe.
        """
        denoiser = self[0]
        return stored if stored == denoiser.former_config else denoiser.description.config

    def _identify(self, number: int) -> tuple[Identity, str]:
        """What a checkpoint shares with all of its run, and the digest of its weights."""
        if number not in self._identities:
            if number == 0:  # which whoever asks needs next
                _ = self[number]
            else:
                path = self._paths[number]
                self._note(number, self._load(path, model=self._model, with_weights=False))
        return self._identities[number]


def identity_of(denoiser: Denoiser) -> Identity:
    """Return what all checkpoints of a run share."""
    parameters = {name: denoiser.model.get_parameter(name) for name in denoiser.trainable}
    return denoiser.description, {name: value.shape for name, value in parameters.items()}


def is_roomy(denoiser: Denoiser) -> bool:
    """Return whether there is room for encoders on the device of a denoiser beside it."""
    return free_memory_of(denoiser.device) >= ROOMY * denoiser.memory


def _weight_bytes(denoiser: Denoiser) -> int:
    """The bytes of a model's weights in memory."""
    return sum(
        tensor.nbytes for tensor in chain(denoiser.model.parameters(), denoiser.model.buffers())
    )


def _are_alike(encoder: Encoder, other: Encoder) -> bool:
    """Whether two encoders make the same examples."""
    keys, others = ((e.latents_key, e.captions_key) for e in (encoder, other))
    return keys == others
