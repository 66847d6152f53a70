"""VAE and text encoders of a checkpoint, which are used in place of the pipeline's.

They lie in the checkpoint's file, or in its folder: a training of diffusers' scripts that trains
the text encoder too (`--train_text_encoder`) leaves `checkpoint-500/text_encoder` beside
`checkpoint-500/unet`.
"""

from collections.abc import Collection, Sequence
from filecmp import cmp
from pathlib import Path
from typing import Any, Self

from torch import nn

from gradindex.errors import ModelError, first_line
from gradindex.models.folder import files_digest
from gradindex.models.original_parts import OriginalParts
from gradindex.models.quiet import quiet_libraries

WEIGHTS = ("*.safetensors", "*.bin")


class FolderParts:
    """The text encoders in a checkpoint's folder.

    Those whose weight files are the pipeline's own, byte by byte, are not put in its place.

    Attributes:
        files: of the weights of all, sorted.
        text_digest: names and SHA-256 of those that are others than the pipeline's; empty: none is.
        vae_digest: empty, for there is none.
    """

    vae_digest = ""

    def __init__(self, folders: Collection[Path], pipeline: Path) -> None:
        files = {folder: _weight_files(folder) for folder in folders}
        self.files = sorted(file for of_one in files.values() for file in of_one)
        self._folders = {
            folder.name: folder
            for folder in folders
            if not _are_equal(files[folder], _weight_files(pipeline / folder.name))
        }
        self.text_digest = " ".join(
            f"{name} {files_digest(files[folder])}" for name, folder in self._folders.items()
        )

    @classmethod
    def read(cls, folder: Path, pipeline: Path, text_encoders: Collection[str]) -> Self | None:
        """Return the text encoders in a folder; None where there are none.

        Args:
            pipeline: its folder. text_encoders: names of the pipeline's.
        """
        folders = [folder / name for name in text_encoders]
        found = [place for place in folders if (place / "config.json").is_file()]
        return cls(found, pipeline) if found else None

    def put_in(self, part: str, module: Any) -> None:
        """Give a text encoder of the pipeline the weights in the folder.

        Raises:
            ModelError: they cannot be read, or are those of another text encoder.
        """
        if part not in self._folders:
            return
        folder = self._folders[part]
        try:
            with quiet_libraries():
                own = type(module).from_pretrained(folder, local_files_only=True)
            nn.Module.float(module)  # the pipeline's may be coarser than the folder's
            module.load_state_dict(own.state_dict())
        except Exception as error:  # transformers raises a dozen kinds
            raise ModelError(
                f"{folder}: does not become the {part} of the pipeline ({first_line(error)}); give"
                " as model the pipeline that was trained"
            ) from error


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for kind in WEIGHTS for file in folder.glob(kind))


def _are_equal(files: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether files have the names and bytes of others; they are read up to where they differ."""
    names = [file.name for file in files]
    return names == [other.name for other in others] and all(
        cmp(file, other, shallow=False) for file, other in zip(files, others, strict=True)
    )


def own_parts(
    checkpoint: Path | None, pipeline: Path, vae: str, text_encoders: Collection[str]
) -> OriginalParts | FolderParts | None:
    """Return the parts of a checkpoint's file or folder; None where it has none.

    Args:
        pipeline: its folder. vae: name of its VAE. text_encoders: names of its text encoders.

    Raises:
        ModelError: see `OriginalParts.read`.
    """
    if checkpoint is None:
        return None
    if checkpoint.is_file():
        return OriginalParts.read(checkpoint, vae, text_encoders)
    return FolderParts.read(checkpoint, pipeline, text_encoders)
