"""Publish a figure: a JSON with the machine, versions and commit it was measured with, and a page.

The words of the pages are in the folder pages, as Markdown with {placeholders}.
"""

import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import Any

import torch

import gradindex
from gradindex.store.memory import keep_freed_memory

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"
PAGES = Path(__file__).parent / "pages"
PACKAGES = ("torch", "diffusers", "numpy")  # whose versions a figure tells, beside ours


def save(
    name: str,
    device: str,
    command: str,
    results: Mapping[str, Any],
    page: str,
    page_file: Path | None = None,
) -> None:
    """Write docs/benchmarks/NAME.json and the page made of it.

    Figures of a GPU have the device in their name: NAME-cuda.

    Args:
        device: "cpu" or "cuda".
        command: what makes the figure again, such as "tools/bench noise".
        results: the figure, JSON values.
        page: Markdown; a line that tells where the figure comes from is added.
        page_file: where the page goes; beside the JSON for None.
    """
    if device != "cpu":
        name = f"{name}-{device}"
    header = figure_header(device, command)
    FOLDER.mkdir(exist_ok=True)
    json_file = FOLDER / f"{name}.json"
    json_file.write_text(json.dumps({**header, **results}, indent=1) + "\n")
    page_file = page_file or FOLDER / f"{name}.md"
    page_file.write_text(f"{page}\n\n{source_line(header, json_file, page_file)}\n")
    print(f"wrote {json_file} and {page_file}")


def figure_header(device: str, command: str) -> dict[str, Any]:
    """Return what a figure is published with: command, date, commit, machine, versions."""
    versions = {package: _version(package) for package in PACKAGES}
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        **_commit(),
        "machine": _machine(device),
        "versions": {"gradindex": gradindex.__version__, **versions},
    }


def _version(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """The checkout's commit, and whether files differ from it.

    Where the tree was copied without its history, COMMIT in the environment names the commit.
    """
    if "COMMIT" in os.environ or not (ROOT / ".git").exists():
        return {"commit": os.environ.get("COMMIT", "unknown"), "uncommitted": None}
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "-uno")),
    }


def source_line(header: Mapping[str, Any], json_file: Path, page_file: Path) -> str:
    """Return the last line of a page: command, date, commit, machine and a link to the JSON."""
    machine = ", ".join(str(value) for value in header["machine"].values())
    link = json_file.relative_to(page_file.parent)
    return (
        f"Made by `{header['command']}`, {header['date']}, commit {header['commit']}; {machine};"
        f" torch {header['versions']['torch']}. Data: [{json_file.name}]({link})."
    )


def resumable(folder: Path) -> Callable[[str, Callable[[], Any]], Any]:
    """Return a function (name of a part, how to measure it) → its JSON values.

    What an earlier run of the same package left in `folder` is taken as it is.
    """
    return partial(_part, folder, _git("rev-parse", "HEAD:gradindex")[:12])


def measure(folder: Path, parts: Mapping[str, Callable[[], Any]], device: str) -> dict[str, Any]:
    """Measure several parts side by side, each as `resumable` does and with one of torch's threads.

    They slow each other down: no figure may be a bare time.

    Returns:
        {name of a part: its JSON values}.
    """
    part = resumable(folder)
    count = torch.get_num_threads() if device == "cpu" else 1
    with processes(count) as pool:
        running = {name: pool.submit(part, name, measured) for name, measured in parts.items()}
        return {name: future.result() for name, future in running.items()}


def processes(count: int) -> ProcessPoolExecutor:
    """Return a pool of new processes, each with one of torch's threads.

    They end with this one, however it ends.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_start_process)


def _start_process() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with the one that started it, which cannot say so where it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _part(folder: Path, tree: str, name: str, measured: Callable[[], Any]) -> Any:
    """A part's JSON values, from its file or measured now; `tree` is the package's in git."""
    file = folder / f"{tree} {name}.json"
    if not file.exists():
        print(f"{name} …", flush=True)
        content = json.dumps(measured())
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return json.loads(file.read_text())


def bytes_read() -> int:
    """Return what this process has read from files so far, from the page cache too."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def fill_page(page: str, **values: Any) -> str:
    """Return the text of pages/PAGE.md, its placeholders filled in with values."""
    text = (PAGES / f"{page}.md").read_text()
    return text.removesuffix("\n").format(**values)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as a Markdown table.

    >>> print(table([{"pictures": 1000, "share": 0.25}]))
    | pictures | share |
    | --- | --- |
    | 1,000 | 0.25 |
    """
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        lines.append([_cell(value) for value in row.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    """A value as text: floats with the digits that matter, whole numbers with commas."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value >= 100:
        return f"{value:.0f}"
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _git(*arguments: str) -> str:
    """What a git command prints."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _machine(device: str) -> dict[str, Any]:
    """What tells the machine: its GPU, or processor, threads and memory."""
    if device == "cuda":
        gpu_memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return {
            "gpu": torch.cuda.get_device_name(),
            "memory": f"{gpu_memory:.0f} GiB",
            "cuda": f"CUDA {torch.version.cuda}",
        }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "threads": f"{torch.get_num_threads()} threads",
        "memory": f"{memory:.0f} GiB",
    }


def _processor() -> str:
    """The processor's name; its architecture where the system does not tell."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
