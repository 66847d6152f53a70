"""A picture → its gradient → candidates from FAISS → exact scores from the store."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image
from tqdm import tqdm

from gradindex.dataset import UNREADABLE, Columns, Dataset, open_dataset, to_array
from gradindex.denoiser import Checkpoints, resolve_device
from gradindex.errors import CallError, GradindexError
from gradindex.gradients.rows import capture_for, fitting_batch, grid_events, sample_gradients
from gradindex.index import ROWS_OF, candidates, load_index, search_vectors
from gradindex.place import Place
from gradindex.recipe import NOISE_VERSION, PROJECTION_VERSION, grid, require, require_positive
from gradindex.results import Hit, Result
from gradindex.scoring import Span, contributions, inside, scan, spread, stderrs, to_span, unit
from gradindex.store import Store

Picture = str | Path | Image.Image | Any  # a path, a PIL picture, or a tensor [channels, height, width] in [−1, 1]

QUERY_TIMESTEPS = 25  # of the mean pairing
QUERY_DRAWS = 2
OVERFETCH = 500  # candidates that FAISS proposes at least
READ_ROWS = 256  # candidates whose rows are in memory at once


def open(path: str | Path | Place, *, model: str | Path | None = None, device: str = "auto") -> "Index":
    """Open an index that `build` made.

    Args:
        path: the index: a folder, or a URL such as s3://bucket/index.
        model: where the model is now, when it was moved since the build (one checkpoint only).

    Raises:
        CallError: not an index. StoreError: unfinished, damaged or of another format version.

    Example:
        >>> results = gradindex.open("idx").query(["gen.png"], k=10, method="retrac")
    """
    index = Index(Store(path), model, resolve_device(device))
    _ = index.skipped  # raises unless all of it is built
    return index


class QueryOptions(TypedDict, total=False):
    """How a query's gradients are taken; the same for `query` and `scores`.

    pairing: "matched" (a grid's default): at the store's own timesteps, draws and noise, compared timestep by
        timestep. "mean" (recorded timesteps'): over a grid of their own, averaged first, the paper's way.
    query_timesteps, query_draws: that grid of the mean pairing, 25 timesteps × 2 draws by default.
    timesteps: (A, B): score only rows at timesteps A ≤ t < B, exactly, by a scan of the store; either end may be None.
    weights: one per checkpoint, in place of the build's.
    class_label: of the pictures, for a class-conditional model; one for all, or one each.
    ids: what keys a query's own noise; by default the SHA-256 hex of its float32 tensor.
    batch_size: how many (picture, timestep, draw) go through the model at once, as many as fit for "auto" (default);
        changes nothing else.
    """

    pairing: str | None
    query_timesteps: int | Sequence[int] | None
    query_draws: int | None
    timesteps: tuple[int | None, int | None] | None
    weights: Sequence[float] | None
    class_label: int | Sequence[int] | None
    ids: Sequence[str] | None
    batch_size: int | str


class Index:
    """An open index: the store, and the model that a query's gradient needs, loaded at the first query.

    Attributes:
        store: the gradient store; `store.unnormalized`, `store.normalized` are zarr arrays [C, N, T, D].
        seconds: how long the last query took, `{"gradients": …, "search": …}`; loading the model is in neither.
    """

    def __init__(self, store: Store, model: str | Path | None, device: str) -> None:
        self.store, self._model, self._device = store, model, device
        self._faiss: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

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
        (block,), span = self._query_blocks(pictures, method, **options), to_span(options.get("timesteps"))
        began = time.perf_counter()
        names = [picture_name(picture, number) for number, picture in enumerate(pictures)]
        scanned = None if span is None else scan(self.store, block, method, self.skipped, span)
        if scanned is not None and np.isnan(scanned).all():
            raise CallError(f"timesteps = {options['timesteps']}: no picture has a row there")
        search = partial(self._search, block, k, method, span, scanned, by_timestep)
        best = search(sign=1)
        worst = search(sign=-1) if opponents else [None] * len(names)
        self.seconds["search"] = time.perf_counter() - began
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
        blocks, span = self._query_blocks(pictures, *methods, **options), to_span(options.get("timesteps"))
        pairs = zip(methods, blocks, strict=True)
        return {method: scan(self.store, block, method, self.skipped, span) for method, block in pairs}

    def thumbnail(self, row: int) -> Image.Image | None:
        """The training picture of a row as it is on disk; None when the data set is no longer where it was."""
        return None if self.dataset is None else self.dataset.thumbnail(row)

    def arrays(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1]."""
        return np.stack([_picture_array(picture, self.store.recipe.image) for picture in pictures])

    @cached_property
    def skipped(self) -> list[int]:
        """Row numbers without a picture; StoreError while shards are missing."""
        return self.store.skipped()

    @cached_property
    def dataset(self) -> Dataset | None:
        """The training pictures; None when they are no longer where they were, or changed."""
        facts = self.store.attributes["data"]
        try:
            dataset = open_dataset(facts["source"], Columns(**facts["columns"]))
        except GradindexError:
            return None
        return dataset if dataset.fingerprint == facts["fingerprint"] else None

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
        checkpoints = Checkpoints(paths, model, header["scheduler"], self._device, self.store.recipe.dtype)
        facts = {"noise_version": NOISE_VERSION, "projection_version": PROJECTION_VERSION, **checkpoints.facts()}
        now = replace(self.store.recipe, **facts)
        self.store.require_recipe(now, f"model {model} or this gradindex is not the one that indexed")
        return checkpoints

    @cached_property
    def fitting_batch(self) -> int:
        """How many (picture, timestep, draw) go through the model at once."""
        return fitting_batch(self.checkpoints[0], self.store.recipe)

    def _query_blocks(
        self,
        pictures: Sequence[Picture],
        *methods: str,
        pairing: str | None = None,
        query_timesteps: int | Sequence[int] | None = None,
        query_draws: int | None = None,
        timesteps: tuple[int | None, int | None] | None = None,
        weights: Sequence[float] | None = None,
        class_label: int | Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        batch_size: int | str = "auto",
    ) -> list[np.ndarray]:
        """What each row [c, i, t] is multiplied with, per method: weighted query gradients, [Q, C, T, D] float32."""
        for method in methods:
            require("method", method, tuple(ROWS_OF))
        recorded = self.store.recipe.events is not None
        pairing = pairing or ("mean" if recorded else "matched")
        require("pairing", pairing, ("matched", "mean"))
        if recorded and pairing == "matched":
            raise CallError("pairing matched: every picture has recorded timesteps of its own here; use mean")
        if batch_size != "auto":
            require_positive(batch_size=batch_size)  # type: ignore[arg-type]
        recipe, weights = self.store.recipe, self.store.attributes["weights"] if weights is None else weights
        if len(weights) != len(recipe.checkpoints):
            raise CallError(f"weights = {list(weights)}: this index has {len(recipe.checkpoints)} checkpoints")
        if pairing == "matched" and (query_timesteps is not None or query_draws is not None):
            raise CallError("with pairing matched the timesteps and draws are the store's; leave them out, or use mean")
        if not len(pictures):
            raise CallError("pictures: give at least one")
        arrays = self.arrays(pictures)
        labels = to_labels(class_label, len(arrays), recipe.classes)
        ids = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays] if ids is None else list(ids)
        if len(ids) != len(arrays):
            raise CallError(f"ids: {len(ids)} for {len(arrays)} pictures")
        _ = self.skipped  # raises unless all of it is built
        own_timesteps, own_draws = None, None
        wanted = [j for j, t in enumerate(recipe.timesteps) if inside(t, to_span(timesteps))]
        if not wanted and not recorded:
            raise CallError(f"timesteps = {timesteps}: the index has none of them, but {list(recipe.timesteps)}")
        if pairing == "matched":
            own_timesteps = tuple(recipe.timesteps[j] for j in wanted)
        if pairing == "mean":
            asked = QUERY_TIMESTEPS if query_timesteps is None else query_timesteps
            own_timesteps = grid(asked, self.checkpoints[0].num_train_timesteps)
            own_draws = QUERY_DRAWS if query_draws is None else query_draws
            require_positive(query_draws=own_draws)
        count = len(own_timesteps or recipe.timesteps) * (own_draws or recipe.draws) * len(arrays) * len(weights)
        bar = tqdm(total=count, desc="query", unit="gradient", delay=2, disable=None)
        blocks: list[list[np.ndarray]] = [[] for _ in methods]
        self.seconds = {"gradients": 0.0}
        for checkpoint, weight in enumerate(weights):
            denoiser = self.checkpoints[checkpoint]
            batch = self.fitting_batch if batch_size == "auto" else int(batch_size)
            began = time.perf_counter()
            with capture_for(denoiser, recipe) as capture:
                taken = sample_gradients(
                    denoiser,
                    capture,
                    recipe,
                    arrays,
                    grid_events(recipe, ids, own_timesteps, own_draws),
                    labels,
                    batch_size=batch,
                    progress=bar.update,
                )
            self.seconds["gradients"] += time.perf_counter() - began
            for method, parts in zip(methods, blocks, strict=True):
                block = unit(taken) if method == "retrac" else taken
                if pairing == "mean":
                    block = block.mean(1, keepdims=True).repeat(recipe.per_picture, axis=1)
                elif len(wanted) < recipe.per_picture:
                    block, part = np.zeros((len(block), recipe.per_picture, recipe.dim), np.float32), block
                    block[:, wanted] = part
                parts.append(np.float32(weight) * block)
        bar.close()
        return [np.stack(parts, axis=1) for parts in blocks]

    def _propose(self, block: np.ndarray, k: int, method: str, sign: int, scanned: np.ndarray | None) -> np.ndarray:
        """Rows among which the best k of each query are, ascending, [Q, candidates]: from FAISS, or from a scan."""
        if scanned is not None:
            order = np.argsort(-sign * scanned, axis=1, kind="stable")  # NaN comes last
            return np.sort(order[:, : min(k, int((~np.isnan(scanned[0])).sum()))], axis=1)
        if method not in self._faiss:
            self._faiss[method] = load_index(self.store, method)
        return candidates(self._faiss[method], search_vectors(sign * block, self.store.recipe), max(10 * k, OVERFETCH))

    def _search(
        self, block: np.ndarray, k: int, method: str, span: Span | None, scanned: np.ndarray | None,
        by_timestep: bool, sign: int,
    ) -> list[list[Hit]]:  # fmt: skip
        """The k best rows for each query; `sign` −1 looks for the most negative."""
        proposed = self._propose(block, k, method, sign, scanned)
        rows = np.unique(proposed)
        cuts = range(0, len(rows), READ_ROWS)
        parts = [contributions(self.store, block, method, rows[i : i + READ_ROWS], span) for i in cuts]
        every = np.concatenate(parts, axis=1) if parts else np.empty((len(block), 0, *self.store.shape[::2]))
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
                        id=self.store.sample_ids[rows[place]],
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


def picture_name(picture: Picture, number: int) -> str:
    """What a picture is called in results: its path, or its number."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


def _picture_array(picture: Picture, image: tuple[int, int, int]) -> np.ndarray:
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as opened:
                return to_array(opened, image)
        except CallError:
            raise
        except UNREADABLE as error:
            raise CallError(f"{picture}: not a picture that opens ({error})") from error
    if isinstance(picture, Image.Image):
        return to_array(picture, image)
    if hasattr(picture, "detach"):  # a torch tensor of any type, on any device
        picture = picture.detach().float().cpu()
    array = np.asarray(picture, dtype=np.float32)
    if array.shape != image or not np.isfinite(array).all() or np.abs(array).max() > 1:
        raise CallError(f"a picture tensor of shape {array.shape}: give {image} with values in [-1, 1]")
    return array


def to_labels(class_label: int | Sequence[int] | None, count: int, classes: int | None) -> list[int] | None:
    """The class labels of `count` queries; None for an unconditional model."""
    if classes is None:
        if class_label is not None:
            raise CallError(f"class_label = {class_label}: the model is not class-conditional")
        return None
    if class_label is None:
        raise CallError(f"the model is class-conditional: give class_label, 0 to {classes - 1}")
    labels = [class_label] * count if isinstance(class_label, int) else list(class_label)
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise CallError(f"class_label = {class_label}: give one from 0 to {classes - 1} per picture")
    return labels
