"""What a build keeps of encoded pictures and captions until it is finished: `prepared/`."""

import shutil
import tracemalloc
from collections import Counter
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from original_files import ORIGINALS, save
from safetensors.torch import load_file
from tiny_pipelines import CLIP_WIDTH, LETTERS, SIDE, captioned_pictures

import gradindex
from gradindex.builder.estimate import estimate
from gradindex.builder.job import BuildJob
from gradindex.builder.options import BuildOptions
from gradindex.builder.plan import Plan, make_plan
from gradindex.builder.preparation import PIECE, Preparation
from gradindex.models import weights
from gradindex.models.examples import Examples
from gradindex.models.families.stable_diffusion import StableDiffusion
from gradindex.models.loading import load_denoiser
from gradindex.report.info import describe_plan
from gradindex.store.disk import Disk

TEXT = "encoder_hidden_states"
PICTURES = PIECE + 4  # more than a file holds
MIB = 2**20


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A pipeline with a checkpoint in it whose text encoder is another one, and pictures."""
    out = tiny_pipelines.stable_diffusion(tmp_path / "out")
    shutil.copytree(out / "unet", out / "checkpoint-500" / "unet")
    tiny_pipelines.clip(9).save_pretrained(out / "checkpoint-500" / "text_encoder")
    captions = [f"a {LETTERS[number % 17]}" for number in range(PICTURES)]
    captioned_pictures(tmp_path / "data", captions)
    return out


def plan_of(model: Path, checkpoints: list[Path] | None = None, **options: Any) -> Plan:
    defaults = {name: of.default for name, of in signature(gradindex.build).parameters.items()}
    names = {of.name for of in fields(BuildOptions)}
    given = {name: value for name, value in defaults.items() if name in names}
    given |= {"model": model, "data": model.parent / "data", "checkpoints": checkpoints}
    given |= {"timesteps": 1, "dim": 8, "resolution": SIDE, "batch_size": 4, **options}
    return make_plan(BuildOptions(**given), "cpu")


def preparation_of(plan: Plan, location: Disk) -> tuple[BuildJob, Preparation]:
    job = plan.job_on(plan.dataset)
    return job, Preparation(location, job, plan.denoisers)


def assert_same(examples: Examples, expected: Examples) -> None:
    assert examples.conditions.keys() == expected.conditions.keys()
    columns = {"x": examples.x, **examples.conditions}
    for name, values in {"x": expected.x, **expected.conditions}.items():
        # Another batch may round otherwise.
        np.testing.assert_allclose(np.stack(columns[name]), np.stack(values), atol=1e-5)


def test_one_copy_of_a_shards_captions_is_in_memory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what the text encoders gave; of that, only a few captions while they are written."""
    plan = plan_of(trained)

    def wide(self: Any, pipeline: Any, captions: list[str], config: Any) -> dict[str, Any]:
        return {TEXT: torch.ones(len(captions), MIB // 4 // CLIP_WIDTH, CLIP_WIDTH)}

    monkeypatch.setattr(StableDiffusion, "text", wide)
    _, preparation = preparation_of(plan, Disk(tmp_path / "index"))
    rows = list(range(PICTURES))
    shard = (range(1), [row for row in rows if row < 17])  # whose captions are all others
    tracemalloc.start()
    try:
        preparation.run([shard])
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        held, _ = tracemalloc.get_traced_memory()
        readable, examples, _ = preparation.read(*shard)
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert writing < 8 * MIB
    assert 17 * MIB < reading - held < 23 * MIB
    assert len(examples[0].conditions[TEXT]) == len(readable) == 17


def test_what_is_read_is_what_the_encoders_make(trained: Path, tmp_path: Path) -> None:
    """At each checkpoint with its own text encoder, however often it is read, damaged or not."""
    plan = plan_of(trained, [trained / "checkpoint-500", trained])
    location = Disk(tmp_path / "index")
    job, preparation = preparation_of(plan, location)
    rows = list(range(PICTURES))
    encoders = [plan.denoisers.encoder_of(number) for number in range(2)]
    expected = [job.examples(rows, encoder) for encoder in encoders]
    first = np.stack(expected[0][1].conditions[TEXT])
    assert abs(first - np.stack(expected[1][1].conditions[TEXT])).max() > 0.1
    preparation.run([(range(1), rows), (range(1, 2), rows)])
    for damage in (None, b"", b"\x08" + bytes(7) + b"{}      "):
        if damage is not None:
            for file in (tmp_path / "index" / "prepared").iterdir():
                file.write_bytes(damage)
        readable, examples, contents = preparation.read(range(2), rows)
        assert (readable, contents) == (expected[0][0], expected[0][2])
        for number in range(2):
            assert_same(examples[number], expected[number][1])


def test_the_vae_runs_once_where_text_encoders_differ(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each text encoder once for each caption: 17 of 20 are different."""
    plan = plan_of(trained, [trained / "checkpoint-500", trained])
    _, preparation = preparation_of(plan, Disk(tmp_path / "index"))
    encoded: Counter[str] = Counter()
    encode, text = diffusers.AutoencoderKL.encode, StableDiffusion.text

    def counted_encode(self: Any, x: Any, *given: Any, **options: Any) -> Any:
        encoded["pictures"] += len(x)
        return encode(self, x, *given, **options)

    def counted_text(self: Any, pipeline: Any, captions: list[str], config: Any) -> Any:
        encoded["captions"] += len(captions)
        return text(self, pipeline, captions, config)

    monkeypatch.setattr(diffusers.AutoencoderKL, "encode", counted_encode)
    monkeypatch.setattr(StableDiffusion, "text", counted_text)
    rows = list(range(PICTURES))
    preparation.run([(range(1), rows), (range(1, 2), rows)])
    preparation.read(range(2), rows)
    assert encoded == {"pictures": PICTURES, "captions": 2 * 17}


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_dry_run_counts_what_is_kept(
    trained: Path, tmp_path: Path, dtype: str, size: int
) -> None:
    """Captions in the precision of the text encoders, which float32 would only lengthen."""
    plan = plan_of(trained, [trained / "checkpoint-500", trained], dtype=dtype)
    expected = estimate(plan)
    _, preparation = preparation_of(plan, Disk(tmp_path / "index"))
    rows = list(range(PICTURES))
    preparation.run([(range(1), rows), (range(1, 2), rows)])
    files = list((tmp_path / "index" / "prepared").iterdir())
    kept = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    latents = PICTURES * 4 * (SIDE // 2) ** 2 * 4
    assert expected.prepared == kept == latents + 2 * 17 * 77 * CLIP_WIDTH * size
    said = f"; {kept / 1024:.0f} KiB more until it is finished, for encoded pictures\n"
    assert said in describe_plan(expected)


def test_a_file_is_read_where_its_weights_are_needed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the denoiser once; one of VAE or text encoder for its digest, too, and to load it."""
    file = save(ORIGINALS["sd"](trained), tmp_path / "step.safetensors")
    taken: Counter[str] = Counter()
    read_file = weights._read_file

    def counted(read: Path, *given: Any) -> Any:
        found = read_file(read, *given)
        taken.update(list(found) if read == file else ())
        return found

    monkeypatch.setattr(weights, "_read_file", counted)
    encoder = load_denoiser(file, model=trained, resolution=(SIDE, SIDE)).encoder
    assert encoder._loaded is not None
    of_denoiser = {count for name, count in taken.items() if name.startswith("model.diffusion")}
    assert of_denoiser == {1}
    assert max(taken.values()) == 3


def test_numbers_of_a_pickle_are_read_when_they_are_used(tmp_path: Path) -> None:
    saved = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(2)}
    torch.save({"state_dict": saved}, tmp_path / "a.ckpt")
    torch.save(saved, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("a.ckpt", "old.bin"):
        read = weights.read_weights([tmp_path / name])
        assert all(torch.equal(read[key], saved[key]) for key in saved)
        assert list(weights.read_weights([tmp_path / name], "b.")) == ["b.bias"]
    maps = Path("/proc/self/maps")
    if maps.is_file():
        read = weights.read_weights([tmp_path / "a.ckpt"])
        assert str(tmp_path / "a.ckpt") in maps.read_text()
