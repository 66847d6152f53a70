"""An open index: a picture → its gradients → candidates → exact scores from the store."""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from PIL import Image

from gradindex.errors import CallError
from gradindex.models.devices import resolve_device
from gradindex.recipe import FOLDED, require, require_positive
from gradindex.search.answering import Request, answer_blocks
from gradindex.search.audit import AuditRequest, audit_result
from gradindex.search.batches import in_batches, joined, largest_batch
from gradindex.search.cosines import with_cosines
from gradindex.search.duplicates import duplicates, named
from gradindex.search.embeddings import Embedding, Embeddings
from gradindex.search.group_scores import group_scores
from gradindex.search.grouping import GroupBy, Grouping, grouping
from gradindex.search.notebook import facts_html, facts_of
from gradindex.search.pictures import Picture, picture_list, picture_name, read_with_origins
from gradindex.search.pixels import TrainingPixels, asked_pixels, compared_shape
from gradindex.search.query import OF_ONE_PICTURE, Query, QueryOptions
from gradindex.search.query_gradients import QueryGradients
from gradindex.search.ranker import Ranker
from gradindex.search.results import Group, Result, Results
from gradindex.search.scoring import METHODS
from gradindex.search.training_pictures import TrainingPictures
from gradindex.search.verdicts import JUDGED, reads_pixels, with_verdicts
from gradindex.store.location import Location
from gradindex.store.store import Store


def open(
    path: str | Path | Location,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    ray: str | None = None,
    denoiser: Any = None,
    adapters: Sequence[str | Path] | str | Path | None = None,
    data: str | Path | None = None,
) -> "Index":
    """Open an index that `build` made.

    Args:
        path: the index: a folder, or a URL such as s3://bucket/index.
        model: where the model is now, when it was moved since the build (one checkpoint only).
        ray: have a Ray cluster hold and search the index files: "local" or an address, as for
            `build`. The query's gradients and the exact scores of the candidates are computed here.
        denoiser: the one of your own that the index was built with.
        adapters: where the adapters are now, in the build's order, when they were moved.
        data: where the training pictures are now, when they were moved; a query needs them for
            thumbnails alone.

    Raises:
        CallError: not an index.
        StoreError: unfinished, damaged or of another format version.

    Examples:
        >>> index = gradindex.open("idx")  # doctest: +SKIP
        >>> results = index.query(["gen.png"], k=10, method="retrac")  # doctest: +SKIP
    """
    store = Store.finished(path)
    return Index(store, model, resolve_device(device), ray, denoiser, adapters, data)


