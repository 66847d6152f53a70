"""What taking out the pictures of the highest scores does: for the default, and for the former."""

from pathlib import Path

from counterfactuals import Rises, counterfactuals
from kept_losses import PARTS, restore_losses
from parts_products import SEEDS
from parts_results import pixel_scores
from parts_scores import Scoring, mean_scores
from parts_subjects import measured_subject
from parts_timesteps import USUAL_SET, timestep_sets

from gradindex.search.factors import DAMPING

NAME = "fashion"
SETS = {"five weighted timesteps, the default": USUAL_SET, "ten even timesteps": "even 10"}


def removals(work: Path) -> Rises:
    """Return by how many per cent losses rise, of whitened ReTrac and of pixels; kept losses count.

    See `counterfactuals`.
    """
    measured = measured_subject(NAME, work)
    folder, subject = work / measured.folder, measured.subject
    folder.mkdir(parents=True, exist_ok=True)
    restore_losses(PARTS, NAME, folder, subject)
    scoring, sets = Scoring("retrac", DAMPING), timestep_sets()
    scores = {
        name: mean_scores(folder, subject, sets[set_name], SEEDS[0], scoring)
        for name, set_name in SETS.items()
    }
    return counterfactuals(folder, {**scores, "pixels": pixel_scores(folder, subject)}, subject)
