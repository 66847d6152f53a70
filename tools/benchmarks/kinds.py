"""Rows of every kind, and the scores that can be made of them: what `tools/bench lds` holds against its models."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from build import write_pictures
from halves import CHECKPOINTS, asked_pictures, pictures, training_log, whole_model

import gradindex
from gradindex.plan import DIM
from gradindex.scoring import unit
from gradindex.search_index import METHODS
from gradindex.whiten import DAMPING


@dataclass(frozen=True)
class Setting:
    """Rows of one kind: how the store is built; dim 0 for whole gradients.

    With `trained` noise each picture has its own, at the last timesteps that it was trained on.
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
PEERS = {
    f"{name}, {where}": (setting, *way)
    for where, rows in {
        "10 gradients": Setting(noise="own"),
        "50 gradients": Setting(noise="own", timesteps=50),
        "50 gradients, timesteps of training": TRAINED,
    }.items()
    for name, output, *way in (
        ("the paper's TracIn", "loss", "tracin", "mean", "plain"),
        ("the paper's ReTrac", "loss", "retrac", "mean", "plain"),
        ("TRAK's", "loss", "tracin", "mean", "whitened"),
        ("D-TRAK's", "mean-square", "tracin", "mean", "whitened"),
    )
    if (setting := replace(rows, output=output)) in SETTINGS
}
SEEDED = [Setting(), Setting(noise="own"), Setting(timesteps=5, draws=2), Setting(timesteps=50), Setting(draws=4)]


@dataclass(frozen=True)
class Rows:
    """What scores are made of: products of training rows with each other and with the queries'.

    Attributes:
        products: for each (method, pairing), K [blocks, N, N] and B [blocks, N, Q]; a block is a
            (checkpoint, timestep), a checkpoint for the mean pairing, a timestep for rows averaged over checkpoints.
    """

    products: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, work: Path, setting: Setting) -> "Rows":
        file = work / f"rows-{setting.name}.npz"
        if not file.exists():
            print(setting, flush=True)
            draft = file.with_suffix(".draft.npz")
            np.savez(draft, **products(work, setting))
            os.replace(draft, file)
        with np.load(file) as arrays:
            names = {name[:-2] for name in arrays}
            every = {tuple(name.split(" ")): (arrays[f"{name} K"], arrays[f"{name} B"]) for name in names}
        return cls(every)

    def scores(self, *way: str, damping: float = DAMPING) -> np.ndarray:
        """Of a method, pairing and treatment, [Q, N]: the mean over blocks."""
        return self.blocks(*way, damping=damping).mean(0)

    def blocks(self, method: str, pairing: str, treatment: str, damping: float = DAMPING) -> np.ndarray:
        """The scores of each block, [blocks, Q, N].

        (GᵀG/N + λI)⁻¹ is taken on the other side: G (…)⁻¹ q = (GGᵀ/N + λI)⁻¹ G q.
        """
        among, asked = self.products[method, pairing]
        if treatment == "plain":
            return asked.transpose(0, 2, 1)
        if treatment == "centred":  # rows and queries, by the mean row
            return (asked - among.mean(2, keepdims=True)).transpose(0, 2, 1)
        moments = among.astype(np.float64) / among.shape[1]
        loads = damping * np.trace(moments, axis1=1, axis2=2)
        whitened = np.linalg.solve(moments + loads[:, None, None] * np.eye(among.shape[1]), asked)
        return whitened.transpose(0, 2, 1)


def products(work: Path, setting: Setting) -> dict[str, np.ndarray]:
    """The arrays of `Rows`, from a store that gradindex builds and from the query gradients that it takes."""
    data, folders = work / "pictures", whole_model(work)
    if not data.exists():
        write_pictures(data, pictures(work.parent)[0])
    chosen = folders[-setting.checkpoints :] if setting.checkpoints > 1 else []
    if setting.noise == "trained":
        times = {"timesteps": "recorded", "log": training_log(work), "events": setting.timesteps, "noise": "own"}
    else:
        times = {"timesteps": setting.timesteps, "noise": setting.noise}
    index = gradindex.build(
        work / f"store-{setting.name}", model=folders[-1], data=data, checkpoints=chosen or None, draws=setting.draws,
        output=setting.output, seed=setting.seed, dim=setting.dim or DIM,
        projection="auto" if setting.dim else "none", device="cpu", **times,
    )  # fmt: skip
    asked, found = list(torch.from_numpy(asked_pictures(work))), {}
    rows = index.store.unnormalized[:]
    grids = {"mean": {"query_timesteps": setting.timesteps, "query_draws": setting.draws}}
    if setting.noise != "trained":
        grids["matched"] = {}
    if setting.checkpoints > 1:
        grids["averaged"] = {}
    for pairing, options in grids.items():
        way = {"pairing": "mean" if pairing == "mean" else "matched", "whiten": False}
        blocks = index.query_blocks(index.question(asked, **way, **options), *METHODS)
        for method, block in zip(METHODS, blocks, strict=True):
            own = unit(rows) if method == "retrac" else rows
            if pairing == "mean":
                own, block = own.mean(2, keepdims=True), block[:, :, :1]
            if pairing == "averaged":  # over checkpoints, a timestep by itself
                own, block = own.mean(0, keepdims=True), block.mean(1, keepdims=True)
            pairs = [(own[c, :, t], block[:, c, t]) for c in range(own.shape[0]) for t in range(own.shape[2])]
            found[f"{method} {pairing} K"] = np.stack([g @ g.T for g, _ in pairs])
            found[f"{method} {pairing} B"] = np.stack([g @ q.T for g, q in pairs])
    return found
