"""Tiny models of denoisers of videos and sounds: frames and tokens are rows of many layers."""

from collections.abc import Callable
from typing import Any

import torch
from coverage_check import SAMPLES, Case, flow_times, noise, timesteps
from coverage_images import case
from coverage_models import TUPLE, model
from torch import Tensor

FRAMES = 2


def video(width: int = 6, channels: int = 4, tokens: int = 5) -> dict[str, Any]:
    """Return a latent video [channels, frames, 8, 8], its timestep and a caption."""
    return {
        "hidden_states": noise(channels, FRAMES, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(tokens, width),
    }


def cogvideox() -> Case:
    """Frames before channels."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
        "text_embed_dim": 6,
        "num_layers": 1,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "max_text_seq_length": 5,
    }
    inputs = {**video(), "hidden_states": noise(FRAMES, 4, 8, 8)}
    return case("CogVideoXTransformer3DModel", config, inputs)


def ltx() -> Case:
    """Packed tokens of a video."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "num_layers": 1,
        "caption_channels": 6,
    }
    inputs = {
        **video(),
        "hidden_states": noise(FRAMES * 16, 4),
        "encoder_attention_mask": torch.ones(SAMPLES, 5, dtype=torch.bool),
    }
    return case("LTXVideoTransformer3DModel", config, inputs, num_frames=FRAMES, height=4, width=4)


def hunyuan_video() -> Case:
    """Guidance, pooled captions, a refiner."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "guidance_embeds": True,
        "text_embed_dim": 6,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (2, 4, 4),
    }
    inputs = {
        **video(),
        "timestep": timesteps().float(),
        "pooled_projections": noise(8),
        "encoder_attention_mask": torch.ones(SAMPLES, 5),
        "guidance": torch.full((SAMPLES,), 6000.0),
    }
    return case("HunyuanVideoTransformer3DModel", config, inputs)


def wan() -> Case:
    """Scale-shift tables in every block."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 6,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 1,
        "cross_attn_norm": True,
        "rope_max_seq_len": 16,
    }
    return case("WanTransformer3DModel", config, video())


def mochi() -> Case:
    """Attention pooling of the caption."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "pooled_projection_dim": 8,
        "in_channels": 4,
        "text_embed_dim": 16,
        "time_embed_dim": 4,
        "max_sequence_length": 5,
    }
    inputs = {**video(16), "encoder_attention_mask": torch.ones(SAMPLES, 5, dtype=torch.bool)}
    return case("MochiTransformer3DModel", config, inputs)


def allegro() -> Case:
    """Patches of every frame."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "cross_attention_dim": 16,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 8,
        "caption_channels": 6,
    }
    return case("AllegroTransformer3DModel", config, video())


def easy_animate() -> Case:
    """Frames as rows of its patches."""
    config = {
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "in_channels": 4,
        "mmdit_layers": 1,
        "patch_size": 2,
        "num_layers": 1,
        "out_channels": 4,
        "sample_height": 8,
        "sample_width": 8,
        "text_embed_dim": 6,
        "time_embed_dim": 8,
    }
    return case("EasyAnimateTransformer3DModel", config, video())


def latte() -> Case:
    """Attention over pictures, then over frames: rows in two orders."""
    config = {
        "sample_size": 8,
        "num_layers": 1,
        "patch_size": 2,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "caption_channels": 6,
        "in_channels": 4,
        "cross_attention_dim": 8,
        "out_channels": 8,
        "attention_bias": True,
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "video_length": FRAMES,
    }
    return case("LatteTransformer3DModel", config, video())


