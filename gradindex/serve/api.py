"""The answers in JSON, below /api."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Query, Request
from fastapi.responses import Response

from gradindex.builder.verify import damages
from gradindex.report.index_facts import index_facts
from gradindex.serve.documents import IndexName, QueryAnswer, TrainingPicture, Verdict
from gradindex.serve.options import ApiQuery
from gradindex.serve.pictures import DECODING, SIDE, UPLOAD_BYTES, encoded, read_upload
from gradindex.serve.served_index import Asked, ServedIndex

Name = Annotated[str | None, Query(description="Name of an index; the first where left out.")]
Id = Annotated[str, Query(description="Of a training picture.")]


class Indexes:
    """The indexes of a server, the first of which is asked where none is named."""

    def __init__(self, served: list[ServedIndex]) -> None:
        self.served = served
        self._of_name = {one.name: one for one in served}

    def get(self, name: str | None) -> ServedIndex:
        """Return an index; HTTPException 404 for a name that none has."""
        if not name:
            return self.served[0]
        if name not in self._of_name:
            names = ", ".join(self._of_name)
            raise HTTPException(404, f"index = {name[:200]!r}: there is none; give {names}")
        return self._of_name[name]


def make_api(indexes: Indexes) -> APIRouter:
    """Return the addresses below /api, which ask some indexes."""
    api = APIRouter(prefix="/api", tags=["JSON"])

    @api.get("/indexes")
    def list_indexes() -> list[IndexName]:
        """List the indexes that are served."""
        return [_name(served) for served in indexes.served]

    @api.get("/info")
    def info(index: Name = None) -> dict[str, Any]:
        """Show what an index holds, as `gradindex info --format json` does."""
        served = indexes.get(index)
        return {**index_facts(served.index.store), "index": served.path}

    @api.post("/query", responses={200: {"model": QueryAnswer}})
    async def query(
        request: Request, fields: Annotated[ApiQuery, Form(media_type="multipart/form-data")]
    ) -> Response:
        """List the training pictures that shaped a picture, as `gradindex query --format json`
        does. Questions to one index are answered in the order in which they come.
        """
        served = indexes.get(fields.index)
        asked = await _asked(served, fields)
        if (await request.form()).get("prompt") == "":  # FastAPI takes it for a field left out
            fields = fields.model_copy(update={"prompt": ""})
        answer = await served.run(lambda: served.json(asked, fields))
        return Response(answer, media_type="application/json")

    @api.get("/training")
    def training(id: Id, index: Name = None) -> TrainingPicture:
        """Say what is known of a training picture."""
        return training_facts(indexes.get(index), id)

    @api.get(
        "/training/picture",
        response_class=Response,
        responses={200: {"content": {"image/png": {}, "image/webp": {}, "image/jpeg": {}}}},
    )
    def training_picture(id: Id, index: Name = None) -> Response:
        """Show a training picture, at most 2,048 pixels wide and high."""
        served = indexes.get(index)
        with DECODING:
            picture = served.index.training_pictures.thumbnail(served.row(id), SIDE)
        if picture is None:
            raise HTTPException(404, f"id = {id[:200]!r}: the picture is gone, or another is there")
        content, kind = encoded(picture)
        return Response(content, media_type=kind)

    @api.post("/verify")
    async def verify(index: Name = None) -> Verdict:
        """Read every byte of an index and name each file that is damaged or missing."""
        served = indexes.get(index)
        lines = await served.run(lambda: list(damages(served.index.store.location)))
        return Verdict(whole=not lines, damages=lines)

    return api


def training_facts(served: ServedIndex, name: str) -> TrainingPicture:
    """Return what is known of a training picture; HTTPException 404 where there is none."""
    row = served.row(name)
    dataset = served.index.training_pictures.dataset
    caption = label = None
    if dataset is not None:
        caption = None if dataset.captions is None else dataset.captions[row]
        label = None if dataset.labels is None else int(dataset.labels[row])
    excluded = row in served.index.store.excluded
    return TrainingPicture(name, row, caption, label, excluded)


async def _asked(served: ServedIndex, fields: ApiQuery) -> Asked:
    """The picture of a query.

    Raises:
        HTTPException: there is none, or it does not open; or there are two.
    """
    if (fields.picture is None) == (fields.training is None):
        raise HTTPException(422, "picture: give one, or the id of one in training; not both")
    if fields.training is not None:
        return served.of_training(fields.training)
    assert fields.picture is not None
    content = await fields.picture.read(UPLOAD_BYTES + 1)
    return served.of_upload(read_upload(content, fields.picture.filename))


def _name(served: ServedIndex) -> IndexName:
    recipe = served.index.store.recipe
    return IndexName(
        served.name, served.path, served.index.store.shape[1], served.is_captioned, recipe.classes
    )
