"""A query's gradients: the build's checkpoints, and what their rows are multiplied with."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from gradindex.errors import CallError
from gradindex.gradients.batch_size import fitting_batch
from gradindex.gradients.events import Events, grid_events
from gradindex.gradients.fold import search_vectors, unit
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import Projection
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.adapter_checkpoints import AdapterCheckpoints
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.custom import OneDenoiser
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.models.pipeline import make_examples
from gradindex.recipe import (
    CUSTOM,
    FOLDED,
    MEAN,
    NOISE_VERSION,
    PROJECTION_VERSION,
    require_order,
)
from gradindex.search.query import Query
from gradindex.store.progress import progress as show_progress
from gradindex.store.store import Store


class QueryGradients:
    """What takes the gradients of queries, at the checkpoints that the store was built from.

    One query at a time: while gradients are taken, the model has hooks. Threads wait for each
    other. As many checkpoints stay in memory as fit, see `Checkpoints`.

    Args:
        model: where the model is now, when it was moved since the build (one checkpoint only).
        device: "cpu" or "cuda".
        denoiser: the user's own, where the store was built with one.
        adapters: where the adapters are now, in the build's order, when they were moved.
    """

    def __init__(
        self,
        store: Store,
        model: str | Path | None,
        device: str,
        denoiser: Any = None,
        adapters: Sequence[str | Path] | str | Path | None = None,
    ) -> None:
        if isinstance(adapters, (str, Path)):
            adapters = [adapters]
        self._adapters = None if adapters is None else [str(path) for path in adapters]
        self._store, self._model, self._device = store, model, device
        self._denoiser = denoiser
        self._projection: Projection | None = None  # of the first query, for all
        self._lock = RLock()

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The build's checkpoints, once it is sure that they are still the same.

        Raises:
            CallError: there are several and one model was given; adapters come in another order.
            RecipeMismatch: they are not those that the rows were made with.
        """
        store = self._store
        built = store.recipe.checkpoints
        checkpoints = self._open()
        now = replace(
            store.recipe,
            noise_version=NOISE_VERSION,
            projection_version=PROJECTION_VERSION,
            **checkpoints.recipe_fields(store.recipe.config),
        )
        model = self._model or store.header.model or "denoiser"
        message = f"model {model} or this gradindex is not the one that indexed"
        if store.recipe.base is not None and now.checkpoints != built:
            _, paths = self._adapter_paths()
            require_order(built, now.checkpoints, paths, "adapters", str(store.location))
            digests = zip(paths, now.checkpoints, strict=True)
            others = [path for path, digest in digests if digest not in built]
            message = f"adapters {', '.join(others or paths)}: not those that it was built from"
        store.require_recipe(now, message)
        return checkpoints

    def _open(self) -> Checkpoints:
        """The build's checkpoints, wherever they are now; none of them is loaded yet."""
        header, recipe = self._store.header, self._store.recipe
        if recipe.prediction_type == CUSTOM:
            if self._denoiser is None:
                raise CallError(
                    f"{self._store.location}: built with a denoiser of class {recipe.model}; give"
                    " it in Python: gradindex.open(…, denoiser=…)"
                )
            return OneDenoiser(self._denoiser, self._device, recipe.dtype)
        if self._denoiser is not None:
            raise CallError(
                f"denoiser: {self._store.location} was built with a model, not with one"
            )
        if recipe.base is None and self._adapters is not None:
            raise CallError(
                f"adapters: {self._store.location} was built without one; build an index with it"
            )
        if header.scheduler is not None and not os.path.exists(header.scheduler):
            raise CallError(
                f"scheduler {header.scheduler}: no such file or folder, and"
                f" {self._store.location} was built with it; put it back, or a link to it"
            )
        model, paths = self._paths() if recipe.base is None else self._adapter_paths()
        return self._checkpoints(paths, model, recipe.dtype)

    def others(self, paths: Sequence[str | Path]) -> Iterator[Denoiser]:
        """Yield other models of the same kind, one in memory at a time, in float32.

        Args:
            paths: of models as `build` takes them; where the store was built with adapters, of
                adapters of the same base.

        Raises:
            CallError: the store was built with a denoiser of the user's own, or the base is gone.
            ModelError: one cannot be loaded, or is of another kind.
        """
        recipe = self._store.recipe
        if recipe.prediction_type == CUSTOM:
            raise CallError(
                f"{self._store.location}: built with a denoiser of your own; its losses are yours"
                " to take"
            )
        if recipe.base is not None:
            base, _ = self._adapter_paths()
            run = self._checkpoints(paths, base, "float32")
            yield from (run[number] for number in range(len(run)))
            return
        for path in paths:
            yield self._checkpoints([path], self._around(path), "float32")[0]

    def _checkpoints(
        self, paths: Sequence[str | Path], model: str | Path, dtype: str
    ) -> Checkpoints:
        """Checkpoints, or adapters of a model, that see pictures as the store's do."""
        header, recipe = self._store.header, self._store.recipe
        kind = Checkpoints if recipe.base is None else AdapterCheckpoints
        return kind(
            paths,
            model,
            header.scheduler,
            self._device,
            dtype,
            resolution=None if recipe.buckets else recipe.pixels[1:],
            buckets=recipe.buckets,
            latents=recipe.latents or MEAN,
            seed=recipe.seed,
            guidance=recipe.guidance,
        )

    def _paths(self) -> tuple[str | Path, list[str]]:
        """The model's path, and those of the checkpoints."""
        header = self._store.header
        paths = [checkpoint.path for checkpoint in header.checkpoints]
        if self._model is None:
            # A bare weights file needs the model too: its config.json is there.
            needed = paths if all(map(os.path.isdir, paths)) else [*paths, header.model]
            if gone := [path for path in needed if not os.path.exists(path)]:
                raise CallError(self._moved(gone[0], len(paths)))
            return header.model, paths
        if len(paths) > 1:
            raise CallError(
                f"model = {str(self._model)!r}: this index has {len(paths)} checkpoints, and a"
                " model stands for one; put them back, or links to them, where they were:"
                f" {paths[0]}, …"
            )
        if os.path.isfile(paths[0]) and os.path.isdir(self._model):
            return self._model, paths  # the pipeline was moved, and the file with weights was not
        return self._around(self._model), [str(self._model)]

    def _around(self, path: str | Path) -> str | Path:
        """What a model needs beside its weights: for a bare file the build's model, if it is there.

        Otherwise it lies in the same folder.
        """
        model = self._store.header.model
        return model if os.path.isfile(path) and os.path.exists(model) else path

    def _adapter_paths(self) -> tuple[str | Path, list[str]]:
        """The path of the base model, and those of the adapters."""
        header = self._store.header
        built = [checkpoint.path for checkpoint in header.checkpoints]
        paths = built if self._adapters is None else self._adapters
        if len(paths) != len(built):
            raise CallError(
                f"adapters: {len(paths)} given, {self._store.location} was built from"
                f" {len(built)}; give all of them, in the order of the build: {', '.join(built)}"
            )
        model = str(self._model or header.model)
        places = {model: "model", **dict.fromkeys(paths, "adapter")}
        for path, kind in places.items():
            if not os.path.exists(path):
                name = "adapters" if kind == "adapter" else kind
                raise CallError(
                    f"{kind} {path}: no such file or folder, and {self._store.location} was built"
                    f" from it; say where it is now with --{kind} ({name}=)"
                )
        return model, paths

    def _moved(self, path: str, checkpoints: int) -> str:
        """What an error says of a path of the build where nothing is any more."""
        message = f"model {path}: no such file or folder, and {self._store.location}"
        if checkpoints == 1:
            return f"{message} was built from it; say where it is now with --model (model=)"
        return (
            f"{message} was built from it and others, {checkpoints} checkpoints; put it back, or a"
            " link to it (--model stands for one checkpoint only)"
        )

    @cached_property
    def fitting_batch(self) -> int:
        """How many (picture, timestep, draw) go through the model at once."""
        return fitting_batch(self.checkpoints[0], self._store.recipe)

    def blocks(
        self, query: Query, methods: Sequence[str], first: int = 1
    ) -> tuple[list[np.ndarray], float]:
        """What each row [c, i, t] is multiplied with: the weighted query gradients of each method.

        Args:
            first: the number of the first picture, for warnings.

        Returns:
            For each method [Q, C, T, D] float32; for folded rows they are folded likewise,
            [Q, 1, 1, W], and divided by T. And the seconds that the gradients took, loading the
            models not counted.
        """
        with self._lock:
            blocks, seconds = self._blocks(query, methods)
        for number, block in enumerate(blocks[0] if blocks else (), first):
            if not block.any():
                what = "is what it is compared with" if query.contrast else "has a gradient of zero"
                warnings.warn(
                    f"picture {number} of those asked about {what}: all its scores are 0, in the"
                    " order of rows",
                    stacklevel=3,
                )
        return blocks, seconds

    def _blocks(self, query: Query, methods: Sequence[str]) -> tuple[list[np.ndarray], float]:
        recipe = self._store.recipe
        timesteps = self._grid(query)
        events = grid_events(recipe, query.pictures.ids, timesteps, query.draws)
        count = events.timesteps.size * events.draws * len(query.weights)
        examples = self._examples(query)
        parts: list[list[np.ndarray]] = [[] for _ in methods]
        seconds = 0.0
        with show_progress(title="query", total=count, unit="gradient") as bar:
            for checkpoint, weight in enumerate(query.weights):
                gradients, duration = self._gradients(
                    query, examples[checkpoint], events, checkpoint, bar.update
                )
                seconds += duration
                if query.contrast:
                    asked, others = np.split(gradients, 2)
                    gradients = asked - others
                for method, weighted in zip(methods, parts, strict=True):
                    rows = unit(gradients) if method == "retrac" else gradients
                    aligned = query.align_to_rows(rows, recipe.per_picture)
                    weighted.append(np.float32(weight) * aligned)
        blocks = [np.stack(weighted, axis=1) for weighted in parts]
        if recipe.rows == FOLDED:
            folded = [search_vectors(block, recipe)[:, None, None] for block in blocks]
            blocks = [block / recipe.per_picture for block in folded]
        return blocks, seconds

    def _examples(self, query: Query) -> list[Examples]:
        """A query's pictures as the model takes them at each checkpoint."""
        encoders: list[Any] = [
            self.checkpoints.encoder_of(number) for number in range(len(query.weights))
        ]
        examples_of = {}
        for encoder in encoders:
            if id(encoder) not in examples_of:
                examples_of[id(encoder)] = make_examples(encoder, query.pictures)
                if encoder is None:
                    continue
                encoder.say_what_was_cut()
                if encoder is not encoders[0]:
                    encoder.release()  # there may be room for one only
        return [examples_of[id(encoder)] for encoder in encoders]

    def _grid(self, query: Query) -> tuple[float, ...]:
        """The timesteps of a query; CallError where its own ones are not the scheduler's."""
        denoiser = self.checkpoints[0]
        try:
            return denoiser.process.grid(query.timesteps)
        except CallError as error:  # of `timesteps`, which is another argument of a query
            raise CallError(f"query_{error}") from error

    def _gradients(
        self,
        query: Query,
        examples: Examples,
        events: Events,
        checkpoint: int,
        progress: Callable[[int], object],
    ) -> tuple[np.ndarray, float]:
        """The projected gradients at a checkpoint, [Q, ·, D] float32, and the seconds they took."""
        denoiser, recipe = self.checkpoints[checkpoint], self._store.recipe
        batch = self.fitting_batch if query.batch_size == "auto" else int(query.batch_size)
        began = time.perf_counter()
        with capture_for(denoiser, recipe, self._projection) as capture:
            self._projection = capture.projection
            gradients = sample_gradients(
                denoiser,
                capture,
                recipe,
                examples,
                events,
                batch_size=batch,
                progress=progress,
            )
        return gradients, time.perf_counter() - began
