"""Which rows and which scores `tools/bench lds` measures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

CHECKPOINTS = 4  # of the model that was trained on all pictures


@dataclass(frozen=True)
class RowSetting:
    """How a store of rows is built, and the gradients of its queries are taken.

    Attributes:
        noise: "shared", "own", or "trained": each picture's own, at the last timesteps that it was
            trained on.
        output: what gradients are taken of, "loss" or "mean-square".
        timesteps, draws, checkpoints: how many.
        dim: numbers of a row; 0 for whole gradients.
        seed: of noise and projection.
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
        """What files of these rows are called by."""
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def gradients(self) -> int:
        """How many gradients a query takes."""
        return self.timesteps * self.draws * self.checkpoints


class Scoring(NamedTuple):
    """How scores are made of rows.

    Attributes:
        method: "tracin" or "retrac".
        pairing: "matched", timestep by timestep; "mean", queries are means over timesteps;
            "mean-rows", rows too, as TRAK does; "averaged", both are means over checkpoints.
        treatment: "plain", "centred" by the mean row, or "whitened".
    """

    method: str
    pairing: str
    treatment: str


TRAINED = RowSetting(noise="trained", timesteps=25, draws=2)
SETTINGS = [
    RowSetting(),
    RowSetting(noise="own"),
    RowSetting(output="mean-square"),
    RowSetting(noise="own", output="mean-square"),
    RowSetting(noise="own", timesteps=50),
    RowSetting(noise="own", output="mean-square", timesteps=50),
    TRAINED,
    replace(TRAINED, output="mean-square"),
    *(RowSetting(timesteps=count) for count in (1, 2, 3, 5, 25, 50)),
    *(RowSetting(draws=count) for count in (2, 4, 16)),
    RowSetting(timesteps=5, draws=2),
    RowSetting(timesteps=25, draws=2),
    *(RowSetting(dim=dim) for dim in (256, 512, 1024, 2048, 8192)),
    RowSetting(timesteps=5, dim=0),
    RowSetting(checkpoints=CHECKPOINTS, dim=1024),
    RowSetting(checkpoints=CHECKPOINTS),
]
SEEDED = [  # settings that are measured with two seeds
    RowSetting(),
    RowSetting(noise="own"),
    RowSetting(timesteps=5, draws=2),
    RowSetting(timesteps=50),
    RowSetting(draws=4),
]
DAMPED = [  # settings that are measured with many dampings
    RowSetting(),
    *(RowSetting(dim=dim) for dim in (256, 1024, 8192)),
    *(RowSetting(timesteps=count) for count in (1, 50)),
]

# What `query` does unless told otherwise.
DEFAULT_ROWS = RowSetting()
DEFAULT_SCORING = Scoring("retrac", "matched", "whitened")

# What others do, {name: (what gradients are taken of, how scores are made)}; and with which rows.
PEERS = {
    "the paper's TracIn": ("loss", Scoring("tracin", "mean", "plain")),
    "the paper's ReTrac": ("loss", Scoring("retrac", "mean", "plain")),
    "TRAK's": ("loss", Scoring("tracin", "mean-rows", "whitened")),
    "D-TRAK's": ("mean-square", Scoring("tracin", "mean-rows", "whitened")),
}
PEER_ROWS = {
    "10 gradients": RowSetting(noise="own"),
    "50 gradients": RowSetting(noise="own", timesteps=50),
    "50 gradients, timesteps of training": TRAINED,
}


def find_row(
    rows: Sequence[dict[str, Any]], setting: RowSetting, scoring: Scoring
) -> dict[str, Any]:
    """Return the first of the published rows that is of this setting and scoring."""
    identity = {**asdict(setting), **scoring._asdict()}
    return next(row for row in rows if identity.items() <= row.items())
