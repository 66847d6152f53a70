"""Many pictures asked about at once: the answers of each alone, in memory that is bounded."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures
from helpers import RECIPE

import gradindex
from gradindex.search import batches
from gradindex.search.batches import in_batches, largest_batch
from gradindex.search.ranker import READ_ROWS, Ranker
from gradindex.store.store import Store

CANDIDATES, TIMESTEPS, DIM = 200, 8, 16


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of arrays and objects that some work has at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    timesteps = tuple(range(TIMESTEPS))
    recipe = replace(RECIPE, checkpoints=("a" * 64,), timesteps=timesteps, dim=DIM)
    ids = [f"{row:05d}" for row in range(20_000)]
    store = Store.create(tmp_path_factory.mktemp("rows") / "idx", recipe, ids, weights=[1.0])
    random = np.random.default_rng(0)
    for shard in store.shards():
        rows = random.standard_normal((shard.stop - shard.start, TIMESTEPS, DIM), np.float32)
        store.write(shard, rows, np.tile(np.float32(timesteps), (len(rows), 1)))
    store.finish()
    return Store.finished(store.location)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_one_value_is_for_one_picture(size: int) -> None:
    """Of three pictures it would be wrong for two; all come at once, so that this is said."""
    options = {"prompt": ["x"], "ids": ["k"], "query_embedding": np.ones((1, 4))}
    for name, value in options.items():
        ((_, some, own),) = in_batches(["a", "b", "c"], {name: value}, size)
        assert (some, len(own[name])) == (["a", "b", "c"], 1)
    batches_of_one = list(in_batches(["a", "b", "c"], {"against": ["d"]}, size))
    assert all(own["against"] == ["d"] for _, _, own in batches_of_one)


def test_exact_scores_take_memory_by_queries_times_candidates(store: Store) -> None:
    """Not by queries times all queries' candidates: 1.4 GiB of 300 queries × 200 candidates."""
    random = np.random.default_rng(0)
    ranker = Ranker(store, "cpu")
    peaks = []
    for queries in (75, 300):
        block = random.standard_normal((queries, 1, TIMESTEPS, DIM), np.float32)
        proposed = [
            np.sort(random.choice(20_000, CANDIDATES, replace=False)) for _ in range(queries)
        ]
        peaks.append(
            peak_bytes(
                lambda: ranker.hits(block, 10, "tracin", None, False, 1, proposed)  # noqa: B023
            )
        )
    assert peaks[1] < 5 * peaks[0]
    # Of each query its candidates, and some copies of what one piece of the rows adds.
    assert peaks[1] < 300 * (CANDIDATES + 6 * READ_ROWS) * TIMESTEPS * 8
    all_candidates = len(np.unique(np.concatenate(proposed)))
    assert peaks[1] < 300 * all_candidates * TIMESTEPS * 8 / 10


def test_hits_are_those_of_each_query_alone(store: Store) -> None:
    random = np.random.default_rng(1)
    block = random.standard_normal((5, 1, TIMESTEPS, DIM), np.float32)
    proposed = [np.sort(random.choice(20_000, 600, replace=False)) for _ in range(5)]
    proposed[3] = proposed[3][:0]
    ranker = Ranker(store, "cpu")
    for sign in (1, -1):
        lists = ranker.hits(block, 7, "retrac", None, True, sign, proposed)
        exact = ranker.scores("retrac", block)
        for query, hits in enumerate(lists):
            scores = sign * exact[query, proposed[query]]
            expected = proposed[query][np.argsort(-scores, kind="stable")[:7]]
            assert [hit.row for hit in hits] == expected.tolist()
            np.testing.assert_allclose([hit.score for hit in hits], exact[query, expected], 1e-6)
            totals = [sum((hit.by_timestep or {}).values()) for hit in hits]
            np.testing.assert_allclose(totals, exact[query, expected], 1e-5)


# --- batches


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("batches") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=2, dim=16, device="cpu")


@pytest.fixture
def asked(tmp_path: Path) -> list[Path]:
    return sorted(make_pictures(tmp_path / "asked", 5, seed=2).iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ids": ["a", "b", "c", "d", "e"]},
        {"against": [np.zeros((1, 8, 8), np.float32)]},
        {"against": (np.full((1, 8, 8), x / 9, np.float32) for x in range(5))},
        {"embedding": np.eye(9), "query_embedding": np.eye(5, 9)},
    ],
    ids=["plain", "ids", "one against", "against each", "embedding"],
)
def test_batches_change_no_answer(
    index: gradindex.Index,
    asked: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    options = {name: list(v) if name == "against" else v for name, v in options.items()}
    whole = index.query(asked, 4, "tracin", verdict=True, **options)
    two_pictures = 2 * 4 * (2 * 16 + 64)
    monkeypatch.setattr(batches, "BATCH_BYTES", two_pictures)
    assert largest_batch(index.store.recipe) == 2
    taken: list[int] = []
    blocks = index.gradients.blocks

    def counted(query: Any, *arguments: Any) -> Any:
        taken.append(len(query.pictures.ids) // (2 if query.contrast else 1))
        return blocks(query, *arguments)

    monkeypatch.setattr(index.gradients, "blocks", counted)
    in_parts = index.query(asked, 4, "tracin", verdict=True, **options)
    assert taken == [2, 2, 1]
    assert [result.picture for result in in_parts] == [str(path) for path in asked]
    for one, other in zip(whole, in_parts, strict=True):
        assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
        for name in ("score", "z", "pixel", "embedding"):
            values = [[getattr(hit, name) for hit in result.hits] for result in (one, other)]
            if values[0][0] is not None:
                # A contrast is a difference: its rounding is relative to the largest score.
                largest = np.abs(values[0]).max()
                np.testing.assert_allclose(values[1], values[0], rtol=0, atol=1e-4 * largest)
    assert len({tuple(result.seconds.items()) for result in in_parts}) == 1


def test_what_is_wrong_is_said_of_all_pictures(
    index: gradindex.Index, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it happens to fit the first batch."""
    monkeypatch.setattr(batches, "BATCH_BYTES", 1)
    with pytest.raises(gradindex.GradindexError, match="ids: 2 for 5 pictures"):
        index.query(asked, ids=["a", "b"])


def test_pictures_without_a_name_are_counted_through(
    index: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_BYTES", 1)
    zeros = [np.zeros((1, 8, 8), np.float32)] * 3
    names = [result.picture for result in index.query(zeros)]
    monkeypatch.undo()
    assert names == [result.picture for result in index.query(zeros)]
    assert len(set(names)) == 3


def test_a_thousand_pictures_take_the_memory_of_a_batch(
    index: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is asked and answered."""
    random = np.random.default_rng(3)
    thousand = [random.uniform(-1, 1, (1, 8, 8)).astype(np.float32) for _ in range(1000)]
    sizes = [len(some) for _, some, _ in in_batches(thousand, {}, 100)]
    assert sizes == [100] * 10
    seen: list[int] = []
    monkeypatch.setattr(batches, "BATCH_BYTES", 100 * 4 * (2 * 16 + 64))
    blocks = index.gradients.blocks

    def counted(query: Any, *arguments: Any) -> Any:
        answer = blocks(query, *arguments)
        seen.append(len(answer[0][0]))
        return answer

    monkeypatch.setattr(index.gradients, "blocks", counted)
    assert len(index.query(thousand, 1, pixels=False)) == 1000
    assert seen == [100] * 10
