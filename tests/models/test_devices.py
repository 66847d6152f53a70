"""Which device is taken: the very GPU that was named, all the way down."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import required

import gradindex
from gradindex.builder import build as build_module
from gradindex.builder.workers import fill_on_cluster
from gradindex.errors import CallError
from gradindex.models.devices import free_memory_of, memory_of, resolve_device
from gradindex.search.gpu import free_memory_on


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As if torch had two; returns the devices whose memory is asked for."""
    asked: list[Any] = []

    def memory_of_gpu(device: Any) -> tuple[int, int]:
        asked.append(device)
        return 3 << 30, 8 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory_of_gpu)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: asked.append(device) or 5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: asked.append(device) or 2)
    return asked


def test_a_gpu_is_taken_by_its_number(two_gpus: list[Any]) -> None:
    names = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")
    assert [resolve_device(name) for name in names] == ["cuda", *names[1:]]
    with pytest.raises(CallError, match=r"'cuda:2': this machine has 'cuda:0', 'cuda:1'$"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps", ""])
def test_other_names_are_refused(two_gpus: list[Any], name: str) -> None:
    with pytest.raises(CallError, match=r"allowed are 'auto', 'cpu', 'cuda', and 'cuda:1' for"):
        resolve_device(name)


def test_the_memory_is_that_of_the_named_gpu(two_gpus: list[Any]) -> None:
    assert free_memory_of(torch.device("cuda:1")) == (3 << 30) + 3
    assert {torch.device(device) for device in two_gpus} == {torch.device("cuda:1")}
    assert free_memory_on("cuda:1") == 3 << 30
    assert two_gpus[-1] == 1
    assert free_memory_of(torch.device("cpu")) < memory_of(torch.device("cpu"))


def test_a_build_plans_on_the_named_gpu(
    two_gpus: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(options: Any, device: str) -> None:
        raise NotImplementedError(device)

    monkeypatch.setattr(build_module, "make_plan", plan)
    with pytest.raises(NotImplementedError, match=r"^cuda:1$"):
        gradindex.build(tmp_path / "idx", model="m", data="d", device="cuda:1")


def test_a_query_runs_on_the_named_gpu(
    two_gpus: list[Any], tmp_path: Path, model: Path, pictures: Path
) -> None:
    place = tmp_path / "idx"
    gradindex.build(place, model=model, data=pictures, timesteps=1, dim=16, device="cpu")
    index = gradindex.open(place, device="cuda:1")
    devices = [index.device, index.gradients._open()._device, index.ranker._device]
    assert devices == ["cuda:1"] * 3


def test_ray_gives_out_gpus_itself() -> None:
    required("ray")
    with pytest.raises(CallError, match="device = 'cuda:1': Ray gives each worker a GPU of its"):
        fill_on_cluster("local", lambda device: lambda missing: None, {}, "cuda:1", print)
