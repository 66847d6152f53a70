"""The verdict of a diagnosis: what its numbers mean, in some sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradindex.recipe import Recipe
from gradindex.search.query import QUERY_DRAWS, QUERY_TIMESTEPS
from gradindex.wording import counted

# Shares of a list that two noise seeds have in common.
STEADY = 0.8
HALF = 0.5
GENERAL = "0.5"  # of the lists: pictures in so many say little about any one query
FOLLOWS_NORM = 0.7  # Spearman's ρ of mean score and gradient norm


def verdict(diagnosis: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return what a `Diagnosis` comes to: how far to trust a list, and what would be better.

    The bounds are those above; they were chosen, not fitted to anything.

    >>> influence = {"retrac": {"general": {"0.5": 0}, "norm_correlation": 0.1}}
    >>> influence["tracin"] = influence["retrac"]
    >>> verdict({"influence": influence}, recipe=None)
    ['no picture is in half of the lists: they tell queries apart']
    """
    lines = []
    if noise := diagnosis.get("noise"):
        setting = _own_setting(noise, recipe)
        lines.append(_noise_line(setting["retrac"]["overlap"]))
    influence = diagnosis["influence"]
    lines.append(_general_line(influence["retrac"]["general"][GENERAL]))
    if abs(influence["tracin"]["norm_correlation"]) >= FOLLOWS_NORM:
        lines.append(
            "tracin ranks pictures by the size of their gradients whatever is asked:"
            " prefer --method retrac"
        )
    return lines


def _own_setting(noise: Sequence[Any], recipe: Recipe) -> Any:
    """The agreement at the index's own timesteps and draws, which are always among those tried.

    Of recorded timesteps it is that of the mean pairing's, or of all that the scheduler has where
    these are fewer.
    """
    timesteps, draws = len(recipe.timesteps), recipe.draws
    if recipe.events is not None:
        timesteps, draws = QUERY_TIMESTEPS, QUERY_DRAWS
    tried = [one for one in noise if one["draws"] == draws and one["timesteps"] <= timesteps]
    return max(tried, key=lambda one: one["timesteps"])


def _noise_line(overlap: float) -> str:
    """How much of a list other noise would have put there too (retrac)."""
    same = f"{overlap:.0%} of a list would be in it with other noise too (retrac)"
    if overlap >= STEADY:
        return f"steady: {same}"
    if overlap >= HALF:
        return f"partly noise: {same}; more timesteps or draws make it steadier"
    return f"mostly noise: {same}; use more timesteps or draws before you rely on a list"


def _general_line(count: int) -> str:
    """How many pictures are in half of the lists or more (retrac)."""
    if not count:
        return "no picture is in half of the lists: they tell queries apart"
    pictures = counted(count, "picture is", "pictures are")
    return (
        f"{pictures} in half of the lists or more: influential for everything, these say little"
        " about any one query"
    )
