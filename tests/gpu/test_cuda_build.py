"""A build and its queries on a GPU are those of the CPU; it resumes there, and halves batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from on_cuda import DEVICE, needs_cuda, relative_errors, tf32, write_pictures
from torch import Tensor

import gradindex
from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import grid_events
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.examples import Examples
from gradindex.models.loading import load_denoiser
from gradindex.search import gpu
from gradindex.search.ann_index import require_faiss
from gradindex.search.whitening import Whitening
from gradindex.store import store as store_module
from gradindex.store.store import Store

pytestmark = needs_cuda

GIGABYTE = 2**30


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with tf32(False):
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("cuda") / "pictures", 40)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_pictures(tmp_path_factory.mktemp("cuda") / "queries", 3, seed=1).iterdir())


def build(place: Path, model: Path, data: Path, device: str, **options: Any) -> gradindex.Index:
    defaults = {"timesteps": [100, 700], "dim": 64}
    return gradindex.build(place, model=model, data=data, device=device, **{**defaults, **options})


def rows_of(index: gradindex.Index) -> Tensor:
    return torch.from_numpy(index.store.unnormalized[:])


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
    pictures: Path,
) -> tuple[gradindex.Index, gradindex.Index]:
    """The index made on the CPU, and the one made on the GPU."""
    folder = tmp_path_factory.mktemp("both")
    with tf32(False):
        here = build(folder / "here", model, pictures, "cpu")
        return here, build(folder / "there", model, pictures, DEVICE)


def test_a_build_gives_the_rows_of_the_cpu(both: tuple[gradindex.Index, gradindex.Index]) -> None:
    here, there = both
    assert here.store.recipe == there.store.recipe
    assert relative_errors(rows_of(there), rows_of(here)).max() < 1e-4
    units = [torch.from_numpy(index.store.normalized[:].astype(np.float32)) for index in both]
    assert relative_errors(units[1], units[0]).max() < 2e-3  # float16


@pytest.mark.parametrize("method", ["tracin", "retrac"])
@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
def test_queries_give_the_answers_of_the_cpu(
    both: tuple[gradindex.Index, gradindex.Index],
    queries: list[Path],
    method: str,
    whiten: bool,
) -> None:
    """Scores agree; whitening multiplies rounding by up to 1 / damping, 3,333."""
    answers = [index.query(queries, k=5, method=method, whiten=whiten) for index in both]
    scores = [torch.from_numpy(index.scores(queries, method, whiten=whiten)) for index in both]
    assert relative_errors(scores[1], scores[0]).max() < (2e-2 if whiten else 1e-4)
    for one, other in zip(*answers, strict=True):
        assert one.ids[0] == other.ids[0]
        largest = max(abs(hit.score) for hit in one.hits)
        for hit, twin in zip(one.hits, other.hits, strict=True):
            assert abs(hit.score - twin.score) <= (0.05 if whiten else 1e-3) * largest


def test_an_index_is_queried_on_either_device(
    both: tuple[gradindex.Index, gradindex.Index],
    queries: list[Path],
) -> None:
    """The CPU opens what the GPU made, and the other way round."""
    places = [index.store.location for index in both]
    for place, device in zip(places, (DEVICE, "cpu"), strict=True):
        swapped = gradindex.open(place, device=device)
        own = gradindex.open(place, device="cpu" if device == DEVICE else DEVICE)
        for whiten in (False, True):
            scores = [index.scores(queries, whiten=whiten) for index in (swapped, own)]
            errors = relative_errors(*map(torch.from_numpy, scores))
            assert errors.max() < (2e-2 if whiten else 1e-4)


def test_the_device_may_be_numbered(
    tmp_path: Path,
    model: Path,
    pictures: Path,
    queries: list[Path],
) -> None:
    numbered = "cpu" if DEVICE == "cpu" else "cuda:0"
    index = build(tmp_path / "index", model, pictures, numbered)
    opened = gradindex.open(tmp_path / "index", device=numbered)
    assert opened.query(queries, k=3) == index.query(queries, k=3)


def test_a_build_in_half_precision(
    tmp_path: Path,
    model: Path,
    pictures: Path,
    both: tuple[gradindex.Index, gradindex.Index],
) -> None:
    """Rows point where float32's do."""
    for dtype in ("bfloat16", "float16"):
        index = build(tmp_path / dtype, model, pictures, DEVICE, dtype=dtype)
        cosines = torch.cosine_similarity(
            rows_of(index).double(),
            rows_of(both[0]).double(),
            dim=-1,
        )
        assert cosines.min() > 0.98


