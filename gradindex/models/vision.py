"""A vision model of transformers, such as CLIP or DINOv2: pictures in, vectors out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import CallError, MissingPackage, ModelError, first_line
from gradindex.models.devices import plain_torch
from gradindex.models.folder import files_digest
from gradindex.models.quiet import quiet_libraries
from gradindex.models.weights import listed

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
DOWNLOADED = ["*.json", "*.safetensors"]  # of a model on the hub
POOLER = "pooler."  # how the names of weights begin that a model may lack


class VisionModel:
    """A model that turns pictures into vectors, and its image processor.

    A vector is that of a picture among those of texts, where the model has both (CLIP, SigLIP: its
    `get_image_features`); else the pooled output, or that of the class token in a model that was
    trained without pooling.

    Args:
        path: a folder, or a name on the Hugging Face hub. Weights are read from safetensors alone,
            and no code of the folder's is run.
        device: where it runs.

    Attributes:
        digest: SHA-256 hex of its files.

    Raises:
        CallError: no such model. ModelError: it cannot be loaded, or takes no pictures.
        MissingPackage: transformers is not installed.
    """

    def __init__(self, path: str, device: str) -> None:
        self.path, self._device = path, device
        try:
            import transformers
        except ImportError as error:
            raise MissingPackage(
                f"{path}: an embedding's model needs transformers; install gradindex[text]"
            ) from error
        self._folder = _folder_of(path)
        weights = sorted(self._folder.glob("*.safetensors"))
        if not weights:
            raise ModelError(f"{path}: no weights in safetensors, which are the only ones read")
        with quiet_libraries():
            self._require_pictures(transformers)
            try:
                local = {"local_files_only": True, "trust_remote_code": False}
                self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                    self._folder, **local
                )
                self._model, report = transformers.AutoModel.from_pretrained(
                    self._folder,
                    use_safetensors=True,
                    output_loading_info=True,
                    **local,
                )
            except Exception as error:  # transformers raises a dozen kinds
                raise ModelError(f"{path}: cannot be loaded ({first_line(error)})") from error
        absent = sorted(report["missing_keys"])
        self._has_pooler = not any(name.startswith(POOLER) for name in absent)
        if others := [name for name in absent if not name.startswith(POOLER)]:
            raise ModelError(f"{path}: weights are missing for {listed(others)}")
        # In float32, whatever its weights are saved in.
        self._model.eval().requires_grad_(False).to(device).float()
        settings = [self._folder / name for name in ("config.json", *PROCESSOR_FILES)]
        self.digest = files_digest([file for file in settings if file.is_file()] + weights)

    def _require_pictures(self, transformers: Any) -> None:
        """Raise ModelError unless the model takes pictures, and has what prepares them."""
        try:
            config = transformers.AutoConfig.from_pretrained(
                self._folder, local_files_only=True, trust_remote_code=False
            )
            kind = transformers.MODEL_MAPPING[type(config)]
        except Exception as error:
            raise ModelError(f"{self.path}: cannot be loaded ({first_line(error)})") from error
        takes = kind.main_input_name
        if takes != "pixel_values" and not hasattr(kind, "get_image_features"):
            raise ModelError(
                f"{self.path}: a {kind.__name__} takes {takes}, no pictures; give a vision model,"
                " such as CLIP or DINOv2"
            )
        if not any((self._folder / name).is_file() for name in PROCESSOR_FILES):
            raise ModelError(
                f"{self.path}: has no image processor ({PROCESSOR_FILES[0]}); save the model's own"
                " beside it"
            )

    def prepare(self, picture: Any) -> np.ndarray:
        """Return a picture of Pillow as the model takes it, [channels, height, width] float32."""
        try:
            (values,) = self._processor(images=[picture.convert("RGB")])["pixel_values"]
            return np.asarray(values, np.float32)
        except Exception as error:  # processors raise what they like
            raise ModelError(f"{self.path}: its image processor ({first_line(error)})") from error

    @plain_torch()
    def embed(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of pictures from `prepare`, [B, E] float32.

        Raises:
            ModelError: the model takes more than pictures, or gives no vectors of finite numbers.
        """
        try:
            pixels = torch.from_numpy(np.stack(prepared)).to(self._device)
            with torch.inference_mode():
                vectors = self._vectors(pixels).flatten(1).float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ModelError(f"{self.path}: gives no vectors ({first_line(error)})") from error
        if not np.isfinite(vectors).all():
            raise ModelError(f"{self.path}: gives numbers that are not finite")
        return vectors

    def _vectors(self, pixels: Tensor) -> Tensor:
        """What the model gives of a batch of pictures."""
        if hasattr(self._model, "get_image_features"):
            given = self._model.get_image_features(pixel_values=pixels)
            # Before transformers 5 it is the tensor itself.
            return given if isinstance(given, Tensor) else given.pooler_output
        given = self._model(pixel_values=pixels)
        pooled = getattr(given, "pooler_output", None) if self._has_pooler else None
        return given.last_hidden_state[:, 0] if pooled is None else pooled


def _folder_of(path: str) -> Path:
    """The folder of a model: itself, or that into which the hub's client downloads it.

    Raises:
        CallError: neither is there.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=DOWNLOADED))
    except Exception as error:  # of the network, or of its own
        raise CallError(
            f"embedding = {path!r}: no folder, no .npy file, and no model that the Hugging Face"
            f" hub gives ({first_line(error)})"
        ) from error
