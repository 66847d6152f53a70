"""The adapters that one training run saved, all in one base model."""

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.adapter_files import PEFT_CONFIG, Adapter, AdapterPart, PeftPart, read_adapter
from gradindex.models.adapters import exchange_adapter
from gradindex.models.checkpoints import (
    KEPT_SHARE,
    NEXT_SHARE,
    Checkpoints,
    Identity,
    identity_of,
    is_roomy,
)
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import CPU, free_memory_of, memory_of, plain_torch
from gradindex.models.pipeline import Encoder

Settings = dict[str, Any] | None  # see `PeftPart.settings`


class AdaptedDenoiser(Denoiser):
    """A base model with one adapter of a run; the others share the model.

    Args:
        denoiser: the base model with any of the adapters.
        adapter: this one.
        encoder: of this adapter.
        run, number: where the adapter is exchanged.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        adapter: Adapter,
        encoder: Encoder | None,
        run: "AdapterCheckpoints",
        number: int,
    ) -> None:
        vars(self).update(vars(denoiser))
        self.digest = adapter.digest
        self.encoder = encoder
        self._run, self._number = run, number

    def make_ready(self) -> None:
        """Have this adapter in the model."""
        self._run.put_in(self._number)

    def losses(
        self, x: Tensor, t: Tensor, epsilon: Tensor, conditions: Mapping[str, Tensor], loss: str
    ) -> Tensor:
        """Return the loss of each sample with this adapter in the model; see `Denoiser`."""
        self.make_ready()
        return super().losses(x, t, epsilon, conditions, loss)


class AdapterCheckpoints(Checkpoints):
    """The adapters of one run: the base model is loaded once, and adapters are exchanged in it.

    The arguments are those of `Checkpoints`: `paths` are the adapters, `model` is the base.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._base: Denoiser | None = None
        self._put_in: int | None = None
        self._first: tuple[Path, Settings] | None = None  # that all others must have
        self._denoisers: dict[int, Denoiser] = {}
        self._adapters: dict[int, Adapter] = {}  # in memory, as long as they fit

    def __getitem__(self, number: int) -> Denoiser:
        if self._base is None:
            self._base = self._load(self._model, adapter=self._paths[number])
            self._put_in = number
            self._encoders.setdefault(number, self._base.encoder)
        if number not in self._denoisers:
            adapter = read_adapter(self._paths[number])
            self._first = self._first or (adapter.path, _settings(adapter))
            _require_settings(adapter, *self._first)
            self._exchange(adapter, number)
            self.notes = self.notes or adapter.notes
            if number not in self._encoders:
                self._encoders[number] = self._encoder_with(adapter)
            encoder = self._encoders[number]
            self._denoisers[number] = AdaptedDenoiser(self._base, adapter, encoder, self, number)
            self._keep(adapter, number)
        self.put_in(number)
        return self._denoisers[number]

    def put_in(self, number: int) -> None:
        """Have an adapter in the model."""
        if self._put_in != number:
            adapter = self._adapters.get(number) or read_adapter(self._paths[number])
            self._exchange(adapter, number)

    @plain_torch()
    def _exchange(self, adapter: Adapter, number: int) -> None:
        assert self._base is not None, "the base is loaded before an adapter is exchanged"
        if self._put_in != number:
            exchange_adapter(self._base.model, adapter, adapter.denoiser)
            self._put_in = number

    def _encoder_with(self, adapter: Adapter) -> Encoder | None:
        """The encoder of an adapter: that of the first one, unless text encoders are changed."""
        first = next(iter(self._encoders.values()), None)
        return None if first is None else first.with_adapter(adapter)

    def _keep(self, adapter: Adapter, number: int) -> None:
        """Keep what an adapter changes in the model in memory, where all of them fit."""
        size = sum(weight.nbytes for weight in _tensors(adapter.denoiser))
        together = len(self._paths) * size * self._processes
        if together <= KEPT_SHARE * memory_of(CPU) and size <= NEXT_SHARE * free_memory_of(CPU):
            self._adapters[number] = replace(
                adapter, denoiser=_copied(adapter.denoiser), text_encoders={}
            )

    def _identify(self, number: int) -> tuple[Identity, str]:
        denoiser = self[number]
        return identity_of(denoiser), denoiser.digest

    def make_room(self) -> None:
        """Let the model go, unless there is plenty of room beside it."""
        if self._base is not None and not is_roomy(self._base):
            self.release()

    def release(self) -> None:
        """Let the model go; adapters stay."""
        self._base, self._put_in = None, None
        self._denoisers.clear()
        gc.collect()  # errors that imports caught may refer to it


def _settings(adapter: Adapter) -> Settings:
    """What PEFT makes scales of as it puts an adapter in, and an exchange of weights keeps.

    None for other forms than PEFT's: they say the scale of each layer, which is exchanged too.
    """
    part = adapter.denoiser
    return part.settings if isinstance(part, PeftPart) else None


def _tensors(part: AdapterPart) -> list[Tensor]:
    """The numbers of all weights of an adapter."""
    if isinstance(part, PeftPart):
        return list(part.weights.values())
    return [weight.value for weight in part.weights]


def _copied(part: AdapterPart) -> AdapterPart:
    """The same with weights in memory, not in a file that may change."""
    if isinstance(part, PeftPart):
        return replace(part, weights={name: w.clone() for name, w in part.weights.items()})
    return replace(
        part, weights=tuple(replace(weight, value=weight.value.clone()) for weight in part.weights)
    )


def _require_settings(adapter: Adapter, path: Path, settings: Settings) -> None:
    """Raise ModelError unless an adapter has the settings of the one at a path."""
    own = _settings(adapter)
    if own == settings:
        return
    if own is None or settings is None:
        problem = f"of another form than {path}: one of them is a folder that PEFT saved"
    else:
        name = min(key for key in {*own, *settings} if own.get(key) != settings.get(key))
        problem = (
            f"{PEFT_CONFIG} says {name} = {own.get(name)!r}, that of {path} {settings.get(name)!r}"
        )
    raise ModelError(f"{adapter.path}: {problem}; give adapters of one run, in one form")
