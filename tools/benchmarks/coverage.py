"""Which models and adapters are captured right: `tools/bench coverage`. Counts, no times."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coverage_adapters
import coverage_images
import coverage_models
import coverage_videos
import record
from coverage_check import PARAMETER_TOLERANCE, Coverage, compare

# {part of the page: its models}
PARTS = {
    "models": coverage_models.MODELS,
    "adapters": coverage_adapters.MODELS,
    "images": coverage_images.MODELS,
    "videos": coverage_videos.MODELS,
}


def run(work: Path, device: str, only: list[str]) -> None:
    """Compare, print, and write docs/benchmarks/coverage.json and .md.

    Args:
        only: some of the names.
    """
    warnings.simplefilter("ignore")  # diffusers' and peft's, of classes that they rename
    results: dict[str, dict[str, Any]] = {}
    for part, models in PARTS.items():
        results[part] = {}
        for name, make in models.items():
            if not only or name in only:
                coverage = compare(make)
                results[part][name] = coverage.json()
                print(f"{name}: {outcome(coverage.json())}", flush=True)
    if not only:
        record.save("coverage", device, "tools/bench coverage", results, page(results))


def outcome(coverage: Mapping[str, Any]) -> str:
    """Return in a few words how a model came out."""
    if coverage["refused"]:
        return "refused"
    if coverage["unseen"]:
        return f"{len(coverage['unseen'])} WRONG IN SILENCE"
    if coverage["wrong"]:
        return f"the check names {len(coverage['wrong'])}"
    return "right"


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables and the words between them."""
    coverages = {name: value for part in results.values() for name, value in part.items()}
    right = [value for value in coverages.values() if Coverage(**value).is_right]
    reasons = {name: make.__doc__ for part in PARTS.values() for name, make in part.items()}
    named = [
        f"{name} ({outcome(value)}: {reasons[name].rstrip('.').lower()})"
        for name, value in coverages.items()
        if not Coverage(**value).is_right
    ]
    return record.fill_page(
        "coverage",
        count=len(coverages),
        right=len(right),
        parameters=f"{sum(value['parameters'] for value in right):,}",
        largest=max(value["largest_error"] for value in right),
        tolerance=PARAMETER_TOLERANCE,
        named=f"The others build only without the parameters that are named: {'; '.join(named)}.",
        **{part: record.table(_rows(values)) for part, values in results.items()},
    )


def _rows(coverages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row of a table for each model."""
    return [
        {
            "": name,
            "parameters": value["parameters"],
            "by rules": value["parameters"] - value["followed"] - value["by_autograd"],
            "followed": value["followed"],
            "to autograd": value["by_autograd"],
            "rows": "several" if value["several_rows"] else "one",
            "outcome": outcome(value),
        }
        for name, value in coverages.items()
    ]
