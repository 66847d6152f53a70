"""Small real indexes over scikit-learn's digits, and the commands that make them."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from command_processes import Command, require_done
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from index_files import committed_shards, rows_of
from PIL import Image

import gradindex
from gradindex.errors import CallError, StoreError
from gradindex.search.scoring import METHODS
from gradindex.store.array_names import ROW_ARRAYS

PICTURES, FIRST, REMOVED = 92, 60, 5  # all, those of the first build, those that are removed
QUERIES = 2
SEED = 0  # of what kills, damages and disks draw
COMMANDS = ("build", "build, more pictures", "index", "remove")  # names of a setting's commands
SIZE, DIM, TIMESTEPS, K, BATCH = 8, 32, 2, 5, 8

Answers = dict[str, list[gradindex.Result]]  # {method: one result for each query}


class Setting:
    """A model, digits, and the indexes that each command makes of them.

    An index of some digits is built, grows to all of them, is indexed, and loses a few.

    Args:
        folder: for all of it; what was there is gone.

    Attributes:
        commands: {name: Command}.
        whole: the finished index that they lead to. mend: the command that mends it.
        truth: {finished index: its answers}.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.model = save_model(folder / "model")
        numbers = np.random.default_rng(0).permutation(PICTURES)
        first_data, all_data = folder / "first", folder / "all"
        self.queries = write_digits(folder / "queries", range(PICTURES, PICTURES + QUERIES))
        write_digits(first_data, sorted(numbers[:FIRST]))
        write_digits(all_data, range(PICTURES))
        removed = [f"{number:04d}.png" for number in numbers[:REMOVED]]
        first, grown, grown_anew = folder / "index", folder / "grown", folder / "grown-anew"
        self.whole = folder / "removed"
        self.commands = {
            "build": Command(None, first, "build", self._build_options(first_data)),
            "build, more pictures": Command(
                first, grown, "build", self._build_options(all_data), grown_anew
            ),
            "index": Command(grown, grown, "index"),
            "remove": Command(grown, self.whole, "remove", tuple(removed)),
        }
        growth = self.commands["build, more pictures"]
        self.mend = replace(growth, options=(*growth.options, "--check"))
        for command in self.commands.values():
            if not command.after.exists():
                command.lay_out(command.after)
                require_done(command.words(command.after), folder / "stderr")
        self.make_factors_anew(grown, grown_anew)
        self.truth = {index: self.answers(index) for index in (first, grown, self.whole)}

    def _build_options(self, data: Path) -> tuple[str, ...]:
        """The options of a build over the pictures in a folder."""
        options = {
            "model": self.model,
            "data": data,
            "timesteps": TIMESTEPS,
            "dim": DIM,
            "batch-size": BATCH,
            "device": "cpu",
        }
        words: list[str] = []
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        return tuple(words)

    def answers(self, index: Path) -> Answers:
        """Return an index's answers to the queries, by every method."""
        return {method: self.answer(index, method) for method in METHODS}

    def answer(self, index: Path, method: str) -> list[gradindex.Result]:
        """Return an index's answers to the queries, one result each."""
        opened = gradindex.open(index, device="cpu")
        return opened.query(self.queries, K, method, batch_size=BATCH)

    def make_factors_anew(self, index: Path, copy: Path) -> None:
        """Copy an index of all digits, and let a build make its whitening factors in one pass.

        A growth extends them by the rows that are new. Made anew they are the same up to rounding
        only.
        """
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(index, copy)
        for factor in copy.glob("whiten/*.f32"):
            factor.unlink()
        require_done(self.mend.words(copy), self.folder / "stderr")

    def check_stopped(self, folder: Path, command: Command) -> list[str]:
        """Return what is not as it should be after a command was stopped.

        Committed rows are those of an undisturbed run, and answers as before or as after; a first
        build that has not finished gives none. A copy is asked.
        """
        wrong = []
        for shard in committed_shards(folder):
            for array in ROW_ARRAYS:
                if rows_of(folder, array, shard) != rows_of(command.after, array, shard):
                    wrong.append(f"{array} of committed shard {shard.name} differs")
        true_answers = [self.truth[command.after]]
        if command.before:
            true_answers.append(self.truth[command.before])
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, copy)
        try:
            answers = self.answers(copy)
            if not any(are_alike(answers, truth) for truth in true_answers):
                wrong.append("another answer")
        except (StoreError, CallError) as error:
            if command.before:
                wrong.append(f"no answer: {error}")
        return wrong


def are_alike(answers: Answers, truth: Answers) -> bool:
    """Whether answers of every method are alike, see `rank_alike`."""
    return all(rank_alike(answers[method], truth[method]) for method in METHODS)


def rank_alike(results: Sequence[gradindex.Result], truth: Sequence[gradindex.Result]) -> bool:
    """Whether results, one a query, rank the same pictures with the same scores.

    Up to float rounding: where search files do not serve, a scan has other pictures beside each
    other in its products.
    """
    for result, true in zip(results, truth, strict=True):
        if result.ids != true.ids:
            return False
        if not np.allclose(result.scores, true.scores, rtol=1e-5, atol=0):
            return False
    return True


def save_model(folder: Path) -> Path:
    """Save a small DDPM pipeline with random weights; return its folder."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(folder)
    return folder


def write_digits(folder: Path, numbers: Sequence[int]) -> list[Path]:
    """Write scikit-learn's digits of these numbers as PNG files into a new folder."""
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    images = (load_digits().images / 16 * 255).astype(np.uint8)
    files = [folder / f"{number:04d}.png" for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        Image.fromarray(images[number]).save(file)
    return files
