"""Tiny pipelines of the real classes with random weights, saved as diffusers saves them.

Captions are of small letters and blanks alone, for which the tiny vocabularies are made.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from conftest import make_pictures
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_WIDTH, T5_WIDTH = 16, 12  # numbers of a token
SD3_WIDTH = 36  # wider than both CLIPs side by side, which are padded
SIDE = 16  # pixels of the pictures


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """The module with random numbers in place of zeros and ones, which would hide mistakes."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
    return module.eval()


def make(class_name: str, seed: int = 1, **config: Any) -> Any:
    """A model of a diffusers class with random weights."""
    torch.manual_seed(seed)
    return shaken(getattr(diffusers, class_name)(**config), seed)


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's byte-level BPE with letters for its vocabulary."""
    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return transformers.CLIPTokenizer(*files, model_max_length=77)


def clip(seed: int, projected: bool = False) -> Any:
    """A CLIP text encoder, with a projection as SDXL's second and SD3's have it."""
    torch.manual_seed(seed)
    tokens = 2 * len(LETTERS)
    config = transformers.CLIPTextConfig(
        vocab_size=tokens + 2,
        hidden_size=CLIP_WIDTH,
        intermediate_size=16,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokens,
        eos_token_id=tokens + 1,
        pad_token_id=tokens + 1,
    )
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return shaken(getattr(transformers, kind)(config), seed)


def t5_tokenizer() -> Any:
    """T5's tokenizer with letters for its vocabulary."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    vocabulary = [(piece, 0.0 if number < 3 else -2.0) for number, piece in enumerate(pieces)]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def t5(seed: int, width: int = T5_WIDTH) -> Any:
    """A T5 text encoder."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=len(LETTERS) + 4,
        d_model=width,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return shaken(transformers.T5EncoderModel(config), seed)


def vae(channels: int = 4, **config: Any) -> Any:
    """An AutoencoderKL that halves a side."""
    return make(
        "AutoencoderKL",
        seed=3,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )


def unet(in_channels: int = 4, **config: Any) -> Any:
    """A UNet that is given captions."""
    return make(
        "UNet2DConditionModel",
        sample_size=SIDE // 2,
        in_channels=in_channels,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    )


