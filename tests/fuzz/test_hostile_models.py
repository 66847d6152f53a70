"""Hostile models: what diffusers makes of the same files, or one clear error."""

import json
import struct
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from judging import Case
from model_inputs import CONFIG, KINDS, SCHEDULER, WEIGHTS, HostileModel
from refusals import budget, refusal

from gradindex.errors import GradindexError
from gradindex.models.loading import load_denoiser


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return KINDS[request.param](tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
@budget(100)
@hypothesis.given(seed=strategies.integers(0, 2**32 - 1))
def test_a_hostile_model_is_loaded_as_diffusers_does_or_refused(case: Case, seed: int) -> None:
    assert case(Random(seed)) in (True, False)  # it raises where anything else comes of it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HostileModel:
    return HostileModel(tmp_path_factory.mktemp("model"))


def refusal_of(model: HostileModel, name: str, content: bytes) -> str:
    """The text of the error of a pipeline in which a file is another."""
    folder = model.place(name, content)
    line = refusal(lambda: load_denoiser(folder), GradindexError)
    return line.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("downsample_padding", "a", "a whole number, 0 to 8"),
        ("downsample_padding", [1], "a whole number, 0 to 8"),
        ("downsample_padding", None, "a whole number, 0 to 8"),
        ("downsample_padding", 0.0, "a whole number, 0 to 8"),
        ("downsample_padding", 10**6, "a whole number, 0 to 8"),
        ("norm_eps", [], "a value such as 1e-05"),
        ("norm_eps", None, "a value such as 1e-05"),
        ("norm_eps", float("nan"), "a value such as 1e-05"),
        ("flip_sin_to_cos", 2, "a value such as true"),
        ("act_fn", 1, 'a value such as "silu"'),
        ("mid_block_scale_factor", 1e300, "a value such as 1"),
        ("mid_block_scale_factor", [1], "a value such as 1"),
    ],
)
def test_an_argument_of_another_kind_is_refused_before_the_model_runs(
    model: HostileModel, name: str, value: Any, allowed: str
) -> None:
    config = {**json.loads(model.files[CONFIG]), name: value}
    text = json.dumps(value)
    line = refusal_of(model, CONFIG, json.dumps(config).encode())
    assert line == f"{CONFIG}: {name} = {text}: allowed is {allowed}"


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        (CONFIG, "_class_name", "a" * 5000),
        (CONFIG, "_class_name", "a\nb"),
        (CONFIG, "num_class_embeds", "é\u2028"),
        (SCHEDULER, "prediction_type", [0] * 5000),
        (SCHEDULER, "prediction_type", "a\nb"),
    ],
)
def test_what_a_file_says_is_shown_in_one_short_line(
    model: HostileModel, file: str, name: str, value: Any
) -> None:
    line = refusal_of(
        model, file, json.dumps({**json.loads(model.files[file]), name: value}).encode()
    )
    assert file in line or "unet: a model of class" in line
    assert len(line) < 1000


def test_what_a_scheduler_makes_diffusers_say_is_cut(model: HostileModel) -> None:
    schedule = {**json.loads(model.files[SCHEDULER]), "beta_schedule": [0] * 10_000}
    line = refusal_of(model, SCHEDULER, json.dumps(schedule).encode())
    assert "the scheduler's config does not make a noise schedule ([0, 0, 0, 0," in line
    assert len(line) < 700


@pytest.mark.parametrize(
    "change",
    [
        lambda header: struct.pack("<Q", 2**62) + json.dumps(header).encode(),
        lambda header: struct.pack("<Q", 99_000_000) + json.dumps(header).encode(),
        lambda header: safetensors({**header, "conv_in.weight": tensor([2**40, 2**40])}),
        lambda header: safetensors({**header, "conv_in.weight": tensor([10**12])}),
        lambda header: safetensors({**header, "conv_in.weight": tensor([0, 2**63])}),
        lambda header: safetensors(dict.fromkeys(header, tensor([8, 1, 3, 3]))),
    ],
    ids=["length", "length in bounds", "overflow", "shape", "no numbers", "one for all"],
)
def test_weights_that_declare_huge_sizes_take_no_memory(model: HostileModel, change: Any) -> None:
    content = model.files[WEIGHTS]
    (size,) = struct.unpack_from("<Q", content)
    line = refusal_of(model, WEIGHTS, change(json.loads(content[8 : 8 + size])))
    assert line.startswith(WEIGHTS)


def tensor(shape: list[int]) -> dict[str, Any]:
    """The header of a tensor at the first bytes, of any size."""
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 288]}


def safetensors(header: dict[str, Any]) -> bytes:
    """A file of a header and a few zeros."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(1000)
