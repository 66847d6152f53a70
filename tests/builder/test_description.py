"""What a build says of its pictures; it looks only at those that it is going to read."""

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import make_pictures

import gradindex
from gradindex.builder import build as build_module
from gradindex.data.dataset import Dataset
from gradindex.store import store as store_module


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows that each build looks at."""
    calls = []
    describe_changes = Dataset.describe_changes

    def noted(self: Dataset, image: tuple[int, int, int], rows: Any, buckets: None) -> list[str]:
        calls.append(rows.tolist())
        return describe_changes(self, image, rows)

    monkeypatch.setattr(Dataset, "describe_changes", noted)
    return calls


def test_a_build_looks_at_the_pictures_that_it_reads(
    tmp_path: Path,
    model: Path,
    looked_at: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At those of its part; at none where all is there; at the last shard's where some are new."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    caplog.set_level(logging.INFO, "gradindex")
    data = make_pictures(tmp_path / "data", 9, size=16)
    options: dict[str, Any] = {"model": model, "data": data, "timesteps": 1, "dim": 8}

    def build(**more: Any) -> list[str]:
        caplog.clear()
        gradindex.build(tmp_path / "idx", device="cpu", **options, **more)
        return [line for line in caplog.messages if line.startswith(("pictures", str(data)))]

    assert build(part=(0, 3)) == [f"{data}: 9 pictures", "pictures: 4 resized to 8x8"]
    assert build() == [f"{data}: 9 pictures", "pictures: 5 resized to 8x8"]
    assert build() == [f"{data}: 9 pictures"]
    make_pictures(data, 12, size=16)
    assert build() == [f"{data}: 12 pictures", "pictures: 4 resized to 8x8"]
    assert looked_at == [[0, 1, 2, 3], [4, 5, 6, 7, 8], [], [8, 9, 10, 11]]
    assert build_module.LOGGER.name.startswith("gradindex")
