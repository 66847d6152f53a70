"""Small models, and adapters of them as each trainer writes them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

FLUX_RANK, FLUX_ALPHA = 3, 7.0  # of `kohya_flux`
Layers = dict[str, tuple[Tensor, Tensor]]  # {path: down and up}


def make_unet(**changes: Any) -> UNet2DConditionModel:
    """A small UNet of Stable Diffusion's kind, with random weights."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**arguments, **changes}).eval()


def make_flux() -> FluxTransformer2DModel:
    """A small Flux with a guidance embedding, whose gates are not zero."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def unet_output(unet: Any) -> Tensor:
    """What a UNet makes of two fixed examples."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn((2, 4, 8, 8), generator=random)
    text = torch.randn((2, 7, 16), generator=random)
    with torch.no_grad():
        return unet(x, torch.tensor([10, 700]), text).sample


def flux_output(flux: Any) -> Tensor:
    """What a Flux makes of two fixed examples of four tokens, three of text."""
    random = torch.Generator().manual_seed(1)
    tokens, text = (torch.randn((2, n, width), generator=random) for n, width in ((4, 4), (3, 12)))
    pooled = torch.randn((2, 10), generator=random)
    ids = torch.tensor([[0.0, row, column] for row in range(2) for column in range(2)])
    with torch.no_grad():
        return flux(
            tokens,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=torch.tensor([0.1, 0.7]),
            img_ids=ids,
            txt_ids=torch.zeros(3, 3),
            guidance=torch.full((2,), 3.5),
        ).sample


def layers_of(model: nn.Module, *ends: str) -> Iterator[tuple[str, Any]]:
    """The linear layers and convolutions whose paths end in one of these names."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path.endswith(ends):
            yield path, module


def random_lora(model: nn.Module, *ends: str, rank: int = 3, seed: int = 0) -> Layers:
    """Random down and up weights of the layers whose paths end so."""
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for path, module in layers_of(model, *ends):
        shape = module.weight.shape
        down = torch.randn((rank, *shape[1:]), generator=random) * 0.3
        up = torch.randn((shape[0], rank, *[1] * (len(shape) - 2)), generator=random) * 0.3
        layers[path] = down, up
    return layers


def product(down: Tensor, up: Tensor) -> Tensor:
    """up · down, of the shape of the weight that it is added to."""
    return torch.einsum("or,r...->o...", up.flatten(1), down)


def merge(model: Any, layers: Layers, scales: Mapping[str, float] | float) -> Any:
    """The model with W + scale · up · down in place of each weight W, by hand."""
    with torch.no_grad():
        for path, (down, up) in layers.items():
            scale = scales if isinstance(scales, float) else scales[path]
            model.get_submodule(path).weight += scale * product(down, up)
    return model


def save(weights: Mapping[str, Tensor], file: Path, **metadata: str) -> Path:
    """Write a safetensors file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, file, metadata={"format": "pt", **metadata})
    return file


def save_kohya(
    layers: Layers, file: Path, alpha: float, prefix: str = "lora_unet_", **metadata: str
) -> Path:
    """Write a LoRA as kohya's sd-scripts do: names with underscores, alpha beside each layer."""
    weights = {}
    for path, (down, up) in layers.items():
        name = prefix + path.replace(".", "_")
        weights[f"{name}.lora_down.weight"] = down
        weights[f"{name}.lora_up.weight"] = up
        weights[f"{name}.alpha"] = torch.tensor(alpha)
    return save(weights, file, **metadata)


def save_ai_toolkit(layers: Layers, file: Path) -> Path:
    """Write a LoRA as ai-toolkit does: diffusers' names, alpha = rank, so no alpha."""
    weights = {}
    for path, (down, up) in layers.items():
        weights[f"transformer.{path}.lora_A.weight"] = down
        weights[f"transformer.{path}.lora_B.weight"] = up
    return save(weights, file, software='{"name": "ai-toolkit"}')


def with_peft(model: Any, layers: Layers, **settings: Any) -> Any:
    """A model into which PEFT has put a LoRA with these weights, as a training script does."""
    config = LoraConfig(target_modules=list(layers), **settings)
    inject_adapter_in_model(config, model)
    with torch.no_grad():
        for path, (down, up) in layers.items():
            layer = model.get_submodule(path)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
    return model


def metadata_of(model: Any, prefix: str) -> dict[str, str]:
    """The header that diffusers' `save_lora_weights` makes of a model's LoraConfig."""
    settings = model.peft_config["default"].to_dict()
    settings = {f"{prefix}.{name}": _plain(value) for name, value in settings.items()}
    return {"lora_adapter_metadata": json.dumps(settings)}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def change_magnitudes(model: Any) -> None:
    """Give DoRA's magnitudes other values than those that change nothing."""
    random = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=random)


def kohya_flux(tmp_path: Path) -> tuple[Path, Layers]:
    """A LoRA of kohya's Flux script, and the same by diffusers' layers."""
    random = torch.Generator().manual_seed(2)
    single = "single_transformer_blocks.0"
    fused = {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{i}" for i in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{i}_proj" for i in "qkv"],
        "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.txt_mod.lin": ["transformer_blocks.0.norm1_context.linear"],
        "single_blocks.0.linear1": [
            *(f"{single}.attn.to_{i}" for i in "qkv"),
            f"{single}.proj_mlp",
        ],
        "single_blocks.0.linear2": [f"{single}.proj_out"],
    }
    flux = make_flux()
    original, lora = {}, {}
    for name, paths in fused.items():
        shapes = [flux.get_submodule(path).weight.shape for path in paths]
        down = torch.randn((FLUX_RANK, shapes[0][1]), generator=random) * 0.3
        up = torch.randn((sum(shape[0] for shape in shapes), FLUX_RANK), generator=random) * 0.3
        original[name] = down, up
        rows = up.split([shape[0] for shape in shapes])
        lora |= {path: (down, part) for path, part in zip(paths, rows, strict=True)}
    return save_kohya(original, tmp_path / "flux.safetensors", FLUX_ALPHA), lora
