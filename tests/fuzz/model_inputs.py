"""Hostile models: weights in safetensors, and the JSON files beside them."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from conftest import make_model
from diffusers import UNet2DModel
from hostile import mutate_bytes, mutate_json, spell_json
from judging import Case, bounded, is_answered
from safetensors.torch import load as load_safetensors
from torch import Tensor

from gradindex.models.denoiser import Denoiser
from gradindex.models.loading import load_denoiser

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG, PIPELINE, SCHEDULER = (
    "unet/config.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
)


class HostileModel:
    """A small pipeline, and what becomes of it when a file of it is another.

    Attributes:
        files: {name: content}.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._place = make_model(folder / "model"), folder / "place"
        names = [file for file in self._folder.rglob("*") if file.is_file()]
        self.files = {
            file.relative_to(self._folder).as_posix(): file.read_bytes() for file in names
        }

    def place(self, name: str, content: bytes) -> Path:
        """Return a copy of the pipeline in which a file is another."""
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._folder, self._place, copy_function=os.link)
        file = self._place / name
        file.unlink()
        file.write_bytes(content)
        return self._place

    def judge(self, name: str, content: bytes) -> bool:
        """Return whether a pipeline loads to the model that diffusers makes; False: a clear error.

        Args:
            name, content: of the file that is another.
        """
        folder = self.place(name, content)
        with bounded():
            return is_answered(
                lambda: load_denoiser(folder),
                lambda denoiser: self._is_true(denoiser, {**self.files, name: content}),
            )

    def _is_true(self, denoiser: Denoiser, files: Mapping[str, bytes]) -> bool:
        """Whether a model gives what diffusers' class gives with what the files say."""
        config = json.loads(files[CONFIG])
        plain = UNet2DModel.from_config(config).eval()
        plain.load_state_dict(load_safetensors(files[WEIGHTS]))
        if denoiser.model.state_dict().keys() != plain.state_dict().keys():
            return False
        inputs = (
            torch.linspace(-1, 1, 8 * 8).reshape(1, 1, 8, 8).repeat(2, config["in_channels"], 1, 1)
        )
        arguments: dict[str, Any] = {"class_labels": torch.tensor([0, 0])}
        if plain.class_embedding is None:
            arguments = {}
        with torch.no_grad():
            return torch.equal(
                *(_output(model.eval(), inputs, arguments) for model in (plain, denoiser.model))
            )


def _output(model: Any, inputs: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """What a model gives, NaN as 0; of no number where it does not run."""
    try:
        return model(inputs, torch.tensor([1, 2]), **arguments).sample.nan_to_num()
    except (RuntimeError, ValueError, IndexError):
        return torch.empty(0)


def weights(folder: Path) -> Case:
    """Return the case of weights that are others."""
    model = HostileModel(folder)
    content = model.files[WEIGHTS]
    (size,) = struct.unpack_from("<Q", content)
    header, tensors = json.loads(content[8 : 8 + size]), content[8 + size :]

    def case(random: Random) -> bool:
        kind = random.randrange(3)
        if kind == 0:
            changed = mutate_bytes(content, random)
        elif kind == 1:  # where the header is
            head = mutate_bytes(content[: 8 + size], random)
            changed = head + tensors
        else:
            spelled = spell_json(mutate_json(header, random), random)
            changed = struct.pack("<Q", len(spelled)) + spelled + tensors
        return model.judge(WEIGHTS, changed)

    return case


def configuration(folder: Path) -> Case:
    """Return the case of a config.json that is another, or of the pipeline or the scheduler."""
    model = HostileModel(folder)

    def case(random: Random) -> bool:
        name = random.choice((CONFIG, CONFIG, CONFIG, SCHEDULER, PIPELINE))
        content = model.files[name]
        if random.random() < 0.3:
            return model.judge(name, mutate_bytes(content, random))
        return model.judge(name, spell_json(mutate_json(json.loads(content), random), random))

    return case


KINDS: dict[str, Callable[[Path], Case]] = {
    "safetensors": weights,
    "config.json": configuration,
}
