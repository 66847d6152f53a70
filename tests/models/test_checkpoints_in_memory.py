"""Checkpoints stay in memory as long as they fit; what a recipe says of them needs no weights."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model
from safetensors.torch import load_file, save_file

import gradindex
from gradindex.errors import ModelError
from gradindex.models import checkpoints as checkpoints_module
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.loading import load_denoiser
from gradindex.store import store as store_module

Loads = Counter[tuple[str, bool]]  # how often each checkpoint was loaded, with weights or without
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("run")
    return [make_model(folder / f"step-{seed}", seed) for seed in range(3)]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    counts: Loads = Counter()

    def counted(path: Path, **options: Any) -> Any:
        counts[Path(path).name, options.get("with_weights", True)] += 1
        return load_denoiser(path, **options)

    monkeypatch.setattr(checkpoints_module, "load_denoiser", counted)
    return counts


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch, paths: list[Path]) -> Callable[[int], None]:
    """Have memory for so many checkpoints."""
    denoiser = load_denoiser(paths[0])
    weight_bytes = sum(weight.nbytes for weight in denoiser.model.state_dict().values())

    def limit(count: int) -> None:
        memory = property(lambda denoiser: (count + 0.5) * weight_bytes)
        monkeypatch.setattr(checkpoints_module, "KEPT_SHARE", 1)
        monkeypatch.setattr(type(denoiser), "memory", memory)

    return limit


def whole_loads(loads: Loads) -> list[int]:
    return sorted(count for (_, with_weights), count in loads.items() if with_weights)


def test_a_recipe_needs_the_weights_of_none_but_the_first(paths: list[Path], loads: Loads) -> None:
    run = Checkpoints(paths, paths[0], None, "cpu", "float32")
    fields = run.recipe_fields()
    assert loads == {("step-0", True): 1, ("step-1", False): 1, ("step-2", False): 1}
    alone = [load_denoiser(path) for path in paths]
    assert fields["checkpoints"] == tuple(denoiser.digest for denoiser in alone)
    assert [run.encoder_of(number) for number in range(3)] == [None] * 3
    assert sum(loads.values()) == 3


@pytest.mark.parametrize(
    ("room", "second"), [(3, [0, 0, 0]), (2, [0, 1, 0]), (1, [1, 1, 1]), (0, [1, 1, 1])]
)
def test_as_many_stay_as_fit(
    paths: list[Path],
    loads: Loads,
    room_for: Callable[[int], None],
    room: int,
    second: list[int],
) -> None:
    """Of checkpoints that are asked for in turns, not all have to be loaded again."""
    room_for(room)
    run = Checkpoints(paths, paths[0], None, "cpu", "float32")
    for expected in ([1, 1, 1], second):
        loads.clear()
        models = [run[number].model for number in range(3)]
        assert [loads[path.name, True] for path in paths] == expected
        assert len({*map(id, models)}) == 3
        assert len(run._loaded) == max(1, room)


def test_little_free_memory_keeps_one(
    paths: list[Path], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "free_memory_of", lambda device: 0)
    run = Checkpoints(paths, paths[0], None, "cpu", "float32")
    for _ in range(2):
        for number in range(3):
            _ = run[number]
            assert len(run._loaded) == 1
    assert whole_loads(loads) == [2, 2, 2]


def test_a_folded_build_and_its_queries_load_each_checkpoint_once(
    tmp_path: Path,
    paths: list[Path],
    pictures: Path,
    queries: list[Path],
    loads: Loads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The build has three shards; a second query loads nothing, and gives the same."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    options: dict[str, Any] = {"model": paths[0], "checkpoints": paths, "data": pictures}
    options |= {"timesteps": 2, "dim": 32, "device": "cpu"}
    index = gradindex.build(tmp_path / "folded", rows="folded", **options)
    assert whole_loads(loads) == [1, 1, 1]
    one = gradindex.build(tmp_path / "full", **options)
    loads.clear()
    for answered in (index, one):
        first = answered.query(queries, 3)
        assert whole_loads(loads) == [1, 1, 1]
        assert answered.query(queries, 3) == first
        assert whole_loads(loads) == [1, 1, 1]
        loads.clear()


def test_a_checkpoint_that_is_written_over_meanwhile_is_refused(
    paths: list[Path], tmp_path: Path
) -> None:
    """Its rows would be said to be of the weights that were there when the build began."""
    over = make_model(tmp_path / "step", seed=5)
    run = Checkpoints([paths[0], over], paths[0], None, "cpu", "float32")
    run.recipe_fields()
    weights = load_file(over / WEIGHTS)
    save_file({name: weight + 1 for name, weight in weights.items()}, over / WEIGHTS)
    with pytest.raises(ModelError, match=r"step: it was written over since it was looked at; let"):
        _ = run[1]


def test_weights_that_are_not_finite_are_refused_before_anything_is_written(
    paths: list[Path], tmp_path: Path, pictures: Path
) -> None:
    bad = make_model(tmp_path / "bad", seed=6)
    weights = load_file(bad / WEIGHTS)
    weights["conv_in.bias"][0] = np.nan
    save_file(weights, bad / WEIGHTS)
    with pytest.raises(ModelError, match=r"weights 'conv_in\.bias' hold NaN or infinity"):
        gradindex.build(
            tmp_path / "idx",
            model=paths[0],
            checkpoints=[paths[0], bad],
            data=pictures,
            device="cpu",
        )
    assert not (tmp_path / "idx").exists()
