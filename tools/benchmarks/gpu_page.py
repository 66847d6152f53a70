"""The page that is made of what was measured on a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import record

GIGA = 1e9
HEAD = """# On a GPU

A *training step* is forward and backward with the gradients of the trained weights, of the same
batch in the same precision; *cost* is the time of captured and projected gradients (`auto`,
D = 4,096) in units of it, as a build takes them, with CUDA graphs; *without graphs* is the time
where Python launches every kernel, and *least* that of forward and backward to the input, which any
hooks must pay. Medians over rounds of five steps (one, where it is long), the ways taking turns.
Models have random weights. float32 is without TF32, tf32 with it in products and convolutions; in
bfloat16 weights and activations have that type. *Busy* is the share of a step in which kernels run,
from a profile, and *utilization* what the driver reports. *Peak memory* is that without graphs; a
graph keeps as much for itself.
"""


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown; whatever was not measured is left out."""
    parts = [HEAD]
    for found in results["models"].values():
        parts.append(_model(found))
    for name, title, make in (
        ("build", "A whole build", _build),
        ("scan", "An exact scan of rows on the GPU", _scan),
        ("faiss", "FAISS", _faiss),
    ):
        if name in results:
            found = results[name]
            failed = _failed(found)
            parts.append(f"## {title}\n\n{failed or make(found)}\n")
    if "note" in results:
        parts.append(results["note"])
    return "\n".join(parts).rstrip()


def _model(found: Mapping[str, Any]) -> str:
    """One model: a line for each precision, then the parts of a profiled step."""
    model = found.get("model", {})
    lines, notes = [], []
    for name, facts in found.items():
        if name in ("title", "model"):
            continue
        if failed := _failed(facts):
            notes.append(f"{name}: {failed}\n")
            continue
        lines.append(
            {
                "precision": name,
                "batch": facts["batch"],
                "gradients a second": facts["gradients a second"],
                "cost": facts["cost"],
                "without graphs": facts["cost without graphs"],
                "least": facts["least"],
                "peak memory, GB": _memory(facts, "auto without graphs"),
                "of a training step": _memory(facts, "training step"),
                "utilization": _percent(facts["utilization"]),
            }
        )
        notes += _profile(name, facts)
    title = f"## {found['title']}\n"
    if failed := _failed(model):
        return f"{title}\n{failed}\n"
    strong = len(model.get("strong", ()))
    sizes = f"{model.get('parameters', 0):,} parameters, {model.get('trained', 0):,} trained"
    known = f"{sizes}; {strong} strong weights."
    table = record.table(lines) if lines else ""
    return "\n".join([title, f"{known}\n", table, "", *notes])


def _profile(name: str, facts: Mapping[str, Any]) -> list[str]:
    """What a profile says of a step, and of each part of the hooks."""
    if "phases of auto" not in facts:
        return []
    lines = []
    for step in ("training step", "auto", "auto without graphs"):
        one = facts[f"profile of {step}"]
        lines.append(
            {
                f"{name}, one step": step,
                "milliseconds": 1e3 * one["seconds"],
                "kernels": one["kernels"],
                "their milliseconds": 1e3 * one["kernel_seconds"],
                "busy": _percent(100 * one["busy"]),
            }
        )
    whole = facts["profile of auto"]["kernel_seconds"]
    parts = [
        {"part of the hooks": part, "share of the kernels' time": f"{seconds / whole:.1%}"}
        for part, seconds in sorted(facts["phases of auto"].items(), key=lambda pair: -pair[1])
    ]
    tables = [record.table(lines), ""]
    return [*tables, record.table(parts), ""] if parts else tables


def _build(found: Mapping[str, Any]) -> str:
    """The build's steps and its queries."""
    taken = found["seconds of steps"].items()
    steps = [{"step": step, "seconds": seconds} for step, seconds in taken]
    queries = [{"query": name, **_seconds(times)} for name, times in found["query"].items()]
    alone = found["share of the bare capture, gradients alone"]
    head = (
        f"{found['pictures']:,} random pictures of 32 × 32, {found['gradients']:,} gradients of"
        f" model (a), batch {found['batch']:,}: {found['seconds']:.1f} seconds,"
        f" {found['share of the bare capture']:.0%} of the bare capture's throughput; the gradients"
        f" alone {alone:.0%}, {found['gradients a second']:,.0f} a second. The index has"
        f" {found['bytes'] / GIGA:.2f} GB; utilization"
        f" {_percent(found['utilization']) or 'unknown'}.\n"
    )
    return "\n".join([head, record.table(steps), "", record.table(queries)])


def _scan(found: Mapping[str, Any]) -> str:
    """Bandwidths, then a line for each type of rows and number of queries."""
    moves = [
        {"bytes moved": name.removesuffix(", bytes a second"), "GB a second": speed / GIGA}
        for name, speed in found.items()
        if name.endswith("bytes a second")
    ]
    lines = [
        {
            "rows": name,
            "queries": int(count),
            "milliseconds": 1e3 * one["seconds"]["search"],
            "of the bandwidth": _percent(100 * one["search, of the bandwidth"]),
            "without choosing the best": _percent(100 * one["products, of the bandwidth"]),
        }
        for name, by_count in found.items()
        if isinstance(by_count, Mapping)
        for count, one in by_count.items()
    ]
    size = f"{found['row bytes'] / GIGA:.1f} GB of rows of {found['dim']:,} numbers"
    head = f"{size}, the 10 best of each query.\n"
    return "\n".join([head, record.table(moves), "", record.table(lines)])


def _faiss(found: Mapping[str, Any]) -> str:
    """A line for each index."""
    lines = [
        {"index": name, "seconds to make": one.get("seconds to make"), **_seconds(one)}
        for name, one in found.items()
        if isinstance(one, Mapping)
    ]
    size = f"{found['vectors']:,} random vectors of {found['width']:,} numbers"
    head = f"{size}; 16 lists are probed.\n"
    return f"{head}\n{record.table(lines)}"


def _seconds(times: Mapping[str, Any]) -> dict[str, Any]:
    """All but the time of making, seconds as milliseconds."""
    shown = {}
    for name, value in times.items():
        if name.startswith("recall"):
            shown[name] = value
        elif name != "seconds to make":
            shown[f"{name.replace('seconds of ', '')}, ms"] = 1e3 * value
    return shown


def _memory(facts: Mapping[str, Any], step: str) -> float | None:
    peak = facts["peak memory"].get(step)
    return peak and peak["whole"] / GIGA


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} %"


def _failed(found: Any) -> str | None:
    """Why there is no figure, or None."""
    if not isinstance(found, Mapping):
        return None
    if "skipped" in found:
        return f"Not measured: {found['skipped']}."
    lines: Sequence[str] = found.get("error", "").strip().splitlines()
    return f"Failed: `{lines[-1]}`" if lines else None
