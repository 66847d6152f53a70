"""What lies in a model's folder: its config, its weight files, the pipeline around it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gradindex.errors import ModelError

# Folders of a pipeline or a training checkpoint that hold the model itself.
MODEL_FOLDERS = ("unet", "unet_ema", "transformer")
# Parts of a pipeline that turn pictures into latents.
LATENT_PARTS = {"vae", "vqvae"}
WEIGHTS_NAME = "diffusion_pytorch_model"  # what diffusers calls every model's weight files


def find_model_folder(root: Path) -> Path:
    """Return the folder with the model's config.json: `root`, or its part that holds the model.

    Raises:
        ModelError: there is no config.json in any of them.
    """
    for folder in (root, *(root / name for name in MODEL_FOLDERS)):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(
        f"{root}: no model here (looked for config.json, unet/config.json and unet_ema/config.json)"
    )


def require_pixels(root: Path) -> None:
    """Raise ModelError if the folder is a pipeline whose model works on latents."""
    file = root / "model_index.json"
    pipeline = read_json(file) if file.is_file() else {}
    latent_parts = LATENT_PARTS & pipeline.keys()
    if latent_parts:
        raise ModelError(
            f"{root}: a latent pipeline (it has a {latent_parts.pop()});"
            " gradindex knows models of pixels so far"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the model's weight files, sorted; safetensors before pickles, whole before sharded.

    Raises:
        ModelError: there are none.
    """
    for suffix in ("safetensors", "bin"):
        for pattern in (f"{WEIGHTS_NAME}.{suffix}", f"{WEIGHTS_NAME}-*.{suffix}"):
            files = sorted(folder.glob(pattern))
            if files:
                return files
    raise ModelError(
        f"{folder}: no weights (looked for {WEIGHTS_NAME}.safetensors and {WEIGHTS_NAME}.bin)"
    )


def files_digest(files: list[Path]) -> str:
    """Return the SHA-256 hex of the files' SHA-256 digests, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ModelError: the file is not JSON.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from error
