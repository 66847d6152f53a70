"""Tiny models of the denoisers that people use most, each with its real class of diffusers."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from coverage_check import SAMPLES, Case, flow_times, noise, shaken, timesteps
from torch import Tensor

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CROSS_ATTENTION = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 6,
    "attention_head_dim": 4,
}
TUPLE = {"return_dict": False}  # what every model is called with


def model(class_name: str, **config: Any) -> Any:
    """Return a model of a diffusers class with random weights and no zeros among them."""
    return shaken(getattr(diffusers, class_name)(**config))


def ids(*counts: int) -> Tensor:
    """Return positions on a grid of image tokens, [tokens, axes]."""
    return torch.cartesian_prod(*map(torch.arange, counts)).float()


def unet_2d() -> Case:
    """Unconditional, in pixels."""
    unet = model(
        "UNet2DModel",
        **UNET,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return Case(unet, {"sample": noise(3, 8, 8), "timestep": timesteps()}, TUPLE)


def unet_2d_classes() -> Case:
    """Class-conditional, as LDM's on ImageNet."""
    unet = model(
        "UNet2DModel",
        **UNET,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        num_class_embeds=3,
    )
    inputs = {
        "sample": noise(3, 8, 8),
        "timestep": timesteps(),
        "class_labels": torch.tensor([0, 2, 1]),
    }
    return Case(unet, inputs, TUPLE)


def text_unet(channels: int = 4, **config: Any) -> Case:
    """A text-to-image UNet with these latent channels in."""
    unet = model("UNet2DConditionModel", **UNET, **CROSS_ATTENTION, in_channels=channels, **config)
    inputs = {
        "sample": noise(channels, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
    }
    return Case(unet, inputs, TUPLE)


def sd_2() -> Case:
    """Linear projections around its transformers."""
    return text_unet(use_linear_projection=True)


def inpainting() -> Case:
    """Latent, mask and masked latent."""
    return text_unet(9)


def sdxl() -> Case:
    """With pooled captions and sizes."""
    case = text_unet(
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=10 + 6 * 8,
    )
    pooled, sizes = noise(10), noise(6).abs() * 100

    class Sdxl(torch.nn.Module):
        """The UNet, whose conditions stand beside each other."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = case.model

        def forward(
            self, sample: Tensor, text_embeds: Tensor, time_ids: Tensor, **others: Any
        ) -> Any:
            """Call the UNet."""
            conditions = {"text_embeds": text_embeds, "time_ids": time_ids}
            return self.unet(sample, added_cond_kwargs=conditions, **others)

    inputs = {**case.inputs, "text_embeds": pooled, "time_ids": sizes}
    return Case(Sdxl(), inputs, TUPLE)


def lcm() -> Case:
    """A UNet that is told its guidance."""
    case = text_unet(time_cond_proj_dim=8)
    return Case(case.model, {**case.inputs, "timestep_cond": noise(8)}, TUPLE)


def deep_floyd() -> Case:
    """Blocks that scale and shift by the timestep, learned variance, projected captions."""
    unet = model(
        "UNet2DConditionModel",
        **UNET,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        encoder_hid_dim=6,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        class_embed_type="timestep",
    )
    inputs = {
        "sample": noise(3, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
        "class_labels": torch.tensor([10, 20, 30]),
    }
    return Case(unet, inputs, TUPLE)


def dit() -> Case:
    """Class labels and learned variance."""
    transformer = model(
        "DiTTransformer2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    inputs = {
        "hidden_states": noise(4, 8, 8),
        "timestep": timesteps(),
        "class_labels": torch.tensor([1, 7, 3]),
    }
    return Case(transformer, inputs, TUPLE)


def pixart(sizes: bool = False) -> Case:
    """PixArt-α with the conditions of its 1024 model, or PixArt-Σ."""
    transformer = model(
        "PixArtTransformer2DModel",
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=12,
        caption_channels=6,
        norm_num_groups=4,
        use_additional_conditions=sizes,
    )

    class PixArt(torch.nn.Module):
        """The transformer, whose conditions stand beside each other."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(
            self,
            hidden_states: Tensor,
            resolution: Tensor | None = None,
            aspect_ratio: Tensor | None = None,
            **others: Any,
        ) -> Any:
            """Call the transformer."""
            conditions = {"resolution": resolution, "aspect_ratio": aspect_ratio}
            return self.transformer(hidden_states, added_cond_kwargs=conditions, **others)

    inputs = {
        "hidden_states": noise(4, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
    }
    if sizes:
        inputs |= {"resolution": noise(2).abs() * 100, "aspect_ratio": noise(1).abs()}
    return Case(PixArt(), inputs, TUPLE)


def pixart_sizes() -> Case:
    """PixArt-α's 1024 model: its embedders of sizes get two rows for each sample."""
    return pixart(sizes=True)


def sd3(**config: Any) -> Case:
    """Joint attention."""
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "caption_projection_dim": 8,
        "joint_attention_dim": 6,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 8,
    }
    transformer = model("SD3Transformer2DModel", **defaults, **config)
    inputs = {
        "hidden_states": noise(4, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
        "pooled_projections": noise(10),
    }
    return Case(transformer, inputs, TUPLE)


def sd3_5() -> Case:
    """Normalized queries and keys, a second attention."""
    return sd3(qk_norm="rms_norm", dual_attention_layers=(0,))


def flux(guidance: bool = True) -> Case:
    """Flux dev, or schnell without guidance."""
    transformer = model(
        "FluxTransformer2DModel",
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 2, 2),
        guidance_embeds=guidance,
    )
    inputs = {
        "hidden_states": noise(16, 8),
        "timestep": flow_times(),
        "encoder_hidden_states": noise(5, 6),
        "pooled_projections": noise(10),
    }
    if guidance:
        inputs["guidance"] = torch.full((SAMPLES,), 3.5)
    fixed = {"img_ids": ids(1, 4, 4), "txt_ids": torch.zeros(5, 3), **TUPLE}
    return Case(transformer, inputs, fixed)