class Index:
    """An open index: the store, and the model that a query's gradient needs.

    The model is loaded at the first query.

    Attributes:
        device: where gradients are taken.
        store: the gradient store; `store.unnormalized`, `store.normalized` are zarr arrays
            [C, N, T, D].
        gradients: takes a query's gradients. ranker: whitens and ranks by them.
        training_pictures: the training pictures, where they still are.
        embeddings: in which they are compared with those asked about.

    Threads may share one: the gradients of their queries are taken one after the other, everything
    else side by side.
    """

    def __init__(
        self,
        store: Store,
        model: str | Path | None,
        device: str,
        ray: str | None = None,
        denoiser: Any = None,
        adapters: Sequence[str | Path] | str | Path | None = None,
        data: str | Path | None = None,
    ) -> None:
        self.store, self.device = store, device
        self.gradients = QueryGradients(store, model, device, denoiser, adapters)
        self.ranker = Ranker(store, device, ray)
        self.training_pictures = TrainingPictures(store, data)
        self.embeddings = Embeddings(store, self.training_pictures, device)
        self.duplicate_rows = cache(partial(duplicates, store, self.training_pictures))

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all N pictures, in the order of rows: the columns of `scores`.

        Those that were skipped or removed are among them, with scores of NaN.
        """
        return self.store.sample_ids

    def __len__(self) -> int:
        """Return N, how many pictures there are; skipped and removed ones count."""
        return self.store.shape[1]

    def __repr__(self) -> str:
        """Return where it lies and what it holds, on one line."""
        return f"<gradindex.Index {', '.join(facts_of(self.store, self.device).values())}>"

    def _repr_html_(self) -> str:
        """Return a table of what it holds, for a notebook."""
        return facts_html(facts_of(self.store, self.device))

    def query(
        self,
        pictures: Picture | Iterable[Picture],
        k: int = 10,
        method: str = "retrac",
        *,
        opponents: bool = False,
        by_timestep: bool = False,
        group_by: GroupBy | None = None,
        verdict: bool = False,
        merge_duplicates: bool = False,
        pixels: bool | None = None,
        embedding: Embedding | None = None,
        query_embedding: Embedding | None = None,
        **options: Unpack[QueryOptions],
    ) -> Results:
        """The training pictures with the highest influence on each picture.

        Args:
            pictures: Q paths, PIL pictures, or tensors [channels, height, width] in [−1, 1]; or one
                alone, which gives a list of one result.
            k: how many hits; more than there are pictures gives all of them.
            method: "retrac" (cosine) or "tracin" (inner product).
            opponents: also return the k most negative.
            by_timestep: also tell what each timestep adds to a hit's score.
            group_by: also tell what groups of pictures did, see `query_groups`; the store is
                scanned for it.
            verdict: also tell what it comes to, see `Verdict`. For it the ten best hits and 50
                other training pictures are read, or all where one looks copied.
            merge_duplicates: take `duplicates` by pixels as one hit, whose score is the sum of
                theirs; all training pictures are read once for it, and the store is scanned.
            pixels: tell the cosine of each hit's pixels with the picture's; None: with `verdict`,
                which reads the hits anyway, where it does.
            embedding: tell their cosine in it, too: a vision model's folder or hub name, whose
                vectors are kept in the index, or a .npy file or array [N, E] in the order of `ids`,
                without the skipped and removed or with them; query_embedding: then those of the
                pictures [Q, E].
            options: see `QueryOptions`.

        Returns:
            Q results, each with exact scores, best first; equal scores in the order of rows. They
            are a list, and write a table of all hits: `results.to_frame()`, `to_csv`, `to_parquet`.

        Raises:
            CallError, RecipeMismatch: the call, or the model where the build found it, does not fit
                the store.
        """
        require_positive(k=k)
        require("method", method, METHODS)
        pictures = picture_list(pictures)
        if by_timestep and self.store.recipe.rows == FOLDED:
            raise CallError(
                "by_timestep: the rows of this index are folded into one a picture; leave it out"
            )
        groups = None if group_by is None else self.grouping(group_by)
        with_pixels = reads_pixels(pixels, verdict, self.store, self.training_pictures)
        training = TrainingPixels(self.training_pictures, compared_shape(self.store.recipe))

        def answers(first: int, pictures: list[Picture], **options: Any) -> list[Result]:
            asked_embedding = options.pop("query_embedding")
            query = self.to_query(pictures, **options)
            arrays = query.pictures.arrays[: len(pictures)]
            vectors = self.embeddings.compared(embedding, asked_embedding, pictures, arrays)
            (block,), seconds = self.gradients.blocks(query, [method], first + 1)
            names = [*map(picture_name, pictures, count(first))]
            clusters = self.duplicate_rows("pixels") if merge_duplicates else None
            most = max(k, JUDGED) if verdict else k
            request = Request(names, query, most, method, opponents, by_timestep, groups, clusters)
            results, standings = answer_blocks(self.store, self.ranker, block, request, seconds)
            if verdict:
                results = with_verdicts(self.store, training, query, results, standings, k)
            if with_pixels:
                asked = asked_pixels(pictures, arrays, training.shape)
                results = with_cosines(results, "pixel", asked, training.read)
            return results if vectors is None else with_cosines(results, "embedding", *vectors)

        each = {**options, "query_embedding": query_embedding}
        batches = in_batches(pictures, each, largest_batch(self.store.recipe))
        results = joined([answers(first, some, **theirs) for first, some, theirs in batches])
        return Results(self.training_pictures.with_captions(results), self.thumbnail)

    def audit(
        self,
        held_out: str | Path,
        k: int = 10,
        method: str = "retrac",
        *,
        group_by: GroupBy | None = None,
        **options: Unpack[QueryOptions],
    ) -> Result:
        """Which training pictures help and which harm on held-out pictures, on average.

        The gradients of all held-out pictures are added up to one query, which searches once.

        Args:
            held_out: a data set as `build` takes it, with the captions or labels that the model
                takes; of the same columns as the training pictures'.
            k: how many on either side.
            group_by: also tell what groups of training pictures do, see `query_groups`.
            method: as for `query`.
            options: as for `query`, without those of a single picture: prompt, class_label, region,
                mask, against, against_prompt, ids.

        Returns:
            Its `hits` are the most helpful, of scores above 0, its `opponents` the most harmful,
            below 0: training on them raises the mean loss of the held-out pictures. Scores are the
            means of the pictures'.

        Raises:
            CallError, DataError: the data set or the options do not fit.
        """
        require_positive(k=k)
        require("method", method, METHODS)
        if unfit := [name for name in OF_ONE_PICTURE if options.get(name) is not None]:
            raise CallError(f"{unfit[0]}: of single pictures; an audit takes all of a data set's")
        groups = None if group_by is None else self.grouping(group_by)
        request = AuditRequest(str(held_out), k, method, groups)
        takes = self.gradients, self.training_pictures, self.ranker
        return audit_result(self.store, *takes, request, options)

    def query_groups(
        self,
        pictures: Picture | Iterable[Picture],
        group_by: GroupBy,
        method: str = "retrac",
        **options: Unpack[QueryOptions],
    ) -> list[list[Group]]:
        """What each group of training pictures did to each picture, from one scan of the store.

        Args:
            pictures: those that are asked about. method: as for `query`.
            options: as for `query`.
            group_by: "folder": that which a picture is in; the name of a column of the data set's
                table; a CSV file of the columns id and group; or {id: group}.

        Returns:
            For each picture its groups, those of the highest sums of scores first.

        Raises:
            CallError: there is no such column or file; an id is not in the index, or in two groups;
                or see `query`.
        """
        require("method", method, METHODS)
        groups = self.grouping(group_by)
        query = self.to_query(pictures, **options)
        (block,) = self.query_blocks(query, method)
        return group_scores(self.store, block, method, query.span, groups)

    def duplicates(self, by: str = "pixels") -> list[list[str]]:
        """The ids of near-duplicate training pictures, cluster by cluster, the largest first.

        Args:
            by: "pixels": of the pictures, also flipped, cut to 90 % of their sides, or both; all
                are read. "rows": of their normalized gradients.

        Raises:
            CallError: another measure, or the training pictures are gone.
        """
        return named(self.store, self.duplicate_rows(by))

    def grouping(self, group_by: GroupBy) -> Grouping:
        """The groups of the training pictures, see `query_groups`."""
        return grouping(self.store, group_by, self.training_pictures.source)

    def scores(
        self,
        pictures: Picture | Iterable[Picture],
        method: str = "retrac",
        **options: Unpack[QueryOptions],
    ) -> np.ndarray:
        """The exact score of every training picture, float32 [Q, N].

        NaN for pictures that the build skipped, and for those without a row in the range of
        timesteps asked for. The arguments are those of `query`.
        """
        return self.scores_by_method(pictures, method, **options)[method]

    def scores_by_method(
        self, pictures: Picture | Iterable[Picture], *methods: str, **options: Unpack[QueryOptions]
    ) -> dict[str, np.ndarray]:
        """The `scores` of several methods, whose query gradients are taken once."""
        for method in methods:
            require("method", method, METHODS)
        query = self.to_query(pictures, **options)
        blocks = self.query_blocks(query, *methods)
        return {
            method: self.ranker.scores(method, block, query.span)
            for method, block in zip(methods, blocks, strict=True)
        }

    def to_query(
        self, pictures: Picture | Iterable[Picture], **options: Unpack[QueryOptions]
    ) -> Query:
        """A query's pictures and options, checked against the store."""
        self.store.require_in_place()
        _ = self.store.summary  # raises unless a build has finished
        return Query.of(self.store, pictures, **options)

    def query_blocks(self, query: Query, *methods: str) -> list[np.ndarray]:
        """What the rows are multiplied with, for each method: [Q, C, T, D] float32.

        They are the `QueryGradients.blocks`, whitened unless the query says not to.
        """
        blocks, _ = self.gradients.blocks(query, methods)
        if query.damping is None:
            return blocks
        return [
            self.ranker.whitened(method, block, query.damping)
            for method, block in zip(methods, blocks, strict=True)
        ]

    def read_pictures(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
        """Pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1].

        Raises:
            CallError: one does not open; or they belong to buckets of different sizes.
        """
        recipe = self.store.recipe
        arrays = [p.array for p in read_with_origins(pictures, recipe.pixels, recipe.buckets)]
        if len({array.shape for array in arrays}) > 1:
            raise CallError("pictures: they belong to buckets of different sizes; give one at once")
        return np.stack(arrays)

    def thumbnail(self, row: int) -> Image.Image | None:
        """The training picture of a row as it is on disk; None when it is gone or another one."""
        return self.training_pictures.thumbnail(row)
