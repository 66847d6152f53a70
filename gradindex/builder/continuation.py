"""The store that a build fills: a new one, or one that an earlier build has begun."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from gradindex.builder.changes import changed_pictures, stats_now
from gradindex.builder.job import BuildJob
from gradindex.builder.options import RECORDED
from gradindex.builder.plan import Plan
from gradindex.builder.upkeep import grow, id_key
from gradindex.data.dataset import Dataset
from gradindex.errors import GradindexError, RecipeMismatch
from gradindex.gradients.high_rank import choose_high_rank
from gradindex.gradients.parameters import choose_parameters, count_parameters
from gradindex.gradients.projection import TWO_SIDED
from gradindex.gradients.weighting import one_spelling
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.denoiser import Denoiser
from gradindex.recipe import Recipe, require_order
from gradindex.store.disk import Disk
from gradindex.store.location import Location
from gradindex.store.manifest import is_store, read_header
from gradindex.store.memory import give_back_freed_memory
from gradindex.store.shard_list import part_of
from gradindex.store.store import Store
from gradindex.wording import share

Asked = int | Sequence[float] | str | None  # timesteps, see `BuildOptions`
HIGH_RANK_PICTURES = 8  # whose gradients tell which weights have a high rank


def continue_or_create(
    location: Location, plan: Plan, overwrite: bool, part: tuple[int, int] = (0, 1)
) -> tuple[Store, BuildJob]:
    """Return the store to fill, one that is there or a new one, and the job of its rows.

    Args:
        overwrite: set a store aside that is another build's, and make a new one.
        part: see `part_of`; pictures of its shards alone are compared with those there were.

    Raises:
        GradindexError: see `_continue_store`, unless `overwrite`.
    """
    location.delete_drafts()
    if isinstance(location, Disk):
        location.unmark()  # a folder that was set aside once, and is in use again
    if is_store(location):
        try:
            return _continue_store(location, plan, part)
        except GradindexError:
            if not overwrite:
                raise
        location.set_aside()
    return _create_store(location, plan)


def as_begun_options(
    location: Location, timesteps: Asked, log: str | Path | None
) -> tuple[Asked, Recipe | None]:
    """Return `timesteps` and `begun` of the options of a build that may go on with an index.

    Going on keeps the index's timesteps, whatever is usual now. Where there is no index whose
    header can be read, or one of recorded timesteps without a log, the build says what is wrong.

    Args:
        timesteps: asked for; None: none were. log: of the build, which recorded ones need.
    """
    if timesteps is not None:
        return timesteps, None
    try:
        begun = Recipe.from_json(read_header(location).recipe)
    except GradindexError:
        return None, None
    if not begun.timesteps and log is not None:
        return RECORDED, None
    return None, begun


def _continue_store(
    location: Location, plan: Plan, part: tuple[int, int]
) -> tuple[Store, BuildJob]:
    """Return the store there, with the data set's new pictures at its end, and its job.

    Raises:
        CallError: it was built from the same checkpoints in another order.
        RecipeMismatch: it is another build's; a picture is gone and was not removed, or is another
            one now.
        StoreError: it is damaged, and so are its copies.
    """
    store = Store.mended(location)
    dataset, new_ids = in_store_order(store, plan.dataset)
    job = plan.job_on(dataset)
    recipe = as_begun(job.recipe, store.recipe, plan.denoisers)
    _require_order(store, recipe, plan)
    store.require_recipe(recipe, "built with another recipe (overwrite replaces it)")
    _check_unchanged(store, dataset, part)
    if new_ids:
        grown = grow(store, new_ids)
        if grown is None:  # another build has, meanwhile
            return _continue_store(location, plan, part)
        store = grown
    return store, replace(job, recipe=recipe)


def as_begun(recipe: Recipe, stored: Recipe, denoisers: Checkpoints) -> Recipe:
    """Return a build's recipe as the build that made a store has completed it.

    That build has found the weights of high rank; another machine may find others. An older
    gradindex projected rows of few parameters too, knew no parts by name, made another digest of
    the same config, and spelled γ as it was typed.
    """
    if recipe.part is not None and stored.params == recipe.part:  # it was a regular expression
        count = count_parameters(denoisers[0], choose_parameters(denoisers[0], stored.params, None))
        dim = count if recipe.projection == "none" else recipe.dim
        recipe = replace(recipe, params=recipe.part, part=None, parameter_count=count, dim=dim)
    if stored.rank is None:
        recipe = recipe.exact_where_narrow()
    config = denoisers.config_digest(stored.config)
    weighting = recipe.weighting
    if one_spelling(stored.weighting) == weighting:
        weighting = stored.weighting
    return replace(recipe, high_rank=stored.high_rank, config=config, weighting=weighting)


def _require_order(store: Store, recipe: Recipe, plan: Plan) -> None:
    """Raise CallError where a plan's checkpoints are those of a store, in another order."""
    paths = [checkpoint.path for checkpoint in plan.origin["checkpoints"]]
    name = "checkpoints" if recipe.base is None else "adapters"
    built = store.recipe.checkpoints
    require_order(built, recipe.checkpoints, paths, name, str(store.location))