def flux_schnell() -> Case:
    """Without guidance."""
    return flux(guidance=False)


def flux_2() -> Case:
    """One modulation for all blocks."""
    transformer = model(
        "Flux2Transformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    inputs = {
        "hidden_states": noise(16, 4),
        "timestep": flow_times(),
        "encoder_hidden_states": noise(5, 6),
        "guidance": torch.full((SAMPLES,), 4.0),
        "img_ids": ids(1, 4, 4, 1).expand(SAMPLES, -1, -1),
        "txt_ids": ids(1, 1, 1, 5).expand(SAMPLES, -1, -1),
    }
    return Case(transformer, inputs, TUPLE)


def chroma() -> Case:
    """Flux whose modulations come from one network."""
    transformer = model(
        "ChromaTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        axes_dims_rope=(4, 2, 2),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    inputs = {
        "hidden_states": noise(16, 4),
        "timestep": flow_times(),
        "encoder_hidden_states": noise(5, 6),
    }
    fixed = {"img_ids": ids(1, 4, 4), "txt_ids": torch.zeros(5, 3), **TUPLE}
    return Case(transformer, inputs, fixed)


def sana() -> Case:
    """Linear attention, convolutions between."""
    transformer = model(
        "SanaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    inputs = {
        "hidden_states": noise(4, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 8),
    }
    return Case(transformer, inputs, TUPLE)


def qwen_image() -> Case:
    """Packed latents with their shapes."""
    transformer = model(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        axes_dims_rope=(4, 2, 2),
    )
    inputs = {
        "hidden_states": noise(16, 16),
        "timestep": flow_times(),
        "encoder_hidden_states": noise(5, 6),
        "encoder_hidden_states_mask": torch.ones(SAMPLES, 5, dtype=torch.long),
        "img_shapes": [[(1, 4, 4)]] * SAMPLES,
    }
    return Case(transformer, inputs, TUPLE)


# The twenty that tests/gradients/test_coverage.py holds.
MODELS: dict[str, Callable[[], Case]] = {
    "UNet2D": unet_2d,
    "UNet2D with classes": unet_2d_classes,
    "SD 1.5": text_unet,
    "SD 2": sd_2,
    "inpainting": inpainting,
    "SDXL": sdxl,
    "LCM": lcm,
    "DeepFloyd IF": deep_floyd,
    "DiT": dit,
    "PixArt-Σ": pixart,
    "PixArt-α with sizes": pixart_sizes,
    "SD3": sd3,
    "SD3.5": sd3_5,
    "Flux dev": flux,
    "Flux schnell": flux_schnell,
    "Flux2": flux_2,
    "Chroma": chroma,
    "Sana": sana,
    "QwenImage": qwen_image,
}
