"""Rows of every kind, and the scores that can be made of them: what `tools/bench lds` holds against its models."""

import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from halves import CHECKPOINTS, asked_pictures, picture_folder, training_log, whole_model

import gradindex
from gradindex.plan import DIM
from gradindex.scoring import unit
from gradindex.search_index import METHODS
from gradindex.whiten import DAMPING


@dataclass(frozen=True)
class Setting:
    """Rows of one kind: how the store is built; dim 0 for whole gradients.

    Noise "trained" is each picture's own, at the last timesteps that it was trained on.
    """

    noise: str = "shared"
    output: str = "loss"
    timesteps: int = 10
    draws: int = 1
    checkpoints: int = 1
    dim: int = 4096
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def gradients(self) -> int:
        """Of a query."""
        return self.timesteps * self.draws * self.checkpoints


TRAINED = Setting(noise="trained", timesteps=25, draws=2)
SETTINGS = [
    Setting(),
    Setting(noise="own"),
    Setting(output="mean-square"),
    Setting(noise="own", output="mean-square"),
    Setting(noise="own", timesteps=50),
    Setting(noise="own", output="mean-square", timesteps=50),
    TRAINED,
    replace(TRAINED, output="mean-square"),
    *(Setting(timesteps=n) for n in (1, 2, 3, 5, 25, 50)),
    *(Setting(draws=n) for n in (2, 4, 16)),
    Setting(timesteps=5, draws=2),
    Setting(timesteps=25, draws=2),
    *(Setting(dim=n) for n in (256, 512, 1024, 2048, 8192)),
    Setting(timesteps=5, dim=0),
    Setting(checkpoints=CHECKPOINTS, dim=1024),
    Setting(checkpoints=CHECKPOINTS),
]
OURS = (Setting(), "retrac", "matched", "whitened")  # what `query` does unless told otherwise
PLACES = {
    "10 gradients": Setting(noise="own"),
    "50 gradients": Setting(noise="own", timesteps=50),
    "50 gradients, timesteps of training": TRAINED,
}
PEERS = {
    "the paper's TracIn": ("loss", "tracin", "mean", "plain"),
    "the paper's ReTrac": ("loss", "retrac", "mean", "plain"),
    "TRAK's": ("loss", "tracin", "mean-rows", "whitened"),
    "D-TRAK's": ("mean-square", "tracin", "mean-rows", "whitened"),
}
SEEDED = [Setting(), Setting(noise="own"), Setting(timesteps=5, draws=2), Setting(timesteps=50), Setting(draws=4)]


@dataclass(frozen=True)
class Rows:
    """What scores are made of: products of training rows with each other and with the queries'.

    Attributes:
        among: of training rows with each other, for each (method, kind of rows), [blocks, N, N].
        asked: of training rows with the queries', for each (method, pairing), [blocks, N, Q]. A block is a
            (checkpoint, timestep), a checkpoint for means over timesteps, a timestep for those over checkpoints.
    """

    among: dict[tuple[str, str], np.ndarray]
    asked: dict[tuple[str, str], np.ndarray]

    @classmethod
    def of(cls, work: Path, setting: Setting) -> "Rows":
        """Made now, unless they are there."""
        file = make_rows(work, setting)
        with np.load(file) as arrays:
            every: dict[str, dict[Any, np.ndarray]] = {"K": {}, "B": {}}
            for name in arrays:
                which, *key = name.split(" ")
                every[which][tuple(key)] = arrays[name]
        return cls(every["K"], every["B"])

    def scores(self, *way: str, damping: float = DAMPING) -> np.ndarray:
        """Of a method, pairing and treatment, [Q, N]: the mean over blocks."""
        return self.blocks(*way, damping=damping).mean(0)

    def blocks(self, method: str, pairing: str, treatment: str, damping: float = DAMPING) -> np.ndarray:
        """The scores of each block, [blocks, Q, N].

        (GᵀG/N + λI)⁻¹ is taken on the other side: G (…)⁻¹ q = (GGᵀ/N + λI)⁻¹ G q.
        """
        if (pairing, treatment) == ("mean", "centred"):
            pairing = "mean-rows"  # what is subtracted is a mean over timesteps, too
        among, asked = self.among[method, ROWS_OF[pairing]], self.asked[method, pairing]
        if treatment == "plain":
            return asked.transpose(0, 2, 1)
        if treatment == "centred":  # rows and queries, by the mean row
            return (asked - among.mean(2, keepdims=True)).transpose(0, 2, 1)
        moments = among.astype(np.float64) / among.shape[1]
        loads = damping * np.trace(moments, axis1=1, axis2=2)
        whitened = np.linalg.solve(moments + loads[:, None, None] * np.eye(among.shape[1]), asked)
        return whitened.transpose(0, 2, 1)


