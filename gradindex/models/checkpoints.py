"""The checkpoints of one training run."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Size

from gradindex.data.buckets import Buckets
from gradindex.errors import ModelError
from gradindex.models.denoiser import Denoiser, DenoiserDescription
from gradindex.models.loading import load_denoiser
from gradindex.models.pipeline import Encoder
from gradindex.models.refusals import require_path
from gradindex.models.trainer_notes import TrainerNotes
from gradindex.recipe import MEAN


class Checkpoints:
    """The checkpoints of one run, loaded when asked for, one of them in memory at a time.

    Args:
        paths: where the weights of each checkpoint are; see `load_denoiser`, also for the rest.
        model: the run's model, for checkpoints that are bare weights files.
        scheduler: a scheduler folder or its JSON file; found beside the model when None.
        device: "cpu" or "cuda".
        dtype: of the weights while gradients are taken.
        resolution, latents, seed, guidance, buckets: see `load_denoiser`.

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
        self._loaded: tuple[int, Denoiser] | None = None
        self._encoders: dict[int, Encoder | None] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Denoiser:
        if self._loaded is None or self._loaded[0] != number:
            # The one in memory goes before the next comes: there may be room for one only.
            self.release()
            denoiser = self._load(self._paths[number], model=self._model)
            denoiser.encoder = self._shared_encoder(number, denoiser.encoder)
            self._loaded = number, denoiser
        return self._loaded[1]

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
            _ = self[number]
        return self._encoders[number]

    def release(self) -> None:
        """Let the checkpoint in memory go."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()  # errors that imports caught may refer to it

    def recipe_fields(self, stored_config: str | None = None) -> dict[str, Any]:
        """Return the fields of a `Recipe` that models and scheduler decide, as keyword arguments.

        Every checkpoint is loaded for it, one after the other.

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

    def _identify(self, number: int) -> tuple[tuple[DenoiserDescription, dict[str, Size]], str]:
        """What all checkpoints of a run share (parameter shapes too), and the weights' digest."""
        denoiser = self[number]
        parameters = {name: denoiser.model.get_parameter(name) for name in denoiser.trainable}
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        return (denoiser.description, shapes), denoiser.digest


def _are_alike(encoder: Encoder, other: Encoder) -> bool:
    """Whether two encoders make the same examples."""
    keys, others = ((e.latents_key, e.captions_key) for e in (encoder, other))
    return keys == others
