"""A picture → its gradient → candidates from FAISS → exact scores from the store."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

import numpy as np
from PIL import Image
from tqdm import tqdm

from gradindex.dataset import Columns, Dataset, open_dataset
from gradindex.denoiser import Checkpoints, resolve_device
from gradindex.errors import CallError, GradindexError, StoreError
from gradindex.factors import WHITENED, is_wide
from gradindex.gradients.rows import Events, capture_for, fitting_batch, grid_events, sample_gradients
from gradindex.index import build_index, open_index
from gradindex.place import Place
from gradindex.queries import Picture, QueryOptions, Question, picture_name, to_arrays
from gradindex.recipe import FOLDED, NOISE_VERSION, PROJECTION_VERSION, grid, require, require_positive
from gradindex.results import Hit, Result
from gradindex.scoring import (
    Span,
    as_columns,
    contributions,
    scan,
    scan_both_ends,
    spread,
    stderrs,
    unit,
)
from gradindex.search_index import METHODS, SearchIndex, search_vectors
from gradindex.store import Store
from gradindex.whiten import DAMPING, Whitening, whitened_by_some

READ_ROWS = 256  # candidates whose rows are in memory at once


def open(
    path: str | Path | Place, *, model: str | Path | None = None, device: str = "auto", ray: str | None = None
) -> "Index":
    """Open an index that `build` made.

    Args:
        path: the index: a folder, or a URL such as s3://bucket/index.
        model: where the model is now, when it was moved since the build (one checkpoint only).
        ray: have a Ray cluster hold and search the index files: "local" or an address, as for `build`. The query's
            gradients and the exact scores of the candidates are computed here.

    Raises:
        CallError: not an index. StoreError: unfinished, damaged or of another format version.

    Example:
        >>> results = gradindex.open("idx").query(["gen.png"], k=10, method="retrac")
    """
    return Index(Store.finished(path), model, resolve_device(device), ray)


class Index:
    """An open index: the store, and the model that a query's gradient needs, loaded at the first query.

    Attributes:
        device: where gradients are taken.
        store: the gradient store; `store.unnormalized`, `store.normalized` are zarr arrays [C, N, T, D].
        seconds: how long the last query took, `{"gradients": …, "search": …}`; loading the model is in neither,
            whitening in the search.
    """

    def __init__(self, store: Store, model: str | Path | None, device: str, ray: str | None = None) -> None:
        self.store, self._model, self.device, self._ray = store, model, device, ray
        self._searches: dict[str, SearchIndex] = {}
        self._whitenings: dict[str, Whitening] = {}
        self.seconds = {"gradients": 0.0, "search": 0.0}

    def query(
        self,
        pictures: Sequence[Picture],
        k: int = 10,
        method: str = "retrac",
        *,
        opponents: bool = False,
        by_timestep: bool = False,
        **options: Unpack[QueryOptions],
    ) -> list[Result]:
        """The training pictures with the highest influence on each picture.

        Args:
            pictures: Q paths, PIL pictures, or tensors [channels, height, width] in [−1, 1].
            k: how many hits; more than there are pictures gives all of them.
            method: "retrac" (cosine) or "tracin" (inner product).
            opponents: also return the k most negative.
            by_timestep: also tell what each timestep adds to a hit's score.
            options: see `QueryOptions`.

        Returns:
            Q results, each with exact scores, best first; equal scores in the order of rows.

        Raises:
            CallError, RecipeMismatch: the call, or the model where the build found it, does not fit the store.
        """
        require_positive(k=k)
        require("method", method, METHODS)
        if by_timestep and self.store.recipe.rows == FOLDED:
            raise CallError("by_timestep: the rows of this index are folded into one for each picture")
        question = self.question(pictures, **options)
        (block,), span = self.query_blocks(question, method), question.span
        began = time.perf_counter()
        names = [picture_name(picture, number) for number, picture in enumerate(pictures)]
        proposed = self._proposed(block, k, method, question, (1, -1) if opponents else (1,))
        if not any(map(len, proposed[1])):
            where = f"timesteps = {options.get('timesteps')}: no picture has a row there"
            raise CallError(where if span else "every picture was skipped or removed: there is none to answer with")
        hits = partial(self._hits, block, k, method, span, by_timestep)
        best = hits(1, proposed[1])
        worst = hits(-1, proposed[-1]) if opponents else [None] * len(names)
        self.seconds["search"] += time.perf_counter() - began
        return [Result(*row) for row in zip(names, best, worst, strict=True)]

    def scores(
        self, pictures: Sequence[Picture], method: str = "retrac", **options: Unpack[QueryOptions]
    ) -> np.ndarray:
        """The exact score of every training picture, float32 [Q, N].

        NaN for pictures that the build skipped, and for those without a row in the range of timesteps asked for. The
        arguments are those of `query`.
        """
        return self.scores_by_method(pictures, method, **options)[method]

    def scores_by_method(
        self, pictures: Sequence[Picture], *methods: str, **options: Unpack[QueryOptions]
    ) -> dict[str, np.ndarray]:
        """The `scores` of several methods, whose query gradients are taken once."""
        for method in methods:
            require("method", method, METHODS)
        question = self.question(pictures, **options)
        pairs = zip(methods, self.query_blocks(question, *methods), strict=True)
        return {method: self.block_scores(method, block, question.span) for method, block in pairs}

    def block_scores(self, method: str, block: np.ndarray, span: Span | None = None) -> np.ndarray:
        """The exact score of every training picture for query blocks [Q, C, T, D], float32 [Q, N]."""
        parts = [scores for _, scores in scan(self.store, block, method, span)]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def thumbnail(self, row: int) -> Image.Image | None:
        """The training picture of a row as it is on disk; None when it is gone, or another one is in its place."""
        if self.dataset is None or self.dataset.mark(row) != self.store.mark(row):
            return None
        return self.dataset.thumbnail(row)

    def arrays(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1]."""
        return to_arrays(pictures, self.store.recipe.image)

    @cached_property
    def dataset(self) -> Dataset | None:
        """The training pictures, in the order of the store's rows; None when they are no longer where they were."""
        facts = self.store.attributes["data"]
        try:
            dataset = open_dataset(facts["source"], Columns(**facts["columns"]))
        except GradindexError:
            return None
        if self.store.recipe.classes is None:
            dataset = replace(dataset, labels=None)
        positions = dataset.positions(self.store.sample_ids)
        gone = np.setdiff1d(np.flatnonzero(positions < 0), self.store.left_out)
        return None if len(gone) else dataset.in_order(self.store.sample_ids, positions)

    def require_dataset(self, advice: str = "") -> Dataset:
        """The training pictures; CallError, with some advice, when they are no longer where they were."""
        if self.dataset is None:
            raise CallError(f"data {self.store.attributes['data']['source']}: no longer there, or changed{advice}")
        return self.dataset

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The build's checkpoints, once it is sure that they are still the same."""
        header = self.store.attributes
        paths = [entry["path"] for entry in header["checkpoints"]]
        if self._model is not None:
            if len(paths) > 1:
                raise CallError(f"model = {str(self._model)!r}: this index has {len(paths)} checkpoints")
            paths = [str(self._model)]
        model = self._model or header["model"]
        checkpoints = Checkpoints(paths, model, header["scheduler"], self.device, self.store.recipe.dtype)
        facts = {"noise_version": NOISE_VERSION, "projection_version": PROJECTION_VERSION, **checkpoints.facts()}
        now = replace(self.store.recipe, **facts)
        self.store.require_recipe(now, f"model {model} or this gradindex is not the one that indexed")
        return checkpoints

    @cached_property
    def fitting_batch(self) -> int:
        """How many (picture, timestep, draw) go through the model at once."""
        return fitting_batch(self.checkpoints[0], self.store.recipe)

    def question(self, pictures: Sequence[Picture], **options: Unpack[QueryOptions]) -> Question:
        """A query's pictures and options, checked against the store."""
        _ = self.store.summary  # raises unless a build has finished
        return Question.of(self.store, pictures, **options)

    def query_blocks(self, question: Question, *methods: str) -> list[np.ndarray]:
        """What each row [c, i, t] is multiplied with, per method: weighted query gradients, [Q, C, T, D] float32.

        For folded rows: folded likewise, [Q, 1, 1, W], and divided by T. Whitened at last, unless they are not to be.
        """
        recipe = self.store.recipe
        whole: list[list[np.ndarray]] = [[] for _ in methods]
        times = grid(question.timesteps, self.checkpoints[0].num_train_timesteps)
        events = grid_events(recipe, question.ids, times, question.draws)
        count = events.timesteps.size * events.draws * len(question.weights)
        self.seconds = {"gradients": 0.0, "search": 0.0}
        with tqdm(total=count, desc="query", unit="gradient", delay=2, disable=None) as bar:
            for checkpoint, weight in enumerate(question.weights):
                taken = self._gradients(question, events, checkpoint, bar.update)
                for method, parts in zip(methods, whole, strict=True):
                    gradients = unit(taken) if method == "retrac" else taken
                    parts.append(np.float32(weight) * question.beside_rows(gradients, recipe.per_picture))
        blocks = [np.stack(parts, axis=1) for parts in whole]
        if recipe.rows == FOLDED:
            blocks = [search_vectors(block, recipe)[:, None, None] / recipe.per_picture for block in blocks]
        if (damping := question.damping) is not None:
            began = time.perf_counter()
            blocks = [self.whitened(method, block, damping) for method, block in zip(methods, blocks, strict=True)]
            self.seconds["search"] += time.perf_counter() - began
        return blocks

    def _gradients(
        self, question: Question, events: Events, checkpoint: int, progress: Callable[[int], object]
    ) -> np.ndarray:
        """The projected gradients of a question's pictures at a checkpoint, [Q, ·, D] float32."""
        denoiser, recipe = self.checkpoints[checkpoint], self.store.recipe
        batch = self.fitting_batch if question.batch_size == "auto" else int(question.batch_size)
        began = time.perf_counter()
        with capture_for(denoiser, recipe) as capture:
            taken = sample_gradients(
                denoiser, capture, recipe, question.arrays, events, question.labels, batch_size=batch, progress=progress
            )
        self.seconds["gradients"] += time.perf_counter() - began
        return taken

    def whitened(self, method: str, block: np.ndarray, damping: float = DAMPING) -> np.ndarray:
        """(GᵀG/N + λI)⁻¹ q of query blocks [Q, C, T, D] float32."""
        if is_wide(self.store):
            return whitened_by_some(self.store, method, block, damping)
        return self._whitening(method).whitened(block, damping)

    def _whitening(self, method: str) -> Whitening:
        if method not in self._whitenings:
            self._whitenings[method] = Whitening(self.store, method, self.device)
        return self._whitenings[method]

    def _proposed(
        self, block: np.ndarray, k: int, method: str, question: Question, signs: Sequence[int]
    ) -> dict[int, list[np.ndarray]]:
        """Rows among which the best k of each query are, and the worst (sign −1), ascending: from FAISS or a scan."""
        plain = question.damping is None
        if question.span is None and (plain or (question.damping == DAMPING and not is_wide(self.store))):
            name, whitening = (method, None) if plain else (method + WHITENED, self._whitening(method))
            opened = partial(open_index, self.store, name, self._ray, self.device, whitening)
            try:
                if name not in self._searches:
                    self._searches[name] = opened()
                found = self._searches[name].proposed(block, k, signs)
            except StoreError:  # of an index file; where the rows are damaged, it is raised again
                build_index(self.store, name, whitening=whitening)
                self._searches[name] = opened()
                found = self._searches[name].proposed(block, k, signs)
            if found is not None:
                return found
        return scan_both_ends(self.store, block, method, question.span, k)

    def _hits(
        self, block: np.ndarray, k: int, method: str, span: Span | None, by_timestep: bool, sign: int,
        proposed: Sequence[np.ndarray],
    ) -> list[list[Hit]]:  # fmt: skip
        """The k best of the proposed rows for each query; `sign` −1 looks for the most negative."""
        rows, columns = np.unique(np.concatenate(proposed)), as_columns(block)
        cuts = range(0, len(rows), READ_ROWS)
        parts = [contributions(self.store, columns, method, rows[i : i + READ_ROWS], span) for i in cuts]
        every = np.concatenate(parts, axis=1)
        scores = every.sum((2, 3)).astype(np.float32)
        errors = stderrs(every.sum(2), self.store.recipe, span)
        results = []
        for query, values in enumerate(scores):
            mine = np.searchsorted(rows, proposed[query])  # a query's answer does not depend on the others'
            best = mine[np.lexsort((proposed[query], -sign * values[mine]))][:k]
            results.append(
                [
                    Hit(
                        rank=rank,
                        id=self.store.sample_ids[int(rows[place])],
                        row=int(rows[place]),
                        score=float(values[place]),
                        stderr=None if errors is None else float(errors[query, place]),
                        by_timestep=spread(self.store, int(rows[place]), every[query, place], span)
                        if by_timestep
                        else None,
                    )
                    for rank, place in enumerate(best, 1)
                ]
            )
        return results
