"""Captions become conditions of a model, by its pipeline's text encoders."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.families.family import TEXT_MASK, Encoded, Family
from gradindex.models.quiet import quiet_libraries

LOGGER = logging.getLogger("gradindex")

ENCODED_AT_ONCE = 8  # captions
MOST_KEPT = 2**28  # bytes of encoded captions in memory; one of Flux takes 8 MiB


class CaptionEncoder:
    """Encodes captions, each distinct one once while it is kept.

    Args:
        folder: of the pipeline, for errors.
        family: of the model.
        config: of the model.
    """

    def __init__(self, folder: Path, family: Family, config: Any) -> None:
        self._folder = folder
        self._family = family
        self._config = config
        self._encoded: dict[str, dict[str, Tensor]] = {}
        self._cut: set[str] = set()  # captions of which the end was left out
        self._tokens = 0  # of a caption, at most

    def encode(self, pipeline: Any, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return what a model is given of each caption, {condition: tensor in main memory}.

        Their precision is the one in which the text encoders run.

        Args:
            pipeline: with its text encoders and tokenizers.

        Raises:
            ModelError: the text encoders are those of another model.
        """
        missing = [text for text in dict.fromkeys(captions) if text not in self._encoded]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            texts = missing[start : start + ENCODED_AT_ONCE]
            with quiet_libraries():  # they warn of each caption that is too long
                encoded = self._family.text(pipeline, texts, self._config)
                self._note_long_ones(pipeline, texts)
            self._require_widths(encoded)
            for number, text in enumerate(texts):
                self._encoded[text] = {
                    # A copy: a row would keep the whole batch in memory.
                    name: values[number].to("cpu", copy=True)
                    for name, values in encoded.items()
                }
        found = [self._encoded[text] for text in captions]
        self._forget_first()
        return found

    def _forget_first(self) -> None:
        """Let the captions go that were encoded first, until the others are few enough to keep."""
        sizes = [
            sum(tensor.nbytes for tensor in tensors.values()) for tensors in self._encoded.values()
        ]
        kept = sum(sizes)
        for text, size in zip(list(self._encoded), sizes, strict=True):
            if kept <= MOST_KEPT:
                return
            del self._encoded[text]
            kept -= size

    def say_what_was_cut(self) -> None:
        """Log how many captions were too long since the last time, if any were.

        What a model does not take of them is left out, as it was in training.
        """
        if not self._cut:
            return
        captions = "1 caption has" if len(self._cut) == 1 else f"{len(self._cut)} captions have"
        LOGGER.info(
            f"{captions} more than the {self._tokens} tokens that the model takes; what is beyond"
            " them is left out"
        )
        self._cut.clear()

    def _note_long_ones(self, pipeline: Any, captions: Sequence[str]) -> None:
        longest = self._family.longest_caption(pipeline)
        if longest is None:
            return
        tokenizer, self._tokens = longest
        ids = tokenizer(list(captions)).input_ids
        pairs = zip(captions, ids, strict=True)
        self._cut |= {caption for caption, tokens in pairs if len(tokens) > self._tokens}

    def _require_widths(self, encoded: Encoded) -> None:
        """Raise ModelError unless the text encoders' numbers are as wide as the model takes."""
        shapes = self._family.condition_shapes(self._config)
        for name in encoded.keys() & shapes.keys() - {TEXT_MASK}:
            width, expected = encoded[name][0].shape[-1], shapes[name][-1]
            if width != expected:
                raise ModelError(
                    f"{self._folder}: the text encoders give {width} numbers as {name}, the model"
                    f" takes {expected}: they are another model's"
                )
