"""The kinds of adapters, on a text-to-image UNet and on a transformer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import torch
from coverage_check import Case
from coverage_models import sd3, text_unet

LINEAR = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2"]
VERA_SIZES = {"r": 4, "projection_prng_key": 0}

# {title: (its class in peft, its options, whether it adapts convolutions too)}
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "LoRA": ("LoraConfig", {"r": 2}, False),
    "rsLoRA": ("LoraConfig", {"r": 2, "use_rslora": True}, False),
    "LoRA with biases": ("LoraConfig", {"r": 2, "lora_bias": True}, False),
    "LoCon": ("LoraConfig", {"r": 2}, True),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}, True),
    "LoHa": ("LoHaConfig", {"r": 2, "alpha": 2}, False),
    "LoHa on convolutions": (
        "LoHaConfig",
        {"r": 2, "alpha": 2, "use_effective_conv2d": True},
        True,
    ),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 2}, True),
    "OFT": ("OFTConfig", {"oft_block_size": 2, "r": 0}, False),
    "BOFT": ("BOFTConfig", {"boft_block_size": 2}, False),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 3, "target_r": 2, "total_step": 9}, False),
    "IA3": ("IA3Config", {"feedforward_modules": []}, False),
    "VeRA": ("VeraConfig", VERA_SIZES, False),
}
# A transformer's blocks have no convolutions.
ON_TRANSFORMERS = [kind for kind in KINDS if kind not in ("LoCon", "LoHa on convolutions")]


def adapted(case: Case, kind: str, targets: list[str]) -> Case:
    """Return a case whose model has an adapter, which alone is trained."""
    class_name, options, _ = KINDS[kind]
    base = case.model.requires_grad_(False)
    config = getattr(peft, class_name)(target_modules=targets, **options)
    if kind == "VeRA":  # keeps what its layers share in a wrapper
        model = peft.get_peft_model(base, config)
    else:
        model = peft.inject_adapter_in_model(config, base)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Case(model.eval(), case.inputs, case.fixed)


def on_unet(kind: str) -> Case:
    """An adapter of SD 1.5's UNet."""
    convolutions = CONVOLUTIONS if KINDS[kind][2] else []
    return adapted(text_unet(), kind, LINEAR + convolutions)


def on_transformer(kind: str) -> Case:
    """An adapter of SD3's transformer."""
    return adapted(sd3(), kind, [*LINEAR, "ff.net.2"])


MODELS: dict[str, Callable[[], Case]] = {
    **{f"{kind}, SD 1.5": partial(on_unet, kind) for kind in KINDS},
    **{f"{kind}, SD3": partial(on_transformer, kind) for kind in ON_TRANSFORMERS},
}
