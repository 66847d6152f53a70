"""What may be asked over HTTP, as fields of a form or of an address; others are refused."""

from typing import Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from gradindex.errors import CallError

MOST_HITS = 1000
PROMPT_LETTERS = 20_000


class QueryFields(BaseModel):
    """How a picture is asked about."""

    model_config = ConfigDict(extra="forbid")

    index: str | None = Field(None, description="Name of an index; the first where left out.")
    training: str | None = Field(
        None, description="Id of a training picture, taken as if it had been generated."
    )
    k: int = Field(10, ge=1, le=MOST_HITS, description="How many training pictures.")
    method: Literal["retrac", "tracin"] = Field("retrac", description="Cosine, or inner product.")
    prompt: str | None = Field(
        None,
        max_length=PROMPT_LETTERS,
        description="That the picture was generated with, for a model that is given captions;"
        " empty for none. By default the one inside the picture.",
    )
    class_label: int | None = Field(None, description="For a class-conditional model.")
    opponents: bool = Field(False, description="Also the lowest scores.")
    timesteps_from: float | None = Field(
        None, allow_inf_nan=False, description="Only rows at this timestep and above."
    )
    timesteps_to: float | None = Field(
        None, allow_inf_nan=False, description="Only rows below this timestep."
    )
    whiten: bool = Field(True, description="False: the paper's plain scores.")
    damping: float | None = Field(
        None,
        ge=1e-9,
        le=1e9,
        allow_inf_nan=False,
        description="Of whitening, in mean squares of a row's norm.",
    )
    group_by: str | None = Field(
        None,
        max_length=200,
        description="Also the shares of groups: folder, or a column of the training data's table.",
    )

    merge_duplicates: bool = Field(
        False, description="Near-duplicate training pictures as one, with the sum of their scores."
    )

    def options(self) -> dict[str, Any]:
        """Return them as the options of `Index.query` and of `answer` alike.

        Raises:
            CallError: they do not fit together; or a file is named, which no request may have read.
        """
        if self.damping is not None and not self.whiten:
            raise CallError("damping: of whitening alone; leave it out, or whiten")
        group_by = self.group_by or None
        if group_by is not None and (
            {"/", "\\"} & {*group_by} or group_by.rstrip(". ").lower().endswith(".csv")
        ):
            raise CallError(f"group_by = {group_by!r}: give folder, or a column's name; no file")
        options: dict[str, Any] = {
            "opponents": self.opponents,
            "whiten": self.whiten if self.damping is None else self.damping,
            "class_label": self.class_label,
            "group_by": group_by,
            "merge_duplicates": self.merge_duplicates,
        }
        if self.timesteps_from is not None or self.timesteps_to is not None:
            options["timesteps"] = (self.timesteps_from, self.timesteps_to)
        return options


class ApiQuery(QueryFields):
    """The form of `POST /api/query`: a picture of either kind, and how it is asked about."""

    picture: UploadFile | None = Field(
        None, description="A generated picture: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF."
    )
    by_timestep: bool = Field(False, description="Also what each timestep adds to a score.")


class PageQuery(QueryFields):
    """The address of an answer on a page: a picture that was given before, and how it is asked."""

    upload: str | None = Field(None, max_length=64, description="The key of an upload.")
    pixels: bool = Field(True, description="Whether the nearest in pixels are looked for.")
    view: Literal["cards", "groups"] = Field("cards", description="What is shown of it.")
    other: str | None = Field(None, description="Of a comparison: the other index.")
    other_method: Literal["retrac", "tracin"] = Field("tracin", description="Its method.")