VERSION = 2  # of what is in their files
ROWS_OF = {  # a pairing; "mean-rows" is TRAK's way, "averaged" has means over checkpoints
    "matched": "rows",
    "mean": "rows",
    "mean-rows": "mean-rows",
    "averaged": "averaged",
}


def make_rows(work: Path, setting: Setting) -> Path:
    """The file with what `Rows` has; made now, unless it is there."""
    file = work / f"rows{VERSION}-{setting.name}.npz"
    if not file.exists():
        print(setting, flush=True)
        draft, store = file.with_suffix(".draft.npz"), work / f"store-{setting.name}"
        among, asked = products(work, store, setting)
        np.savez(draft, **{f"K {' '.join(key)}": value for key, value in among.items()},
                 **{f"B {' '.join(key)}": value for key, value in asked.items()})  # fmt: skip
        os.replace(draft, file)
        shutil.rmtree(store)  # with its factors and search files up to 7 GB, of which nothing more is asked
    return file


def products(work: Path, store: Path, setting: Setting) -> tuple[dict[tuple[str, str], np.ndarray], ...]:
    """What `Rows` has, from a store that gradindex builds and from the query gradients that it takes."""
    data, folders = picture_folder(work), whole_model(work)
    chosen = folders[-setting.checkpoints :] if setting.checkpoints > 1 else []
    if setting.noise == "trained":
        times = {"timesteps": "recorded", "log": training_log(work), "events": setting.timesteps, "noise": "own"}
    else:
        times = {"timesteps": setting.timesteps, "noise": setting.noise}
    index = gradindex.build(
        store, model=folders[-1], data=data, checkpoints=chosen or None, draws=setting.draws,
        output=setting.output, seed=setting.seed, dim=setting.dim or DIM,
        projection="auto" if setting.dim else "none", device="cpu", **times,
    )  # fmt: skip
    recorded = setting.noise == "trained"
    grid = {"query_timesteps": setting.timesteps, "query_draws": setting.draws} if recorded else {}
    pairing = "mean" if recorded else "matched"  # whose own means are what the mean pairing takes here
    question = index.question(list(torch.from_numpy(asked_pictures(work))), pairing=pairing, whiten=False, **grid)
    among, asked, every = {}, {}, index.store.unnormalized[:]
    checkpoints, times = range(every.shape[0]), range(every.shape[2])
    for method, q in zip(METHODS, index.query_blocks(question, *METHODS), strict=True):
        g = partial(_block, every, method)
        means = [q[:, c].mean(1) for c in checkpoints]
        rows = {
            "rows": (g(c, t) for c in checkpoints for t in times),
            "mean-rows": (sum(g(c, t) for t in times) / len(times) for c in checkpoints),
        }
        queries = {"mean": [mean for mean in means for _ in times], "mean-rows": means}
        if not recorded:
            queries["matched"] = [q[:, c, t] for c in checkpoints for t in times]
        if setting.checkpoints > 1:
            rows["averaged"] = (sum(g(c, t) for c in checkpoints) / len(checkpoints) for t in times)
            queries["averaged"] = [q[:, :, t].mean(1) for t in times]
        for kind, blocks in rows.items():
            pairings = [name for name in queries if ROWS_OF[name] == kind]
            found = [(block @ block.T, *(block @ queries[name][number].T for name in pairings))
                        for number, block in enumerate(blocks)]  # fmt: skip
            among[method, kind], *others = (np.stack(some) for some in zip(*found, strict=True))
            asked |= {(method, name): other for name, other in zip(pairings, others, strict=True)}
    return among, asked


def _block(every: np.ndarray, method: str, checkpoint: int, timestep: int) -> np.ndarray:
    """A method's rows there, [N, D] float32: one block at a time, since whole gradients are wide."""
    rows = every[checkpoint, :, timestep].astype(np.float32)
    return unit(rows) if method == "retrac" else rows
