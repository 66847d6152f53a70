"""The masks of training pictures: which there are, and how one is read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from gradindex.data.images import geometry, opacity, open_encoded, picture_fault, to_mask
from gradindex.errors import DataError

DIGEST_DIGITS = 16  # hex digits of the SHA-256 of a mask's file


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of N pictures.

    Attributes:
        files: of the masks, N of them, None for a picture without one; or None, where the pictures'
            own alpha channels are the masks.
        known: {row: digest} of the files that were read.
    """

    files: Sequence[Path | None] | None
    known: dict[int, str] = field(default_factory=dict)

    def read(
        self, row: int, picture: Image.Image, image: tuple[int, int, int], name: str
    ) -> np.ndarray:
        """Return a picture's mask, turned, resized and cut as it is.

        Args:
            row: number of the picture. picture: it, opened by Pillow.
            image: channels, height and width that the model takes of it.
            name: of the mask, for an error.

        Returns:
            [1, height, width] float32 in 0 … 1.

        Raises:
            DataError: the mask is not there, cannot be decoded, or is not of the picture's size.
        """
        if self.files is None:
            return to_mask(opacity(picture), image)
        file = self.files[row]
        if file is None:
            raise DataError(f"{name} is not there")
        try:
            with open_encoded(file) as mask:
                sizes = geometry(mask, image).original, geometry(picture, image).original
                if sizes[0] == sizes[1]:
                    return to_mask(mask, image)
        except MemoryError:  # the machine's fault, not the mask's
            raise
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
            reason = picture_fault(error)
            raise DataError(f"{name} is not a readable picture ({file}: {reason})") from error
        (height, width), (picture_height, picture_width) = sizes
        raise DataError(
            f"{name} has {width} × {height} pixels, and the picture {picture_width} ×"
            f" {picture_height} ({file}); give a mask of the picture's size"
        )

    def digest(self, row: int) -> str:
        """Return 16 hex digits of the SHA-256 of a mask's file.

        Empty where there is none, or it cannot be read.
        """
        file = None if self.files is None else self.files[row]
        if file is None:
            return ""
        if row not in self.known:
            try:
                self.known[row] = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_DIGITS]
            except OSError:
                return ""
        return self.known[row]

    def in_order(self, positions: np.ndarray) -> "Masks":
        """Return the masks whose number i is number `positions[i]` of these, none for −1."""
        files = self.files
        if files is None:
            return self
        moved = [None if position < 0 else files[position] for position in positions.tolist()]
        return replace(self, files=moved, known={})
