"""What lies in a model's folder: its config, its weight files, the pipeline around it."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gradindex.errors import ModelError, first_line

# Folders of a pipeline or a training checkpoint that hold the model itself.
MODEL_FOLDERS = ("unet", "unet_ema", "transformer")
PIPELINE_FILE = "model_index.json"  # names a pipeline's parts, {part: [library, class]}
# Parts of a pipeline that turn pictures into latents, by their names and by their classes.
LATENT_PARTS = ("vae", "vqvae", "movq", "vqgan")
LATENT_CLASS = re.compile(r"Autoencoder|VQModel|VAE")
WEIGHTS_NAME = "diffusion_pytorch_model"  # what diffusers calls every model's weight files
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")  # of a pipeline's part
VARIANTS = ("fp16", "bf16")  # of weights, in their names; others ("ema", …) are other weights
# Names of weight files of diffusers and transformers, in one file or several.
PLAIN_WEIGHTS = re.compile(rf"({WEIGHTS_NAME}|(pytorch_)?model)(-\d+-of-\d+)?\.(safetensors|bin)")
VARIANT_WEIGHTS = re.compile(
    rf"(?:{WEIGHTS_NAME}|(?:pytorch_)?model)(?:-\d+-of-\d+)?\.({'|'.join(VARIANTS)})[.-]"
)


def find_model_folder(root: Path) -> Path | None:
    """Return the folder with the model's config.json: `root`, or its part that holds the model.

    None if there is no config.json in any of them.
    """
    for folder in (root, *(root / name for name in MODEL_FOLDERS)):
        if (folder / "config.json").is_file():
            return folder
    return None


def read_pipeline(folder: Path) -> dict[str, Any] | None:
    """Return what a pipeline's model_index.json says; None if there is none in this folder.

    Raises:
        ModelError: the file is not a JSON object.
    """
    file = folder / PIPELINE_FILE
    return read_json(file) if file.is_file() else None


def find_latent_pipeline(folder: Path) -> Path | None:
    """Return the folder of the pipeline of latents that a model's folder belongs to; None: none.

    It is the nearest pipeline: in the folder itself, or one or two above, as for `pipeline/unet`
    and `pipeline/checkpoint-500/unet`. It is one of latents if it has a VAE.

    Raises:
        ModelError: there is a VAE beside the model, and no model_index.json that says what it is.
    """
    for place in (Path(folder.absolute()), folder.resolve()):
        for around in (place, *list(place.parents)[:2]):
            if (around / PIPELINE_FILE).is_file():
                if latent_parts(around):
                    return around
                break
            vae = [name for name in LATENT_PARTS if (around / name / "config.json").is_file()]
            if vae and around == place.parent:
                raise ModelError(
                    f"{folder}: there is a {vae[0]} beside it, and no {PIPELINE_FILE} that says"
                    " what pipeline they make; give the folder of the whole pipeline"
                )
    return None


def weight_files(folder: Path) -> list[Path]:
    """Return the model's weight files: those that diffusers' `from_pretrained` loads, sorted.

    safetensors come before pickles; of either, the shards of an index before a single file. Those
    of a variant, as `save_pretrained(variant="fp16")` writes them, come after all others.

    Raises:
        ModelError: there are none, or a shard is not there.
    """
    for variant in ("", *(f".{variant}" for variant in VARIANTS)):
        for suffix in ("safetensors", "bin"):
            index = folder / f"{WEIGHTS_NAME}.{suffix}.index{variant}.json"
            if index.is_file():
                return list(_shards(index))
            single = folder / f"{WEIGHTS_NAME}{variant}.{suffix}"
            if single.is_file():
                return [single]
    raise ModelError(
        f"{folder}: no weights (looked for {WEIGHTS_NAME}.safetensors and {WEIGHTS_NAME}.bin)"
        + _other_weights(folder)
    )


def weights_variant(folder: Path) -> str | None:
    """Return the variant of which alone a part's folder has weights, such as "fp16"; None: none."""
    names = [file.name for file in folder.glob("*")]
    if any(PLAIN_WEIGHTS.fullmatch(name) for name in names):
        return None
    matches = filter(None, map(VARIANT_WEIGHTS.match, sorted(names)))
    return next((match[1] for match in matches), None)


def is_text_part(name: str) -> bool:
    """Return whether a part of a pipeline encodes captions, by its name."""
    return name.startswith(("text_encoder", "tokenizer"))


def is_set(part: Any) -> bool:
    """Return whether a part of model_index.json is one: those left out are null, [null, null]."""
    return isinstance(part, list) and bool(part) and part[-1] is not None


def common_variant(folder: Path, parts: Sequence[str]) -> str | None:
    """Return the variant in which parts of a pipeline were saved, where one has nothing else."""
    return next(filter(None, (weights_variant(folder / part) for part in parts)), None)


def files_digest(files: list[Path]) -> str:
    """Return the SHA-256 hex of the files' SHA-256 digests, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def parts_digest(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 hex over the files of some parts of a pipeline."""
    digest = hashlib.sha256()
    for name in sorted(names):
        files = sorted(
            file
            for file in (folder / name).glob("*")
            if file.is_file() and file.suffix in DIGESTED_SUFFIXES
        )
        digest.update(f"{name} {files_digest(files)}".encode())
    return digest.hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ModelError: the file cannot be read, or is not a JSON object.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: a JSON object {{…}} is expected, not {shortened(value)}")
    return value


def shortened(value: Any) -> str:
    """Return a JSON value as it would be written, its first 40 characters.

    >>> shortened(["a" * 80])
    '["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'
    """
    text = "".join(
        letter if letter.isprintable() else json.dumps(letter)[1:-1]  # a line may end at it
        for letter in json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= 40 else f"{text[:40]}…"


def latent_parts(folder: Path) -> list[str]:
    """Return the names of a pipeline's parts that turn pictures into latents."""
    parts = []
    for name, part in (read_pipeline(folder) or {}).items():
        # A part that a pipeline can do without may be [null, null].
        class_name = part[-1] if isinstance(part, list) and part else None
        if isinstance(class_name, str) and (
            name in LATENT_PARTS or LATENT_CLASS.search(class_name)
        ):
            parts.append(name)
    return parts


def _shards(index: Path) -> Iterator[Path]:
    """The files that an index of shards names, sorted."""
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ModelError(f'{index}: its "weight_map" must say which file has each weight')
    for name in sorted(set(names)):
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: names {name}, which is not there; copy all shards")
        yield index.parent / name


def _other_weights(folder: Path) -> str:
    """What an error says of weight files that the folder has under other names."""
    others = sorted(
        file.name
        for suffix in ("safetensors", "bin", "pt", "pth", "ckpt", "msgpack")
        for file in folder.glob(f"*.{suffix}")
    )
    if not others:
        return ""
    if re.match(rf"{WEIGHTS_NAME}-\d", others[0]):
        return f"; it has shards such as {others[0]} without their index, a file ….index.json"
    return f"; it has {others[0]}: name that file itself, as checkpoint beside this model"
