"""Tiny models of further denoisers of pictures."""

from collections.abc import Callable
from typing import Any

import torch
from coverage_check import SAMPLES, Case, flow_times, noise, shaken, timesteps
from coverage_models import CROSS_ATTENTION, TUPLE, UNET, ids, model, text_unet
from diffusers import ControlNetModel
from torch import Tensor


def case(class_name: str, config: dict[str, Any], inputs: dict[str, Any], **fixed: Any) -> Case:
    """Return a model of a diffusers class, called with inputs and what all samples share."""
    return Case(model(class_name, **config), inputs, {**fixed, **TUPLE})


def latent(width: int = 6, channels: int = 4, size: int = 8) -> dict[str, Any]:
    """Return a latent, its timestep and a caption of five tokens of this width."""
    return {
        "hidden_states": noise(channels, size, size),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, width),
    }


def packed(width: int = 6, channels: int = 4) -> dict[str, Any]:
    """Return 16 tokens of a latent, its time and a caption of five tokens of this width."""
    return {
        "hidden_states": noise(16, channels),
        "timestep": flow_times(),
        "encoder_hidden_states": noise(5, width),
    }


def sizes_in_pixels() -> dict[str, Tensor]:
    """Return original size, target size and crop, [SAMPLES, 2] each."""
    size = torch.tensor([[64.0, 64.0], [96.0, 64.0], [64.0, 80.0]])
    return {"original_size": size, "target_size": size, "crop_coords": size * 0}


def kandinsky_2() -> Case:
    """Kandinsky 2.2: an image's embedding takes the caption's place."""
    unet = text_unet(
        encoder_hid_dim=10,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
    ).model

    class Kandinsky(torch.nn.Module):
        """The UNet, whose condition stands beside the sample."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: Tensor, image_embeds: Tensor, **others: Any) -> Any:
            """Call the UNet."""
            conditions = {"image_embeds": image_embeds}
            return self.unet(
                sample, encoder_hidden_states=None, added_cond_kwargs=conditions, **others
            )

    inputs = {"sample": noise(4, 8, 8), "timestep": timesteps(), "image_embeds": noise(10)}
    return Case(Kandinsky(), inputs, TUPLE)


def kandinsky_3() -> Case:
    """Attention pooling of the caption."""
    config = {
        "time_embedding_dim": 16,
        "groups": 4,
        "attention_head_dim": 4,
        "layers_per_block": 2,
        "block_out_channels": (8, 8, 16, 16),
        "cross_attention_dim": 8,
        "encoder_hid_dim": 6,
    }
    inputs = {
        "sample": noise(4, 16, 16),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
        "encoder_attention_mask": torch.ones(SAMPLES, 5),
    }
    return case("Kandinsky3UNet", config, inputs)


def stable_cascade() -> Case:
    """Its prior, with global response norms."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_in_channels": 10,
        "clip_text_pooled_in_channels": 12,
        "clip_image_in_channels": 12,
        "clip_seq": 2,
        "switch_level": (False,),
    }
    inputs = {
        "sample": noise(4, 8, 8),
        "timestep_ratio": flow_times(),
        "clip_text_pooled": noise(1, 12),
        "clip_text": noise(5, 10),
        "clip_img": noise(1, 12),
    }
    return case("StableCascadeUNet", config, inputs)


def prior() -> Case:
    """DALL·E 2's prior, as Kandinsky trains it."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "embedding_dim": 8,
        "num_embeddings": 5,
    }
    inputs = {
        "hidden_states": noise(8),
        "timestep": timesteps(),
        "proj_embedding": noise(8),
        "encoder_hidden_states": noise(5, 8),
        "attention_mask": torch.ones(SAMPLES, 5, dtype=torch.bool),
    }
    return case("PriorTransformer", config, inputs)


def controlnet() -> Case:
    """A ControlNet, which is trained through its residuals."""
    network = shaken(
        ControlNetModel(
            **{name: value for name, value in UNET.items() if name != "sample_size"},
            **{name: value for name, value in CROSS_ATTENTION.items() if name[:3] != "up_"},
            conditioning_embedding_out_channels=(4, 8),
        )
    )

    class Control(torch.nn.Module):
        """The network, whose residuals are one output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, sample: Tensor, **others: Any) -> Tensor:
            """Return all residuals side by side, [n, …]."""
            downs, middle = self.network(sample, **others, return_dict=False)
            return torch.cat([part.flatten(1) for part in (*downs, middle)], 1)

    inputs = {
        "sample": noise(4, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
        "controlnet_cond": noise(3, 16, 16),
    }
    return Case(Control(), inputs)


def hunyuan_dit() -> Case:
    """Captions of two encoders, padded with a learned one."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "patch_size": 2,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": 4,
        "text_len": 4,
        "text_len_t5": 4,
    }
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    inputs = {
        "hidden_states": noise(4, 8, 8),
        "timestep": timesteps().float(),
        "encoder_hidden_states": noise(4, 8),
        "text_embedding_mask": mask,
        "encoder_hidden_states_t5": noise(4, 8),
        "text_embedding_mask_t5": mask,
        "image_meta_size": noise(6).abs() * 100,
        "style": torch.zeros(SAMPLES, dtype=torch.long),
    }
    rotary = (torch.ones(16, 8), torch.zeros(16, 8))
    return case("HunyuanDiT2DModel", config, inputs, image_rotary_emb=rotary)


def aura_flow() -> Case:
    """Learned positions and registers."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "joint_attention_dim": 6,
        "caption_projection_dim": 8,
        "pos_embed_max_size": 16,
    }
    return case("AuraFlowTransformer2DModel", config, {**latent(), "timestep": flow_times()})


