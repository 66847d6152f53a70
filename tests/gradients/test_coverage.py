"""The denoisers and adapters that people use most: every parameter's gradient is autograd's.

`tools/bench coverage` compares many more of them in the same way.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools" / "benchmarks"))
from coverage_adapters import MODELS as ADAPTERS
from coverage_check import Case, compare
from coverage_images import MODELS as IMAGES
from coverage_models import MODELS

# Adapters of each way to be captured: by rules, followed, by autograd in batches and in a loop.
KINDS = ("LoRA", "LoCon", "DoRA", "LoHa on convolutions", "LoKr", "OFT")
CASES = {
    **MODELS,
    **{name: case for name, case in ADAPTERS.items() if name.rpartition(",")[0] in KINDS},
    **{name: IMAGES[name] for name in ("HunyuanDiT", "Z-Image", "CLIP text encoder")},
}

# diffusers' and peft's own, of classes that are used as they stand.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",
)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_every_gradient_is_autograds(make: Callable[[], Case]) -> None:
    coverage = compare(make)
    assert coverage.refused is None
    assert coverage.wrong == []
    assert coverage.parameters > 0


def test_what_runs_without_gradients_is_refused() -> None:
    """HiDream's experts, which autograd would pass over in silence."""
    coverage = compare(IMAGES["HiDream"])
    assert "experts.0.w1" in (coverage.refused or "")