def test_a_stopped_build_goes_on(
    tmp_path: Path,
    model: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped after two of five shards, then rerun: the same rows."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 8)
    whole = build(tmp_path / "whole", model, pictures, DEVICE)
    write, written = Store.write, []

    def stops(self: Store, shard: Any, *args: Any) -> None:
        if len(written) >= 2:
            raise KeyboardInterrupt
        write(self, shard, *args)
        written.append(shard.name)

    monkeypatch.setattr(Store, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "index", model, pictures, DEVICE)
    written.clear()
    monkeypatch.setattr(Store, "write", write)
    resumed = build(tmp_path / "index", model, pictures, DEVICE)
    assert relative_errors(rows_of(resumed), rows_of(whole)).max() < 1e-5


def test_the_rows_depend_on_no_batch_size(
    tmp_path: Path,
    model: Path,
    pictures: Path,
    both: tuple[gradindex.Index, gradindex.Index],
) -> None:
    for batch_size in (1, 7):
        index = build(tmp_path / str(batch_size), model, pictures, DEVICE, batch_size=batch_size)
        assert relative_errors(rows_of(index), rows_of(both[1])).max() < 1e-4


def test_a_class_conditional_build(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_class_embeds=2)
    for seed, label in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "classes" / label, 4, seed=seed)
    asked = sorted((tmp_path / "classes").rglob("*.png"))[::4]
    here = build(tmp_path / "here", model, tmp_path / "classes", "cpu")
    there = build(tmp_path / "there", model, tmp_path / "classes", DEVICE)
    assert relative_errors(rows_of(there), rows_of(here)).max() < 1e-4
    scores = [index.scores(asked, class_label=[0, 1], whiten=False) for index in (there, here)]
    assert relative_errors(*map(torch.from_numpy, scores)).max() < 1e-4


@pytest.mark.parametrize("rows", ["full", "folded"])
def test_two_checkpoints(tmp_path: Path, model: Path, pictures: Path, rows: str) -> None:
    checkpoints = [model, make_model(tmp_path / "second", seed=1)]
    options: dict[str, Any] = {"checkpoints": checkpoints, "rows": rows, "noise": "own", "draws": 2}
    here = build(tmp_path / "here", model, pictures, "cpu", **options)
    there = build(tmp_path / "there", model, pictures, DEVICE, **options)
    assert relative_errors(rows_of(there), rows_of(here)).max() < 1e-4


@contextmanager
def little_memory(monkeypatch: pytest.MonkeyPatch, spare: int, samples: int) -> Iterator[list[int]]:
    """Only `spare` bytes beyond what this process holds; on the CPU, batches of so many `samples`.

    Yields the sizes of the batches that did fit.
    """
    gradients, fitted = Capture.gradients, list[int]()

    def counted(self: Capture, losses: Any, scale: float = 1) -> Tensor:
        rows = gradients(self, losses, scale)
        if DEVICE == "cpu" and len(rows) > samples:
            raise torch.OutOfMemoryError
        fitted.append(len(rows))
        return rows

    monkeypatch.setattr(Capture, "gradients", counted)
    if DEVICE == "cpu":
        yield fitted
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    limit = (torch.cuda.memory_reserved(DEVICE) + spare) / total
    torch.cuda.set_per_process_memory_fraction(limit, torch.device(DEVICE).index or 0)
    try:
        yield fitted
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, torch.device(DEVICE).index or 0)


