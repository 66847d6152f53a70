"""How fast rows are searched on a GPU, beside what its memory gives: an exact scan, and FAISS."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_profile import wait
from gradient_methods import time_in_turns
from torch import Tensor

from gradindex.errors import GradindexError
from gradindex.search.ann_index import require_faiss

ROUNDS = 7
K = 10
DIM = 4096
ROW_BYTES = 8 << 30  # of the scan's rows
QUERIES = (1, 16, 256)
VECTORS, WIDTH = 200_000, 1024  # that FAISS searches
CODES = (
    "IVF1024,SQfp16",
    "IVF1024,SQ8",
    "IVF1024,PQ32",
)  # PQ64's tables do not fit into shared memory
SMALL_CODES = ("IVF16,SQfp16", "IVF16,SQ8", "IVF16,PQ8")


def scan(device: str, small: bool) -> dict[str, Any]:
    """The best 10 of all rows by one matrix product: seconds, shares of the memory's bandwidth.

    The bandwidth is that of a copy within the device's memory, read and written bytes counted.
    """
    size = 8 << 20 if small else ROW_BYTES
    found: dict[str, Any] = {"row bytes": size, "dim": DIM, **bandwidths(device, size // 2)}
    copied = found["copy, bytes a second"]
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, fast in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = fast
        width = torch.finfo(dtype).bits // 8
        rows = random_rows(size // (width * DIM), device, dtype)
        found[name] = {}
        for count in QUERIES:
            asked = torch.randn(count, DIM, device=device, dtype=dtype)

            def search(rows: Tensor = rows, asked: Tensor = asked) -> Tensor:
                return (asked @ rows.T).topk(K, dim=1).indices

            def products(rows: Tensor = rows, asked: Tensor = asked) -> Tensor:
                return asked @ rows.T

            times = time_in_turns({"search": search, "products": products}, ROUNDS, device)
            seconds = {part: float(np.median(taken)) for part, taken in times.items()}
            found[name][str(count)] = {"seconds": seconds}
            for part, each in seconds.items():
                found[name][str(count)][f"{part}, of the bandwidth"] = size / each / copied
        del rows, search, products
    torch.backends.cuda.matmul.allow_tf32 = before
    return found


def random_rows(count: int, device: str, dtype: torch.dtype) -> Tensor:
    """[count, DIM], a piece at a time, so that no second copy of them is made."""
    rows = torch.empty(count, DIM, device=device, dtype=dtype)
    for piece in rows.split(65536):
        piece.normal_()
    return rows


def bandwidths(device: str, size: int) -> dict[str, float]:
    """Bytes a second: a copy in the device (read and written), a sum (read), the host's copies."""
    one = torch.ones(size // 4, device=device)
    other, host = torch.empty_like(one), torch.ones(min(size, 1 << 30) // 4)
    pinned = host.pin_memory() if device == "cuda" else host
    part = other[: len(host)]
    moves: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: other.copy_(one), 2 * size),
        "sum": (lambda: one.sum(), size),
        "from pinned host memory": (lambda: part.copy_(pinned, non_blocking=True), host.nbytes),
        "from host memory": (lambda: part.copy_(host), host.nbytes),
        "to host memory": (lambda: part.cpu(), host.nbytes),
    }
    times = time_in_turns({name: move for name, (move, _) in moves.items()}, ROUNDS, device)
    found = {}
    for name, (_, moved) in moves.items():
        found[f"{name}, bytes a second"] = moved / float(np.median(times[name]))
    return found


def faiss_ways(device: str, small: bool) -> dict[str, Any]:
    """FAISS's flat and coded search on the GPU beside the CPU's: seconds, recall of the best 10."""
    try:
        faiss = require_faiss()
    except GradindexError as error:
        return {"skipped": str(error)}
    there = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not there:
        return {"skipped": "this FAISS knows no GPU"}
    resources = faiss.StandardGpuResources() if there else None

    def moved(index: Any) -> Any:
        return faiss.index_cpu_to_gpu(resources, 0, index) if resources else index

    count, width = (2000, 64) if small else (VECTORS, WIDTH)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((count, width), dtype=np.float32)
    asked = vectors[:64] + 0.5 * random.standard_normal((64, width), dtype=np.float32)
    flat = faiss.IndexFlatIP(width)
    flat.add(vectors)
    _, truth = flat.search(asked, K)
    found: dict[str, Any] = {"vectors": count, "width": width, "gpu": there}
    found["flat, cpu"] = search_times(flat, asked, truth, device)
    found["flat"] = search_times(moved(flat), asked, truth, device)
    for factory in SMALL_CODES if small else CODES:
        try:
            index = moved(faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT))
            began = time.perf_counter()
            index.train(vectors[: 64 * 1024])
            index.add(vectors)
            made = time.perf_counter() - began
            index.nprobe = 16
            times = search_times(index, asked, truth, device)
            found[factory] = {"seconds to make": made, **times}
        except RuntimeError as error:  # FAISS has not all codes on all GPUs
            found[factory] = f"failed: {error}"
    return found


def search_times(index: Any, asked: np.ndarray, truth: np.ndarray, device: str) -> dict[str, float]:
    """Seconds of one query and of all at once, medians; recall of the true rows."""
    times = time_in_turns(
        {"one": lambda: index.search(asked[:1], K), "all": lambda: index.search(asked, K)},
        ROUNDS,
        device,
    )
    _, rows = index.search(asked, K)
    pairs = zip(rows.tolist(), truth.tolist(), strict=True)
    right = [len({*mine} & {*true}) / K for mine, true in pairs]
    wait(device)
    return {
        "seconds of one query": float(np.median(times["one"])),
        f"seconds of {len(asked)}": float(np.median(times["all"])),
        "recall@10": float(np.mean(right)),
    }
