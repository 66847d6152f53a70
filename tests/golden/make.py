"""Write the golden store of format version 1.

Run once per format version; never again for an old one.

python tests/golden/make.py tests/golden/v1
python tests/golden/make.py tests/golden/v1-compact compact
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradindex.recipe import Recipe
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.scoring import METHODS
from gradindex.store.store import Store

RECIPE = Recipe(
    model="UNet2DModel",
    config="c" * 64,
    checkpoints=("0" * 64, "1" * 64),
    scheduler='{"beta_schedule": "linear"}',
    prediction_type="epsilon",
    image=(1, 8, 8),
    classes=None,
    params=None,
    parameter_count=1234,
    dtype="float32",
    timesteps=(250, 750),
    draws=1,
    noise="shared",
    seed=0,
    loss="mse",
    projection="two-sided",
    rank=16,
    high_rank=("conv_out.weight",),
    dim=4,
    noise_version=1,
    projection_version=2,
)
COMPACT = replace(RECIPE, rows="compact")
IDS = ["a.png", "b/ü.png", "b/c.png"]


def rows(checkpoint: int) -> np.ndarray:
    """Numbers that need no generator: row i at timestep t is (i + 1) · [1, t, −c, 0.5].

    Picture 2 was skipped.
    """
    block = np.array([[[1, t, -checkpoint, 0.5] for t in range(2)] for _ in range(3)], np.float32)
    return block * np.float32([1, 2, 0])[:, None, None]


if __name__ == "__main__":
    store = Store.create(
        Path(sys.argv[1]),
        COMPACT if sys.argv[2:] == ["compact"] else RECIPE,
        IDS,
        model="m",
        scheduler=None,
        checkpoints=[{"path": "m"}, {"path": "m"}],
        weights=[0.5, 0.5],
        data={"source": "d", "columns": {"image": None, "id": None, "label": None}},
    )
    for shard in store.shards():
        store.write(
            shard,
            rows(shard.checkpoint),
            np.tile(np.float32([250, 750]), (3, 1)),
            [2],
            "aaaaaaaabbbbbbbbcccccccc",
        )
    store.finish()
    for method in METHODS:
        build_ann_index(store, method)
