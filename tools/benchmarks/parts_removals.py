"""What taking out the pictures of the highest scores does: for the default, and for the former."""

from pathlib import Path

import numpy as np
from counterfactuals import Rises, counterfactuals
from kept_losses import PARTS, restore_losses
from parts_kinds import EVERYTHING
from parts_products import SEEDS, products_file, read_products
from parts_results import pixel_scores
from parts_scores import Scoring, block_scores
from parts_subjects import measured_subject
from parts_timesteps import timestep_sets
from subset_models import Subject

from gradindex.search.whitening import DAMPING

NAME = "fashion"
SETS = {"five weighted timesteps, the default": "weighted 5", "ten even timesteps": "even 10"}


def removals(work: Path) -> Rises:
    """Return by how many per cent losses rise, of whitened ReTrac and of pixels; kept losses count.

    See `counterfactuals`.
    """
    measured = measured_subject(NAME, work)
    folder, subject = work / measured.folder, measured.subject
    folder.mkdir(parents=True, exist_ok=True)
    restore_losses(PARTS, NAME, folder, subject)
    scores = {name: whitened_retrac(folder, subject, SETS[name]) for name in SETS}
    return counterfactuals(folder, {**scores, "pixels": pixel_scores(folder, subject)}, subject)


def whitened_retrac(folder: Path, subject: Subject, set_name: str) -> np.ndarray:
    """Return the scores of one seed at a set of timesteps, [2 · queries, N]."""
    scoring = Scoring("retrac", DAMPING)
    products = (
        read_products(products_file(folder, subject, t, SEEDS[0]), 1, EVERYTHING)
        for t in timestep_sets()[set_name]
    )
    return np.mean([block_scores(one, subject.pictures, scoring) for one in products], axis=0)
