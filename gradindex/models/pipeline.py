"""The pipeline around a model of latents: its VAE and text encoders turn pictures into examples.

They are loaded at first use, and `release` lets them go: a build needs them before the model, not
beside it.
"""

import gc
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import MissingPackage, ModelError, first_line
from gradindex.models.adapter_files import Adapter
from gradindex.models.adapters import inject_adapter
from gradindex.models.caption_encoder import CaptionEncoder
from gradindex.models.devices import DTYPES, plain_torch, products_in
from gradindex.models.examples import Examples, Pictures, positions_by
from gradindex.models.families.family import Family
from gradindex.models.folder import (
    common_variant,
    is_set,
    is_text_part,
    latent_parts,
    parts_digest,
    read_json,
    read_pipeline,
)
from gradindex.models.latents import encode_with, scale_latents, scaled_arrays
from gradindex.models.own_parts import own_parts
from gradindex.models.quiet import quiet_libraries
from gradindex.models.refusals import pipeline_class, require_vocabulary
from gradindex.random_numbers import noise
from gradindex.recipe import MEAN, SAMPLE

ENCODED_AT_ONCE = 8  # pictures


class Encoder:
    """What makes examples of pictures and captions: a pipeline's VAE and text encoders.

    Args:
        folder: of the pipeline, with model_index.json.
        family: of its model.
        config: of its model.
        latents: "mean" of the VAE's distribution, or "sample", keyed by seed and id; "npz" is the
            mean of pictures that come without latents.
        seed: of sampled latents.
        device: where the parts run.
        dtype: of the text encoders, a key of `DTYPES`; the VAE runs in float32.
        adapter: of the model; what it changes in text encoders is applied.
        checkpoint: its file, or the folder around the folder of its weights; VAE and text encoders
            that lie in it are used. None: there are none but the pipeline's.

    Attributes:
        latents: see there.
        own_files: weight files of text encoders in the checkpoint's folder.

    Raises:
        ModelError: the pipeline has no VAE, or parts that a caption needs are missing, or those
            that the adapter changes.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        config: Any,
        *,
        latents: str = MEAN,
        seed: int = 0,
        device: str = "cpu",
        dtype: str = "float32",
        adapter: Adapter | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        options: dict[str, Any] = {"latents": latents, "seed": seed, "device": device}
        options |= {"dtype": dtype, "checkpoint": checkpoint}
        self._with = partial(Encoder, folder, family, config, **options)
        self.folder = folder
        self._family = family
        self._shapes = family.condition_shapes(config)
        self._blank_name = family.blank(config)
        self.latents = latents
        self._seed = seed
        self._device = device
        self._dtype = DTYPES[dtype]
        self._parts = read_pipeline(folder) or {}
        self._vae_name = self._find_vae()
        if family.captioned:
            self._require_text_encoders()
        names = [name for name in self._needed_parts() if name.startswith("text_encoder")]
        self._own = own_parts(checkpoint, folder, self._vae_name, names)
        self.own_files = [] if self._own is None else self._own.files
        self._adapter = adapter
        if adapter is not None:
            self._require_parts_of(adapter)
        self._pipeline: Any = None
        self._captions = CaptionEncoder(folder, family, config)
        self._blanks: dict[tuple[int, ...], np.ndarray] = {}  # latents by their pictures' shapes

    def _find_vae(self) -> str:
        names = latent_parts(self.folder)
        for name in names:
            if (self.folder / name / "config.json").is_file():
                return name
        raise ModelError(
            f"{self.folder}: the pipeline's {' and '.join(names)}, which makes latents of pictures,"
            " is not there; give the folder of the whole pipeline"
        )

    def _require_text_encoders(self) -> None:
        """Raise ModelError where a part that encodes captions is missing."""
        names = {"text_encoder", "tokenizer"}
        names |= {name for name in self._parts if is_text_part(name)}
        for name in sorted(names):
            is_there = is_set(self._parts.get(name))
            if not is_there and name in self._family.optional_parts:
                continue
            if not is_there or not (self.folder / name).is_dir():
                raise ModelError(
                    f"{self.folder}: the pipeline's {name}, which encodes captions, is not there;"
                    " give the folder of the whole pipeline"
                )
            if name.startswith("tokenizer"):
                require_vocabulary(self.folder / name)

    def _require_parts_of(self, adapter: Adapter) -> None:
        """Raise ModelError where an adapter changes a text encoder that is not there."""
        parts = self._needed_parts()
        for name in adapter.text_encoders:
            if name not in parts:
                raise ModelError(
                    f"{adapter.path}: changes the {name}, and {self.folder} has none that encodes"
                    " captions; give the base model that the adapter was trained on"
                )

    @cached_property
    def factor(self) -> int:
        """How many pixels of a side one number of a latent stands for."""
        config = read_json(self.folder / self._vae_name / "config.json")
        for name in ("encoder_block_out_channels", "block_out_channels", "dim_mult"):
            if isinstance(config.get(name), list):
                return int(2 ** (len(config[name]) - 1))
        kind = config.get("_class_name")
        raise ModelError(f"{self.folder / self._vae_name}: a VAE of class {kind!r} is not known")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the files of VAE, text encoders and tokenizers."""
        return parts_digest(self.folder, self._needed_parts())

    @property
    def latents_key(self) -> str:
        """What decides on latents: `digest`, and the VAE that a checkpoint has in its place."""
        return f"{self.digest} {self._own.vae_digest if self._own else ''}".strip()

    @property
    def captions_key(self) -> str | None:
        """What decides on encoded captions; None: the model is given none."""
        if not self._family.captioned:
            return None
        digests = [self.digest, self._own.text_digest if self._own else ""]
        if self._adapter is not None and self._adapter.text_encoders:
            digests.append(self._adapter.digest)
        return " ".join(digests).strip()

    def with_adapter(self, adapter: Adapter) -> "Encoder":
        """Return the encoder of another adapter; this one where neither changes text encoders."""
        if not adapter.text_encoders and not (self._adapter and self._adapter.text_encoders):
            return self
        other = self._with(adapter=adapter)
        other.digest = self.digest  # files of many gigabytes need not be read again
        return other

    def _needed_parts(self) -> list[str]:
        """The names of the pipeline's parts that make examples."""
        names = [self._vae_name]
        if self._family.captioned:
            names += [
                name for name, part in self._parts.items() if is_text_part(name) and is_set(part)
            ]
        return names

    def release(self) -> None:
        """Let VAE and text encoders go out of memory."""
        self._pipeline = None
        gc.collect()  # errors that imports caught may refer to it

    def say_what_was_cut(self) -> None:
        """Log how many captions were longer than the model takes; see `CaptionEncoder`."""
        self._captions.say_what_was_cut()

    @property
    def _loaded(self) -> Any:
        """The pipeline, without the model."""
        if self._pipeline is None:
            self._pipeline = self._load()
        return self._pipeline

    @plain_torch()
    def _load(self) -> Any:
        name = self._parts.get("_class_name")
        needed = self._needed_parts()
        others = self._parts.keys() - {*needed, "scheduler"}
        unused = [part for part in others if not part.startswith("_")]
        try:
            with quiet_libraries():
                kind = pipeline_class(self.folder, name, self._family.captioned)
                variant = common_variant(self.folder, needed)
                pipeline = kind.from_pretrained(
                    self.folder, local_files_only=True, variant=variant, **dict.fromkeys(unused)
                )
        except ModelError:
            raise
        except ImportError as error:
            raise MissingPackage(
                f"{self.folder}: {name} needs packages that are not installed"
                f" ({first_line(error)}); install gradindex[text]"
            ) from error
        except Exception as error:  # diffusers and transformers raise a dozen kinds
            raise ModelError(f"{self.folder}: cannot be loaded ({first_line(error)})") from error
        adapted = {} if self._adapter is None else self._adapter.text_encoders
        for part in needed:
            module = getattr(pipeline, part)
            if self._own is not None:
                self._own.put_in(part, module)
            if self._adapter is not None and part in adapted:
                inject_adapter(module, self._adapter, adapted[part])
            if isinstance(module, torch.nn.Module):
                # Not by their own `to`, which warns of casts even where nothing is wrong.
                dtype = torch.float32 if part == self._vae_name else self._dtype
                torch.nn.Module.to(module.eval().requires_grad_(False), self._device, dtype)
        return pipeline

    @torch.no_grad()
    @plain_torch()
    @products_in("float32")
    def encode(self, pictures: Pictures) -> Examples:
        """Return the examples of B pictures.

        Raises:
            ModelError: VAE or text encoders cannot be run, or are another model's.
        """
        arrays = pictures.arrays
        if pictures.latents is None:
            x = self._encode_pictures(arrays, pictures.ids)
        else:
            x = scaled_arrays(getattr(self._loaded, self._vae_name).config, pictures.latents)
        conditions = dict(Examples.of_pictures(x, pictures.labels).conditions)
        if self._blank_name is not None:
            conditions[self._blank_name] = [self._blank(array.shape) for array in arrays]
        if pictures.captions and self._family.captioned:
            encoded = self.encode_captions(pictures.captions)
            for name in encoded[0]:
                conditions[name] = [values[name] for values in encoded]
        sizes = [self._sizes(pictures, position) for position in range(len(arrays))]
        for name in sizes[0] if sizes else ():
            if name in self._shapes:
                conditions[name] = [np.array(of_one[name], np.float32) for of_one in sizes]
        return Examples(x, conditions)

    @torch.no_grad()
    @plain_torch()
    @products_in("float32")
    def encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return what the model is given of each caption, {condition: tensor}.

        Raises:
            ModelError: see `encode`.
        """
        with self._model_errors("text encoder"):
            return self._captions.encode(self._loaded, captions)

    def _sizes(self, pictures: Pictures, position: int) -> dict[str, list[float]]:
        """What a model can be told of the geometry of one picture; see `Family.sizes`."""
        geometry = pictures.geometry(position)
        _, height, width = pictures.arrays[position].shape
        return self._family.sizes(geometry.original, geometry.corner, (height, width))

    def _encode_pictures(
        self, pictures: Sequence[np.ndarray] | np.ndarray, ids: Sequence[str]
    ) -> list[np.ndarray]:
        """The scaled latents of pictures; those of one shape go through the VAE together."""
        latents: list[Any] = [None] * len(pictures)
        for positions in positions_by(picture.shape for picture in pictures).values():
            for start in range(0, len(positions), ENCODED_AT_ONCE):
                batch = positions[start : start + ENCODED_AT_ONCE]
                encoded = self._encode_batch([pictures[p] for p in batch], [ids[p] for p in batch])
                for position, latent in zip(batch, encoded, strict=True):
                    latents[position] = latent
        return latents

    def _encode_batch(
        self, pictures: Sequence[np.ndarray], ids: Sequence[str] | None
    ) -> np.ndarray:
        """The scaled latents of pictures of one shape, [B, channels, height, width] float32."""
        vae = getattr(self._loaded, self._vae_name)
        x = torch.from_numpy(np.stack(pictures)).to(self._device)
        if x.shape[1] == 1 and vae.config.in_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        with self._model_errors("VAE"):
            latents = scale_latents(vae.config, self._draw(encode_with(vae, x), ids))
        return latents.float().cpu().numpy()

    def _blank(self, shape: tuple[int, ...]) -> np.ndarray:
        """The scaled latent of a grey picture of a shape, always its distribution's mean."""
        if shape not in self._blanks:
            self._blanks[shape] = self._encode_batch([np.zeros(shape, np.float32)], None)[0]
        return self._blanks[shape]

    def _draw(self, encoded: Any, ids: Sequence[str] | None) -> Tensor:
        """A latent of each picture's distribution: a sample keyed by its id, or the mean."""
        if isinstance(encoded, Tensor):
            return encoded  # a VAE without a distribution
        if self.latents != SAMPLE or ids is None:
            return encoded.mode()
        shape = encoded.mean.shape[1:]
        draws = np.stack([noise(self._seed, f"latent {name}", 0, 0, shape) for name in ids])
        return encoded.mean + encoded.std * torch.from_numpy(draws).to(encoded.mean)

    @contextmanager
    def _model_errors(self, part: str) -> Any:
        """Turn what a part of the pipeline raises into one line."""
        try:
            yield
        except (torch.OutOfMemoryError, ModelError, MissingPackage):
            raise
        except Exception as error:
            reason = first_line(error)
            raise ModelError(f"{self.folder}: the {part} cannot be run ({reason})") from error


def make_examples(encoder: Encoder | None, pictures: Pictures) -> Examples:
    """Return pictures as a model takes them.

    Args:
        encoder: of the model; None for one of pixels.

    Raises:
        ModelError: see `Encoder.encode`.
    """
    if encoder is None:
        return Examples.of_pictures(pictures.arrays, pictures.labels).with_masks(pictures.masks)
    return encoder.encode(pictures).with_masks(pictures.masks)