def lumina_2() -> Case:
    """Captions of different lengths."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 2,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (32, 32, 32),
        "cap_feat_dim": 6,
    }
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()
    inputs = {**latent(), "timestep": flow_times(), "encoder_attention_mask": mask}
    return case("Lumina2Transformer2DModel", config, inputs)


def cogview_3() -> Case:
    """Sizes beside the caption."""
    config = {
        "in_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "out_channels": 4,
        "text_embed_dim": 6,
        "time_embed_dim": 8,
        "condition_dim": 2,
        "pos_embed_max_size": 8,
        "sample_size": 8,
    }
    return case("CogView3PlusTransformer2DModel", config, {**latent(), **sizes_in_pixels()})


def cogview_4() -> Case:
    """As CogView3+, with rotary positions."""
    config = {
        "in_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 4,
        "num_attention_heads": 4,
        "out_channels": 4,
        "text_embed_dim": 6,
        "time_embed_dim": 8,
        "condition_dim": 4,
    }
    return case("CogView4Transformer2DModel", config, {**latent(), **sizes_in_pixels()})


def hunyuan_image() -> Case:
    """A refiner of the caption before joint attention."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": (1, 1),
        "text_embed_dim": 6,
        "rope_axes_dim": (4, 4),
    }
    inputs = {
        **latent(),
        "timestep": timesteps().float(),
        "encoder_attention_mask": torch.ones(SAMPLES, 5),
    }
    return case("HunyuanImageTransformer2DModel", config, inputs)


def krea_2() -> Case:
    """Norms that scale by one and a parameter; several layers of the caption."""
    config = {
        "in_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "timestep_embed_dim": 8,
        "text_hidden_dim": 8,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 1,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
    }
    positions = torch.cat([torch.zeros(5, 3), ids(1, 4, 4)])
    inputs = {**packed(), "encoder_hidden_states": noise(5, 3, 8)}
    return case("Krea2Transformer2DModel", config, inputs, position_ids=positions)


def z_image() -> Case:
    """Lists of latents and captions, their tokens padded by learned ones."""
    config = {
        "in_channels": 4,
        "dim": 16,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 1,
        "n_kv_heads": 1,
        "cap_feat_dim": 6,
        "axes_dims": [8, 4, 4],
        "axes_lens": [64, 32, 32],
    }
    inputs = {
        "x": list(noise(4, 1, 8, 8)),
        "t": flow_times(),
        "cap_feats": list(noise(5, 6)),
    }
    return case("ZImageTransformer2DModel", config, inputs)


def ernie_image() -> Case:
    """Samples on the second axis."""
    config = {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "num_layers": 1,
        "ffn_hidden_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 1,
        "text_in_dim": 6,
        "rope_axes_dim": (8, 4, 4),
        "qk_layernorm": True,
    }
    inputs = {
        "hidden_states": noise(4, 4, 4),
        "timestep": flow_times(),
        "text_bth": noise(5, 6),
        "text_lens": torch.tensor([5, 4, 5]),
    }
    return case("ErnieImageTransformer2DModel", config, inputs)


def omnigen() -> Case:
    """Captions and picture as one sequence."""
    config = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 16,
        "num_layers": 1,
        "vocab_size": 20,
        "pad_token_id": 0,
        "in_channels": 4,
        "time_step_dim": 4,
        "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
    }
    length = 5 + 1 + 16
    inputs = {
        "hidden_states": noise(4, 8, 8),
        "timestep": flow_times(),
        "input_ids": torch.arange(15).view(SAMPLES, 5),
        "attention_mask": torch.ones(SAMPLES, length, length),
        "position_ids": torch.arange(length).expand(SAMPLES, -1),
    }
    return case(
        "OmniGenTransformer2DModel", config, inputs, input_img_latents=[], input_image_sizes={}
    )


def hidream() -> Case:
    """Experts, which its evaluation mode runs without gradients."""
    config = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_channels": [6, 8],
        "text_emb_dim": 10,
        "num_routed_experts": 2,
        "num_activated_experts": 2,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (8, 8),
        "llama_layers": (0, 0),
    }

    class HiDream(torch.nn.Module):
        """The transformer, which wants the layers of its second caption first."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = model("HiDreamImageTransformer2DModel", **config)

        def forward(self, hidden_states: Tensor, llama: Tensor, **others: Any) -> Any:
            """Call the transformer."""
            layers = llama[None]
            return self.transformer(hidden_states, encoder_hidden_states_llama3=layers, **others)

    inputs = {
        "hidden_states": noise(4, 8, 8),
        "llama": noise(5, 8),
        "timesteps": timesteps(),
        "encoder_hidden_states_t5": noise(5, 6),
        "pooled_embeds": noise(10),
    }
    return Case(HiDream(), inputs, TUPLE)


def clip() -> Case:
    """CLIP's text encoder, as scripts train it beside the UNet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=5,
        projection_dim=8,
        bos_token_id=18,
        eos_token_id=19,
    )
    return Case(shaken(CLIPTextModel(config)), {"input_ids": torch.arange(15).view(3, 5)}, TUPLE)


MODELS: dict[str, Callable[[], Case]] = {
    "Kandinsky 2.2": kandinsky_2,
    "Kandinsky 3": kandinsky_3,
    "Stable Cascade": stable_cascade,
    "prior of Kandinsky": prior,
    "ControlNet": controlnet,
    "HunyuanDiT": hunyuan_dit,
    "AuraFlow": aura_flow,
    "Lumina 2": lumina_2,
    "CogView3+": cogview_3,
    "CogView4": cogview_4,
    "HunyuanImage": hunyuan_image,
    "Krea2": krea_2,
    "Z-Image": z_image,
    "ErnieImage": ernie_image,
    "OmniGen": omnigen,
    "HiDream": hidream,
    "CLIP text encoder": clip,
}