def _check_unchanged(store: Store, dataset: Dataset, part: tuple[int, int]) -> None:
    """Raise RecipeMismatch when committed rows were made of another picture than is there now.

    Args:
        dataset: with new pictures at its end. part: whose shards are looked at.
    """
    shards = part_of(store.shards(len(dataset)), part)  # as they are when it has grown
    # The entry of a shard that has grown since still tells of the pictures that it has rows of.
    begun = [replace(shard, stop=shard.start + 1) for shard in shards]
    content_of = cache(dataset.content)
    for shard, entry in store.committed(begun):
        for row in changed_pictures(entry, dataset, content_of):
            raise _other_data(store, f"{dataset.sample_ids[row]!r} is another picture now")
        stats = stats_now(entry, dataset)
        if stats != entry.stats:
            # Its pictures were read, and are the same: the next build need not read them again.
            store.update_stats(shard, entry, stats)


def _create_store(location: Location, plan: Plan) -> tuple[Store, BuildJob]:
    """Return a new, empty store and its job.

    Raises:
        RecipeMismatch: meanwhile a build with another recipe has made a store there.
    """
    job = plan.job_on(plan.dataset)
    recipe = job.recipe.exact_where_narrow()
    if recipe.projection == TWO_SIDED:
        high_rank = find_high_rank(plan.denoisers[0], job, plan.batch_size)
        recipe = replace(recipe, high_rank=high_rank)
    store = Store.create(location, recipe, plan.dataset.sample_ids, **plan.origin)
    recipe = replace(recipe, high_rank=store.recipe.high_rank)
    store.require_recipe(recipe, "another build was started there")
    return store, replace(job, recipe=store.recipe)


def find_high_rank(denoiser: Denoiser, job: BuildJob, batch_size: int) -> tuple[str, ...]:
    """Return the names of the weights that a two-sided projection must shrink less.

    They are chosen by the gradients of a few pictures, evenly spaced over the data set; see
    `choose_high_rank`.

    Raises:
        DataError: none of these pictures can be read.
    """
    spaced = np.linspace(0, len(job.dataset) - 1, HIGH_RANK_PICTURES)
    tried = sorted({int(row) for row in spaced})
    rows, examples, _ = job.examples(tried, denoiser.encoder)
    if denoiser.encoder is not None:
        denoiser.encoder.release()  # not to be in memory beside the gradients
        give_back_freed_memory()
    if not rows:
        raise job.none_readable(tried)
    return choose_high_rank(denoiser, job.recipe, examples, job.ids(rows), batch_size)


def in_store_order(store: Store, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Return a data set in the order of a store's rows, then its new pictures; and their ids.

    A picture that was removed from the store is not new, and need not be there: `Dataset.in_order`
    leaves its row without a picture.

    Raises:
        RecipeMismatch: a picture of the store is gone and was not removed.
    """
    stored_ids = store.sample_ids
    positions = dataset.positions(stored_ids)
    absent_ids = [stored_ids[row] for row in np.flatnonzero(positions < 0).tolist()]
    gone = [name for name in absent_ids if not _is_removed(store, name)]
    if gone:
        raise _other_data(
            store,
            f"{share(len(gone), len(stored_ids), 'picture', 'is', 'are')} gone, such as"
            f" {gone[0]!r}; `remove` them first",
        )
    not_stored = np.setdiff1d(np.arange(len(dataset)), positions).tolist()
    new = [row for row in not_stored if not _is_removed(store, dataset.sample_ids[row])]
    new_ids = [dataset.sample_ids[row] for row in new]
    order = np.concatenate([positions, np.array(new, np.int64)])
    if np.array_equal(order, np.arange(len(dataset))):
        return dataset, new_ids  # nothing to copy
    # The data set's own texts where it has them: a store's would be copies.
    places = enumerate(positions.tolist())
    ids = [stored_ids[row] if at < 0 else dataset.sample_ids[at] for row, at in places]
    return dataset.in_order([*ids, *new_ids], order), new_ids


def _is_removed(store: Store, sample_id: str) -> bool:
    removed = store.header.removed
    return bool(removed) and id_key(sample_id) in removed


def _other_data(store: Store, difference: str) -> RecipeMismatch:
    """Return the error that a store's pictures are not those of the data set."""
    message = f"{store.location}: built over another data set (overwrite replaces it)"
    return RecipeMismatch(message, [f"data: {difference}"])