def sana_video() -> Case:
    """Convolutions over time."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 6,
        "sample_size": 8,
        "rope_max_seq_len": 16,
    }
    return case("SanaVideoTransformer3DModel", config, video())


def kandinsky_5() -> Case:
    """Two captions, channels last."""
    config = {
        "in_visual_dim": 4,
        "in_text_dim": 6,
        "in_text_dim2": 8,
        "time_dim": 8,
        "out_visual_dim": 4,
        "model_dim": 16,
        "ff_dim": 16,
        "num_text_blocks": 1,
        "num_visual_blocks": 1,
        "axes_dims": (4, 2, 2),
    }
    inputs = {
        "hidden_states": noise(FRAMES, 8, 8, 4),
        "encoder_hidden_states": noise(5, 6),
        "timestep": timesteps().float(),
        "pooled_projections": noise(8),
    }
    positions = [torch.arange(count) for count in (FRAMES, 4, 4)]
    return case(
        "Kandinsky5Transformer3DModel",
        config,
        inputs,
        visual_rope_pos=positions,
        text_rope_pos=torch.arange(5),
    )


def unet_3d() -> Case:
    """ModelScope's: frames as rows, and convolutions over time."""
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "cross_attention_dim": 6,
        "attention_head_dim": 4,
        "layers_per_block": 1,
    }
    inputs = {
        "sample": noise(4, FRAMES, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
    }
    return case("UNet3DConditionModel", config, inputs)


def animate_diff() -> Case:
    """UNetMotion: motion modules between the layers of SD 1.5."""
    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "norm_num_groups": 16,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "cross_attention_dim": 6,
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "layers_per_block": 1,
    }
    unet = model("UNetMotionModel", **config)

    class AnimateDiff(torch.nn.Module):
        """The UNet, which wants the caption once for each frame."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
            """Call the UNet."""
            captions = encoder_hidden_states.repeat_interleave(FRAMES, 0)
            return self.unet(sample, encoder_hidden_states=captions, **others)

    inputs = {
        "sample": noise(4, FRAMES, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(5, 6),
    }
    return Case(AnimateDiff(), inputs, TUPLE)


def stable_video() -> Case:
    """Mixed spatial and temporal blocks."""
    config = {
        "sample_size": 8,
        "in_channels": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "cross_attention_dim": 6,
        "num_attention_heads": 4,
        "layers_per_block": 1,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "num_frames": FRAMES,
    }
    inputs = {
        "sample": noise(FRAMES, 8, 8, 8),
        "timestep": timesteps(),
        "encoder_hidden_states": noise(1, 6),
        "added_time_ids": noise(3).abs() * 100,
    }
    return case("UNetSpatioTemporalConditionModel", config, inputs)


def stable_audio() -> Case:
    """A sound's latent, one axis."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 2,
        "cross_attention_dim": 8,
        "time_proj_dim": 8,
        "global_states_input_dim": 8,
        "cross_attention_input_dim": 6,
    }
    inputs = {
        "hidden_states": noise(4, 8),
        "timestep": flow_times(),
        "encoder_hidden_states": noise(5, 6),
        "global_hidden_states": noise(1, 8),
    }
    return case("StableAudioDiTModel", config, inputs)


def minimax_h3() -> Case:
    """Picture, sound and caption in one sequence that all samples lay out alike."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "ffn_dim": 16,
        "in_channels": 4,
        "audio_in_channels": 6,
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    }
    text, audio, tokens = torch.arange(18).split([4, 6, 8])
    kinds = torch.cat([torch.full((4,), 1), torch.full((6,), 2), torch.zeros(8, dtype=torch.long)])
    positions = torch.zeros(18, 3)
    positions[:, 0] = torch.arange(18)
    inputs = {
        "hidden_states": noise(8, 16),
        "audio_hidden_states": noise(6, 6),
        "encoder_hidden_states": noise(4, 8),
    }
    return case(
        "MiniMaxH3Transformer3DModel",
        config,
        inputs,
        timestep=torch.tensor([0.7, 0.3]),
        timestep_indices=(kinds == 2).long(),
        token_tags=kinds,
        position_ids=positions,
        video_indices=tokens,
        audio_indices=audio,
        text_indices=text,
    )


MODELS: dict[str, Callable[[], Case]] = {
    "CogVideoX": cogvideox,
    "LTX": ltx,
    "HunyuanVideo": hunyuan_video,
    "Wan": wan,
    "Mochi": mochi,
    "Allegro": allegro,
    "EasyAnimate": easy_animate,
    "Latte": latte,
    "SanaVideo": sana_video,
    "Kandinsky 5": kandinsky_5,
    "UNet3D": unet_3d,
    "AnimateDiff": animate_diff,
    "Stable Video": stable_video,
    "Stable Audio": stable_audio,
    "MiniMax H3": minimax_h3,
}
