"""What a model is called with for each picture: the picture or its latent, and its conditions."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gradindex.data.dataset import Dataset
from gradindex.data.images import DecodedPicture, Geometry
from gradindex.models.devices import to_device

CLASS_LABELS = "class_labels"  # the condition of a class-conditional model, a whole number

# Conditions of the loss alone, which the model is not given.
INPUT_NOISE = "input_noise"  # what is added to the noise that x is mixed with, of the shape of x
LOSS_MASK = "loss_mask"  # what the loss is multiplied with, [1, height, width] of x

Column = Sequence[np.ndarray] | Sequence[Tensor] | np.ndarray  # an array for each example


@dataclass(frozen=True)
class Pictures:
    """B pictures before they are encoded, and what is known of them.

    Attributes:
        arrays: B of [channels, height, width] float32 in [−1, 1].
        ids: B ids, which key what is drawn at random for each.
        labels: B class labels; None for a model without classes.
        captions: B captions; None for a model without them.
        geometries: where the pixels of each come from; empty: none was resized or cut.
        masks: B of [1, height, width] float32 in 0 … 1, which the losses are multiplied with; None:
            masks of ones.
        latents: B latents in place of what a VAE makes of them, [channels, height, width] float32
            each, not scaled; None: there are none.
    """

    arrays: Sequence[np.ndarray] | np.ndarray
    ids: Sequence[str]
    labels: Sequence[int] | None = None
    captions: Sequence[str] | None = None
    geometries: Sequence[Geometry] = ()
    masks: Sequence[np.ndarray] | None = None
    latents: Sequence[np.ndarray] | None = None

    @classmethod
    def of_rows(
        cls,
        dataset: Dataset,
        rows: Sequence[int],
        read: Sequence[DecodedPicture],
        classes: int | None,
    ) -> Self:
        """Return training pictures that were read, with all that the data set says of them.

        Args:
            rows: their numbers. classes: see `Dataset.labels_of`.
        """
        return cls(
            arrays=[picture.array for picture in read],
            ids=[dataset.sample_ids[row] for row in rows],
            labels=dataset.labels_of(rows, classes),
            captions=dataset.captions_of(rows),
            geometries=[picture.geometry for picture in read],
            # Of none of them, or of all.
            masks=[picture.mask for picture in read if picture.mask is not None] or None,
            latents=dataset.latents_of(rows),
        )

    def at(self, positions: Sequence[int] | np.ndarray) -> Self:
        """Return the pictures at some positions."""
        values = {
            name: [column[position] for position in positions] if column else column
            for name, column in vars(self).items()
            if name != "arrays"
        }
        return replace(self, arrays=[self.arrays[position] for position in positions], **values)

    def followed_by(self, others: Self) -> Self:
        """Return these pictures and then others, which are of the same kind."""
        values: dict[str, Any] = {
            name: [*column, *getattr(others, name)] if column is not None else None
            for name, column in vars(self).items()
        }
        return replace(self, **values)

    def geometry(self, position: int) -> Geometry:
        """Return where the pixels of a picture come from."""
        if self.geometries:
            return self.geometries[position]
        _, height, width = self.arrays[position].shape
        return Geometry((height, width), (0, 0))


@dataclass(frozen=True)
class Examples:
    """B pictures as a model takes them.

    Attributes:
        x: B pictures, or scaled latents, [channels, height, width] float32 each. Their shapes may
            differ.
        conditions: {name: B arrays, or tensors} of what else the model is given of each; the names
            are those of `Family.predict`, and `LOSS_MASK`.
    """

    x: Column
    conditions: Mapping[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return B."""
        return len(self.x)

    @classmethod
    def of_pictures(
        cls, pictures: Sequence[np.ndarray] | np.ndarray, labels: Sequence[int] | None
    ) -> Self:
        """Return the examples of a model of pixels.

        Args:
            pictures: [B, channels, height, width] float32 in [−1, 1].
            labels: B class labels; None for an unconditional model.
        """
        if labels is None:
            return cls(pictures)
        return cls(pictures, {CLASS_LABELS: list(np.array(labels, np.int64))})

    def with_masks(self, masks: Sequence[np.ndarray] | None) -> Self:
        """Return the examples with the masks of their pictures, see `Pictures`.

        Each is shrunk to height and width of x: a number is the mean of the mask's numbers there
        (`area`, as kohya's `apply_masked_loss` has it).
        """
        if masks is None:
            return self
        shrunk = [
            interpolate(torch.from_numpy(mask)[None], np.shape(x)[-2:], mode="area")[0].numpy()
            for mask, x in zip(masks, self.x, strict=True)
        ]
        return replace(self, conditions={**self.conditions, LOSS_MASK: shrunk})

    def shapes(self, position: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of an example's arrays: only those of equal ones fit into a batch.

        >>> Examples.of_pictures(np.zeros((2, 1, 8, 8), np.float32), [3, 4]).shapes(1)
        ((1, 8, 8), ())
        """
        arrays = [self.x, *self.conditions.values()]
        return tuple(np.shape(array[position]) for array in arrays)

    def batch(
        self, positions: Sequence[int] | np.ndarray, device: torch.device | str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the examples at n positions as tensors on a device.

        Returns:
            x [n, channels, height, width] and the conditions {name: [n, …]}.
        """
        conditions = {
            name: _stacked(arrays, positions, device) for name, arrays in self.conditions.items()
        }
        return _stacked(self.x, positions, device), conditions


def positions_by(keys: Iterable[Hashable]) -> dict[Any, list[int]]:
    """Return {key: positions at which it is}, in the order in which the keys come first.

    >>> positions_by("abca")
    {'a': [0, 3], 'b': [1], 'c': [2]}
    """
    positions: dict[Any, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    return positions


def to_bytes(columns: Mapping[str, Column], notes: Mapping[str, str]) -> bytes:
    """Return arrays as the content of a safetensors file; an array that several share once.

    Args:
        columns: {name: arrays or tensors}.
        notes: texts to keep with them, see `from_bytes`.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    name_of: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    # Lists, for a row of an array is made anew each time: an identity holds while its object lives.
    lists: dict[str, list[Any]] = {key: list(values) for key, values in columns.items()}
    for key, values in lists.items():
        names[key] = []
        for value in values:
            name = name_of.setdefault(id(value), str(len(name_of)))
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            tensors[name] = tensor.contiguous()
            names[key].append(name)
    return save(tensors, {"names": json.dumps(names), **notes})


def from_bytes(content: bytes) -> tuple[dict[str, list[Tensor]], dict[str, str]]:
    """Return the arrays of which `content` is the `to_bytes`, and the texts kept with them.

    Raises:
        ValueError: it is no such content.
    """
    from safetensors.torch import load

    try:
        length = int.from_bytes(content[:8], "little")
        notes = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load(content)
        names = json.loads(notes.pop("names"))
        columns = {key: [tensors[name] for name in of_key] for key, of_key in names.items()}
    except Exception as error:  # safetensors raises kinds of its own
        raise ValueError(f"no arrays: {error}") from error
    return columns, notes


def _stacked(
    arrays: Column, positions: Sequence[int] | np.ndarray, device: torch.device | str
) -> Tensor:
    chosen: list[Any] = [arrays[position] for position in positions]
    if isinstance(chosen[0], Tensor):
        return to_device(torch.stack(chosen), device)
    return to_device(np.stack(chosen), device)
