"""What PEFT's configuration of a LoRA says, made of the weights in its file."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from gradindex.models.adapter_files import BIAS, DOWN, MAGNITUDE


def lora_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of PEFT's `LoraConfig` for the layers that have these weights.

    Their scales are written into the layers afterwards.
    """
    end = f".{DOWN}"
    ranks = {
        name.removesuffix(end): len(value) for name, value in weights.items() if name.endswith(end)
    }
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    paths_of: dict[int, list[str]] = {}
    for path, rank in ranks.items():
        paths_of.setdefault(rank, []).append(path)
    return {
        "r": usual,
        "lora_alpha": usual,
        # PEFT compares a text as a regular expression of the whole path.
        "target_modules": _alternatives(list(ranks)),
        "rank_pattern": {
            f"^{_alternatives(paths)}": rank for rank, paths in paths_of.items() if rank != usual
        },
        "use_dora": any(name.endswith(MAGNITUDE) for name in weights),
        "lora_bias": any(name.endswith(BIAS) for name in weights),
    }


def _alternatives(paths: Iterable[str]) -> str:
    """A regular expression of these paths, and no others."""
    return f"({'|'.join(map(re.escape, paths))})"