def test_a_batch_that_does_not_fit_is_halved(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows are the same; once halved, a batch does not grow again."""
    place = make_model(tmp_path / "model", sample_size=32, block_out_channels=(32, 32))
    denoiser = load_denoiser(place, device=DEVICE)
    index = build(tmp_path / "index", place, write_pictures(tmp_path / "pictures", 4, 32), DEVICE)
    recipe, ids = (
        index.store.recipe,
        [f"{number}" for number in range(128 if DEVICE != "cpu" else 8)],
    )
    shape = len(ids), *recipe.image
    chosen = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def rows(batch_size: int) -> Tensor:
        events = grid_events(recipe, ids)
        with capture_for(denoiser, recipe) as capture:
            found = sample_gradients(
                denoiser,
                capture,
                recipe,
                Examples(chosen),
                events,
                batch_size=batch_size,
            )
        return torch.from_numpy(found)

    truth = rows(4)
    with little_memory(monkeypatch, GIGABYTE // 8, 4) as fitted:
        found = rows(2 * len(ids))
    assert relative_errors(found, truth).max() < 1e-4
    assert sum(fitted) == 2 * len(ids)
    assert max(fitted) < 2 * len(ids)
    assert fitted == sorted(fitted, reverse=True)


def test_one_picture_that_does_not_fit_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 512 if DEVICE != "cpu" else 16
    denoiser = load_denoiser(make_model(tmp_path / "model", sample_size=size), device=DEVICE)
    data = write_pictures(tmp_path / "pictures", 2)
    small = build(tmp_path / "index", make_model(tmp_path / "small"), data, DEVICE)
    recipe = replace(small.store.recipe, image=(1, size, size))
    x = np.zeros((1, *recipe.image), np.float32)
    with (
        little_memory(monkeypatch, GIGABYTE // 16, 0),
        capture_for(denoiser, recipe) as capture,
        pytest.raises(
            ModelError,
            match="one picture at one timestep does not fit into the device's memory",
        ),
    ):
        sample_gradients(
            denoiser,
            capture,
            recipe,
            Examples(x),
            grid_events(recipe, ["a"]),
            batch_size=4,
        )


def test_faiss_finds_the_same_on_the_gpu() -> None:
    faiss = require_faiss()
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        pytest.skip("needs faiss-gpu")
    random = np.random.default_rng(0)
    vectors, asked = (random.standard_normal((count, 96)).astype(np.float32) for count in (5000, 7))
    here = faiss.IndexFlatIP(96)
    here.add(vectors)
    there = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, here)
    scores, rows = here.search(asked, 20)
    scores_there, rows_there = there.search(asked, 20)
    np.testing.assert_allclose(scores_there, scores, rtol=1e-4, atol=1e-4)
    assert (rows == rows_there).mean() > 0.95


needs_own_memory = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU's own memory")


@needs_own_memory
def test_vectors_that_do_not_fit_on_the_gpu_are_searched_on_the_cpu() -> None:
    """The GPU's own free memory decides, which shrinks by what lies there."""
    faiss: Any = SimpleNamespace(StandardGpuResources=object, get_num_gpus=lambda: 1)
    before = gpu.free_memory_on(DEVICE)
    filling = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    free = gpu.free_memory_on(DEVICE)
    assert 0 < free <= before - filling.nbytes
    assert before < torch.cuda.get_device_properties(DEVICE).total_memory
    assert gpu.faiss_resources(faiss, DEVICE, free // 4) is not None
    with pytest.warns(UserWarning, match=r"search vectors do not fit on cuda .*on the CPU"):
        assert gpu.faiss_resources(faiss, DEVICE, free) is None


@needs_own_memory
def test_factors_are_kept_where_they_fit_on_the_gpu(
    both: tuple[gradindex.Index, gradindex.Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this machine has: with nothing free on the GPU they are read at each query."""
    store = both[1].store
    block = store.unnormalized[:, :3].transpose(1, 0, 2, 3)
    kept = Whitening(store, "retrac", DEVICE)
    expected = kept.whitened(block)
    assert len(kept._open) == len(kept.record.blocks)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 1 << 40))
    read = Whitening(store, "retrac", DEVICE)
    np.testing.assert_array_equal(read.whitened(block), expected)
    assert read._open == {}


def test_a_flat_search_file_gives_the_same_candidates_on_the_gpu(
    both: tuple[gradindex.Index, gradindex.Index],
    queries: list[Path],
) -> None:
    """Whichever FAISS there is: `query` from a saved flat index against the exact scan."""
    for index in both:
        scores = index.scores(queries, "retrac", whiten=False)
        for number, answer in enumerate(index.query(queries, k=3, method="retrac", whiten=False)):
            best = np.argsort(-scores[number])[:3]
            hits = [hit.score for hit in answer.hits]
            np.testing.assert_allclose(hits, scores[number][best], rtol=1e-5)
