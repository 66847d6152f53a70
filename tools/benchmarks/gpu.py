"""What gradients, a build and a search cost on a GPU: `tools/gpu`, or `tools/bench gpu`.

Every figure is written as soon as it is there; one that fails leaves its traceback in its place.
"""

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gpu_build
import gpu_page
import gpu_search
import numpy as np
import record
import torch
from diffusers.utils import logging
from gpu_models import KINDS, Case, made
from gpu_profile import Utilization, phases, profiled, wait
from gradient_methods import median_ratio, time_in_turns

from gradindex.gradients.graphs import RUNS_BEFORE
from gradindex.store.memory import keep_freed_memory

PRECISIONS = {"float32": False, "tf32": True, "bfloat16": False}  # and whether TF32 is allowed
PROFILED = {"small": "float32", "cifar10": "float32", "lora": "bfloat16", "dit": "bfloat16"}
PARTS = ("scan", "models", "build", "faiss")
BURST = 5  # steps between two synchronizations, where Python may be slower than the GPU
LONG = 0.2  # seconds of a step from which on it surely is not
NO_GRAPH = "auto without graphs"
SECONDS = 1.0  # of measuring each way; and of watching the utilization


class Report:
    """The results so far, in a JSON file and a page beside it.

    Args:
        folder: where gpu.json, gpu.md and gpu-profiles.txt are written.
        seconds: after which nothing more is begun.
    """

    def __init__(self, folder: Path, device: str, command: str, seconds: float) -> None:
        self._folder, self._device, self._until = folder, device, time.monotonic() + seconds
        folder.mkdir(parents=True, exist_ok=True)
        header = record.figure_header(device, command)
        self.results: dict[str, Any] = {**header, "models": {}}
        file = folder / "gpu.json"
        earlier = json.loads(file.read_text()) if file.exists() else {}
        if {name: earlier.get(name) for name in header} == header:
            self.results = earlier  # of an earlier part of this run, which goes on
        else:
            (folder / "gpu-profiles.txt").write_text("")

    def add(self, place: dict[str, Any], name: str, measure: Callable[[], Any]) -> None:
        """Put what `measure` gives, or why it gave nothing, into the results, and write them."""
        print(f"{name} …", flush=True)
        began = time.monotonic()
        if began > self._until:
            place[name] = {"skipped": "out of time"}
        else:
            try:
                place[name] = measure()
            except Exception:
                place[name] = {"error": traceback.format_exc()}
                print(place[name]["error"], flush=True)
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        print(
            f"{name}: {time.monotonic() - began:.1f} s, {self._until - time.monotonic():.0f} left",
            flush=True,
        )
        self.write()

    def profile(self, title: str, text: str) -> None:
        """Add a table of kernels to gpu-profiles.txt."""
        with (self._folder / "gpu-profiles.txt").open("a") as file:
            file.write(f"{title}\n{text}\n\n")

    def write(self) -> None:
        (self._folder / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n")
        page = gpu_page.page(self.results)
        json_file, page_file = self._folder / "gpu.json", self._folder / "gpu.md"
        source = record.source_line(self.results, json_file, page_file)
        page_file.write_text(f"{page}\n\n{source}\n")


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Both switches of TF32 as a precision has them, and the type of its weights."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = PRECISIONS[name]
    try:
        yield torch.bfloat16 if name == "bfloat16" else torch.float32
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def measure_models(report: Report, device: str, small: bool, chosen: Sequence[str]) -> None:
    """Every model in every precision."""
    for name in chosen:
        kind, found = KINDS[name], report.results["models"].setdefault(name, {})
        found["title"] = kind.title
        cases: dict[str, Case] = {}

        def make(kind: Any = kind, cases: dict[str, Case] = cases) -> dict[str, Any]:
            case = cases["made"] = made(kind, device, small)
            case.strong = case.strong_weights()
            trained = sum(case.model.get_parameter(name).numel() for name in case.names)
            whole = sum(parameter.numel() for parameter in case.model.parameters())
            return {"parameters": whole, "trained": trained, "strong": case.strong}

        report.add(found, "model", make)
        for way in PRECISIONS if cases else ():
            report.add(
                found,
                way,
                partial(measure, report, name, cases["made"], way, device, small),
            )


def measure(
    report: Report,
    name: str,
    case: Case,
    way: str,
    device: str,
    small: bool,
) -> dict[str, Any]:
    """One model in one precision, in the largest batch that fits, at most the kind's."""
    with precision(way) as dtype:
        case.model.to(dtype)
        size = 4 if small else KINDS[name].batches[way]
        while True:
            try:
                return measure_batch(report, name, case, way, device, size)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2  # here, where the failed batch is let go
            gc.collect()
            torch.cuda.empty_cache()


def measure_batch(
    report: Report,
    name: str,
    case: Case,
    way: str,
    device: str,
    size: int,
) -> dict[str, Any]:
    """Seconds and memory of a training step, the least that hooks must pay, and `auto`."""
    batch, capture = case.batch(size), case.capture(case.strong)
    graphed = case.graphed(capture)
    steps: dict[str, Callable[[], object]] = {
        "training step": batch.training_step,
        "least": batch.least,
        NO_GRAPH: partial(capture.gradients, batch.losses),
        "auto": partial(graphed.gradients, batch.losses_of, batch.inputs),
    }

    def hooks(step: str) -> AbstractContextManager[object]:
        return capture if step in ("auto", NO_GRAPH) else nullcontext()

    def several(step: str) -> None:
        """Steps in a row, so that Python may run ahead; hooks are put in once, as in a build."""
        with hooks(step):
            for _ in range(count):
                steps[step]()

    memory = {}
    for step, run in steps.items():
        with hooks(step):
            if step == "auto":
                for _ in range(RUNS_BEFORE):
                    run()
            memory[step] = peak_memory(run, device)
    count, began = 1, time.perf_counter()
    for step in steps:
        several(step)
    wait(device)
    each = (time.perf_counter() - began) / len(steps)
    count = BURST if each < LONG else 1
    rounds = int(np.clip(SECONDS / (each * count), 3, 15))
    times = time_in_turns({step: partial(several, step) for step in steps}, rounds, device)
    seconds = {step: float(np.median(taken)) / count for step, taken in times.items()}
    with Utilization(device) as watched:
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            several("auto")
            wait(device)
    found: dict[str, Any] = {
        "batch": size,
        "seconds": seconds,
        "graphs": len(graphed.graphs),
        "cost": median_ratio(times, "auto", "training step"),
        "cost without graphs": median_ratio(times, NO_GRAPH, "training step"),
        "least": median_ratio(times, "least", "training step"),
        "gradients a second": size / seconds["auto"],
        "training samples a second": size / seconds["training step"],
        "peak memory": memory,
        "utilization": watched.mean,
    }
    if PROFILED[name] == way:
        for step in ("training step", "auto", NO_GRAPH):
            with hooks(step):
                text, found[f"profile of {step}"] = profiled(steps[step], device)
            report.profile(f"{name}, {way}, batch {size}: {step}", text)
        found["phases of auto"] = phases(partial(hooked, case, batch), device)
    return found


def hooked(case: Case, batch: Any) -> Callable[[], object]:
    """A batch of `auto` with hooks that are put in anew."""
    capture = case.capture(case.strong)

    def run() -> None:
        with capture:
            capture.gradients(batch.losses)

    return run


def peak_memory(run: Callable[[], object], device: str) -> dict[str, int] | None:
    """Bytes at the peak of a step after a first one: in all, and beyond what was there before."""
    run()
    if device != "cuda":
        return None
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait(device)
    peak = torch.cuda.max_memory_allocated()
    return {"whole": peak, "step": peak - before}


def measure_all(
    report: Report,
    device: str,
    small: bool,
    parts: Sequence[str],
    models: Sequence[str],
) -> None:
    """The parts that were asked for, in the order of how much they tell in little time."""
    if "scan" in parts:
        report.add(report.results, "scan", partial(gpu_search.scan, device, small))
    if "models" in parts:
        measure_models(report, device, small, models)
    if "build" in parts:
        report.add(report.results, "build", partial(gpu_build.measure, device, small))
    if "faiss" in parts:
        report.add(report.results, "faiss", partial(gpu_search.faiss_ways, device, small))


def run(work: Path, device: str, only: list[str]) -> None:
    """As `tools/bench gpu`: measure, and write docs/benchmarks/gpu.json and .md."""
    report = Report(work / "gpu" if only else record.FOLDER, device, "tools/bench gpu", 3600)
    measure_all(report, device, False, only or PARTS, list(KINDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--out", type=Path, default=record.FOLDER)
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny models and stores, to try the benchmark",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=400,
        help="after which nothing more is begun",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    keep_freed_memory()  # as `gradindex build` does
    logging.set_verbosity_error()  # of diffusers
    report = Report(options.out.resolve(), options.device, "tools/gpu", options.seconds)
    measure_all(report, options.device, options.small, options.parts, options.models)


if __name__ == "__main__":
    main()