def stable_diffusion(folder: Path, prediction_type: str = "epsilon", **config: Any) -> Path:
    """SD 1, or SD 2 with its velocities."""
    diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(4),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet(cross_attention_dim=CLIP_WIDTH, **config),
        scheduler=diffusers.PNDMScheduler(
            skip_prk_steps=True, steps_offset=1, prediction_type=prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def inpainting(folder: Path) -> Path:
    """SD's inpainting, with nine channels in."""
    diffusers.StableDiffusionInpaintPipeline(
        vae=vae(),
        text_encoder=clip(4),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet(9, cross_attention_dim=CLIP_WIDTH),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> Path:
    """SDXL, with two text encoders and sizes."""
    time_width = 8
    diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(4),
        text_encoder_2=clip(5, projected=True),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        tokenizer_2=clip_tokenizer(folder / "tokenizer_2"),
        unet=unet(
            cross_attention_dim=2 * CLIP_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=CLIP_WIDTH + 6 * time_width,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def ldm(folder: Path) -> Path:
    """An unconditional model of the latents of a VQ-VAE."""
    diffusers.LDMPipeline(
        vqvae=make(
            "VQModel",
            seed=3,
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            num_vq_embeddings=64,
            norm_num_groups=4,
        ),
        unet=make(
            "UNet2DModel",
            sample_size=SIDE // 2,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=diffusers.DDIMScheduler(),
    ).save_pretrained(folder)
    return folder


def dit(folder: Path, classes: int = 2, variance: bool = True) -> Path:
    """DiT with a learned variance."""
    diffusers.DiTPipeline(
        transformer=make(
            "DiTTransformer2DModel",
            sample_size=SIDE // 2,
            in_channels=4,
            out_channels=8 if variance else 4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            norm_num_groups=4,
            num_embeds_ada_norm=classes,
        ),
        vae=vae(),
        scheduler=diffusers.DDIMScheduler(),
    ).save_pretrained(folder)
    return folder


def pixart(folder: Path, sized: bool = False) -> Path:
    """PixArt-Σ, or α with the picture's sizes."""
    kind = diffusers.PixArtAlphaPipeline if sized else diffusers.PixArtSigmaPipeline
    kind(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(4),
        vae=vae(),
        transformer=make(
            "PixArtTransformer2DModel",
            sample_size=SIDE // 2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=6,
            cross_attention_dim=12,
            caption_channels=T5_WIDTH,
            norm_num_groups=4,
            use_additional_conditions=sized,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)
    return folder


def sd3(folder: Path, with_t5: bool = True) -> Path:
    """SD3, with T5 or without."""
    diffusers.StableDiffusion3Pipeline(
        vae=vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False),
        text_encoder=clip(4, projected=True),
        text_encoder_2=clip(5, projected=True),
        text_encoder_3=t5(6, SD3_WIDTH) if with_t5 else None,
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        tokenizer_2=clip_tokenizer(folder / "tokenizer_2"),
        tokenizer_3=t5_tokenizer() if with_t5 else None,
        transformer=make(
            "SD3Transformer2DModel",
            sample_size=SIDE // 2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            caption_projection_dim=8,
            joint_attention_dim=SD3_WIDTH,
            pooled_projection_dim=2 * CLIP_WIDTH,
            pos_embed_max_size=8,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return folder


def flux(folder: Path, guidance: bool = True) -> Path:
    """Flux dev, or schnell without guidance embedding."""
    diffusers.FluxPipeline(
        vae=vae(scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False),
        text_encoder=clip(4),
        text_encoder_2=t5(6),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        tokenizer_2=t5_tokenizer(),
        transformer=make(
            "FluxTransformer2DModel",
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            axes_dims_rope=(4, 2, 2),
            guidance_embeds=guidance,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=guidance
        ),
    ).save_pretrained(folder)
    return folder


def sana(folder: Path) -> Path:
    """Sana, with Gemma 2 and a VAE without a distribution."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *LETTERS]
    tokenizer = transformers.GemmaTokenizer(
        vocab={name: number for number, name in enumerate(names)}, merges=[]
    )
    torch.manual_seed(4)
    width = 16
    text_encoder = transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=make(
            "AutoencoderDC",
            seed=3,
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.41,
        ),
        transformer=make(
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
            caption_channels=width,
            sample_size=SIDE // 2,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder)
    return folder


def qwen_image(folder: Path) -> Path:
    """Qwen-Image, with Qwen2.5-VL and a VAE of films."""
    tokenizer = qwen_tokenizer()
    width = 16
    torch.manual_seed(4)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 2,
            "out_hidden_size": width,
        },
    )
    text_encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make(
            "AutoencoderKLQwenImage",
            seed=3,
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.0, 2.0],
        ),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=make(
            "QwenImageTransformer2DModel",
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=width,
            axes_dims_rope=(4, 2, 2),
        ),
    ).save_pretrained(folder)
    return folder


def qwen_tokenizer() -> Any:
    """Qwen's byte-level BPE without merges, which has each byte for a token."""
    from tokenizers.pre_tokenizers import ByteLevel

    names = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return transformers.Qwen2Tokenizer(
        vocab={name: number for number, name in enumerate(names)}, merges=[]
    )


def captioned_pictures(folder: Path, captions: list[str], seed: int = 0) -> list[Path]:
    """Colour pictures with their captions beside them."""
    files = sorted(make_pictures(folder, len(captions), SIDE, seed, "RGB").iterdir())
    for file, caption in zip(files, captions, strict=True):
        file.with_suffix(".txt").write_text(caption)
    return files


PIPELINES: dict[str, Callable[[Path], Path]] = {
    "sd": stable_diffusion,
    "inpainting": inpainting,
    "sdxl": sdxl,
    "ldm": ldm,
    "dit": dit,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
    "sana": sana,
    "qwen_image": qwen_image,
}
