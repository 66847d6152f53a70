"""A published figure is a JSON with the machine, the versions and the commit that it was measured with."""

import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gradindex.memory import keep_freed_memory

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"


def save(name: str, device: str, command: str, results: dict[str, Any], page: str, place: Path | None = None) -> None:
    """Write docs/benchmarks/NAME.json, and the page made of it to `place` or beside it; a GPU's have "cuda" in NAME."""
    name = name if device == "cpu" else f"{name}-{device}"
    facts = {"command": command, "date": datetime.now(UTC).date().isoformat(), **_commit(), "machine": _machine(device)}
    versions = {package: version(package) for package in ("gradindex", "torch", "diffusers", "numpy")}
    whole = {**facts, "versions": versions, **results}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    machine = ", ".join(str(value) for value in whole["machine"].values())
    source = f"`{command}`, {facts['date']}, commit {facts['commit']}; {machine}; torch {versions['torch']}."
    place = place or FOLDER / f"{name}.md"
    link = (FOLDER / f"{name}.json").relative_to(place.parent)
    place.write_text(f"{page}\n\nMade by {source} Data: [{name}.json]({link}).\n")
    print(f"wrote {FOLDER / name}.json and {place}")


def resumable(folder: Path) -> Callable[[str, Callable[[], Any]], Any]:
    """A function that measures a part, or takes what an earlier run of the same package left in `folder`."""
    return partial(_part, folder, _git("rev-parse", "HEAD:gradindex")[:12])


def measure(folder: Path, parts: Mapping[str, Callable[[], Any]], device: str) -> dict[str, Any]:
    """As `resumable`, several parts side by side, each with one of torch's threads; no figure may be a bare time."""
    part = resumable(folder)
    with processes(torch.get_num_threads() if device == "cpu" else 1) as pool:
        running = {name: pool.submit(part, name, measured) for name, measured in parts.items()}
        return {name: future.result() for name, future in running.items()}


def processes(count: int) -> ProcessPoolExecutor:
    """New processes, each with one of torch's threads."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def _part(folder: Path, tree: str, name: str, measured: Callable[[], Any]) -> Any:
    file = folder / f"{tree} {name}.json"
    if not file.exists():
        print(f"{name} …", flush=True)
        result = json.dumps(measured())
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(result)
    return json.loads(file.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[[_text(value) for value in row.values()] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        small = f"{value:.4f}".rstrip("0").rstrip(".")
        return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else small
    return f"{value:,}" if isinstance(value, int) else str(value)


def _commit() -> dict[str, Any]:
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "-uno")),
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _machine(device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": names[0] if names else platform.machine(),
        "threads": f"{torch.get_num_threads()} threads",
        "memory": f"{memory:.0f} GiB",
    }


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []
