"""VAE and text encoders that lie in one file with a denoiser, in the original layout.

Trainers such as kohya's train text encoders too, and write them beside the denoiser: pictures and
captions are then encoded with them, not with those of the pipeline around.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradindex.errors import ModelError, first_line
from gradindex.models.original_layout import PARTS, is_original
from gradindex.models.weights import listed, read_weights, weight_names

VAE = ("first_stage_model.", "vae.")
CLIP_L, OPEN_CLIP, T5 = "CLIP", "OpenCLIP", "T5"
# How names of text encoders begin: SD 1, SD 2, SDXL's two, and those of SD3 and Flux.
TEXT = {
    "cond_stage_model.transformer.": CLIP_L,
    "cond_stage_model.model.": OPEN_CLIP,
    "conditioner.embedders.0.transformer.": CLIP_L,
    "conditioner.embedders.1.model.": OPEN_CLIP,
    "text_encoders.clip_l.transformer.": CLIP_L,
    "text_encoders.clip_g.transformer.": CLIP_L,
    "text_encoders.t5xxl.transformer.": T5,
}
SECOND = ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer.")
# What is in such files and decides nothing of how pictures and captions are encoded.
UNUSED = ("position_ids", "logit_scale")
DECODER = ("decoder.", "post_quant_conv.")
WRAPPER = "text_model."  # around the names of CLIP's weights in some versions of transformers
PROJECTION = "text_projection.weight"  # the pipeline's stays where a file leaves it out


class OriginalParts:
    """The VAE and text encoders in a checkpoint's file.

    Attributes:
        file: where they are.
        files: none beside it.
        vae_digest, text_digest: SHA-256 of the weights in the file that encode pictures, and of
            those that encode captions; empty: there are none.
    """

    def __init__(
        self, file: Path, prefixes: Mapping[str, str], vae_digest: str, text_digest: str
    ) -> None:
        self.file, self.vae_digest, self.text_digest = file, vae_digest, text_digest
        self.files: list[Path] = []
        self._prefixes = prefixes  # {part of the pipeline: how its names begin in the file}

    @classmethod
    def read(cls, file: Path, vae: str, text_encoders: Collection[str]) -> Self | None:
        """Return the parts of a file in the original layout; None where it has no such part.

        Args:
            vae: name of the pipeline's VAE. text_encoders: names of its text encoders.

        Raises:
            ModelError: it holds a text encoder that the pipeline has not.
        """
        all_names = weight_names(file)
        names = [name for name in all_names if name.startswith(PARTS) and not _is_unused(name)]
        if not names or not is_original(all_names):
            return None
        prefixes: dict[str, str] = {}
        for prefix in (*VAE, *TEXT):
            if any(name.startswith(prefix) for name in names):
                prefixes.setdefault(_part_of(prefix, vae, text_encoders), prefix)
        known = tuple(prefixes[part] for part in prefixes if part in (vae, *text_encoders))
        if left := [name for name in names if not name.startswith(known)]:
            raise ModelError(
                f"{file}: holds text encoders that the pipeline has not ({listed(left)}); give as"
                " model the pipeline that this checkpoint was made from"
            )
        weights = read_weights([file], PARTS)
        encoding = {name: weights[name] for name in names if not _is_decoder(name)}
        text = {name: encoding.pop(name) for name in names if not name.startswith(VAE)}
        return cls(file, prefixes, _digest(encoding), _digest(text))

    def put_in(self, part: str, module: nn.Module) -> None:
        """Give a part of the pipeline the weights of the file, where they are others.

        Where the file has the pipeline's own weights in its precision, the pipeline's stay.

        Args:
            part: its name in the pipeline.
            module: the pipeline's, in any precision.

        Raises:
            ModelError: weights are missing, without a place, or of another shape.
        """
        if part not in self._prefixes:
            return
        places = _places(module)
        weights = self._converted(self._prefixes[part], module)
        shared = weights.keys() & places.keys()
        filled = {places[name].data_ptr() for name in shared}  # tied weights have one place
        missing = [name for name, place in places.items() if place.data_ptr() not in filled]
        left = weights.keys() - places.keys()
        if left or set(missing) - {PROJECTION}:
            problem = f"holds {listed(left)}" if left else f"lacks {listed(missing)}"
            raise self._unlike(part, f"{problem}, unlike the pipeline's")
        for name in sorted(shared):
            if weights[name].shape != places[name].shape:
                raise self._unlike(
                    part,
                    f"has {name} of shape {list(weights[name].shape)}, the pipeline's"
                    f" {list(places[name].shape)}",
                )
        if all(_is_same(weights[name], places[name]) for name in shared):
            return
        nn.Module.float(module)  # the pipeline's may be coarser than the file's
        places = _places(module)
        with torch.no_grad():
            for name in shared:
                places[name].copy_(weights[name])

    def _converted(self, prefix: str, module: nn.Module) -> dict[str, Tensor]:
        """The weights of a part, by the names that they have in its module."""
        from diffusers.loaders.single_file_utils import (
            convert_ldm_vae_checkpoint,
            convert_open_clip_checkpoint,
        )

        config: Any = module.config
        found = read_weights([self.file], prefix)
        try:
            if prefix in VAE:
                converted = convert_ldm_vae_checkpoint(found, config)
            elif TEXT[prefix] == OPEN_CLIP:
                converted = convert_open_clip_checkpoint(module, found, prefix=prefix)
            else:
                converted = {name.removeprefix(prefix): value for name, value in found.items()}
        except Exception as error:  # of a dozen kinds, where it is a part of another kind
            raise ModelError(
                f"{self.file}: its weights {prefix}… do not become a {type(module).__name__}"
                f" ({first_line(error)}); give as model the pipeline that it was made from"
            ) from error
        return {
            name.removeprefix(WRAPPER): weight
            for name, weight in converted.items()
            if not name.startswith(DECODER) and not _is_unused(name)
        }

    def _unlike(self, part: str, problem: str) -> ModelError:
        return ModelError(
            f"{self.file}: its {part} {problem}; give as model the pipeline that this checkpoint"
            " was made from"
        )


def _part_of(prefix: str, vae: str, text_encoders: Collection[str]) -> str:
    """The name of the pipeline's part that weights of a prefix belong to."""
    if prefix in VAE:
        return vae
    if TEXT[prefix] == T5:
        return max(text_encoders)  # the last of SD3's three and of Flux's two
    return "text_encoder_2" if prefix in SECOND else "text_encoder"


def _is_unused(name: str) -> bool:
    return name.endswith(UNUSED)


def _is_decoder(name: str) -> bool:
    """Whether a weight of a file is of the half of a VAE that makes pictures of latents."""
    return any(name.startswith(f"{prefix}{half}") for prefix in VAE for half in DECODER)


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights, by their names; empty where there are none."""
    if not weights:
        return ""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _places(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a part of the pipeline that encode, by their names in any version."""
    return {
        name.removeprefix(WRAPPER): weight
        for name, weight in module.state_dict().items()
        if not name.startswith(DECODER)
    }


def _is_same(weight: Tensor, other: Tensor) -> bool:
    """Whether a weight is what another one is in the precision of the first."""
    rounded = other.to(weight.device, weight.dtype)
    return torch.equal(weight.float(), rounded.float())
