"""JSON over HTTP: the answers of the command line, and one line for what is refused."""

import io
import json
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run
from PIL import Image, PngImagePlugin

import gradindex
from gradindex.builder.upkeep import remove
from gradindex.serve import pages, served_index
from gradindex.serve import pictures as served_pictures

Serve = Callable[..., Any]
pytest_plugins = ["served_fixtures"]


def png(size: tuple[int, int] = (8, 8), **texts: str) -> bytes:
    """A grey picture as the bytes of a PNG."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    stream = io.BytesIO()
    Image.new("L", size, 128).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def ask(client: Any, content: bytes, name: str = "gen.png", **fields: Any) -> Any:
    data = {key: str(value) for key, value in fields.items()}
    return client.post("/api/query", files={"picture": (name, content)}, data=data)


# --- what is answered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, []),
        ({"k": 3, "method": "tracin"}, ["-k", 3, "--method", "tracin"]),
        ({"opponents": True, "by_timestep": True}, ["--opponents", "--by-timestep"]),
        ({"merge_duplicates": True}, ["--merge-duplicates"]),
        ({"whiten": False, "timesteps_from": 400}, ["--no-whiten", "--timesteps", "400:"]),
        ({"damping": 0.01, "timesteps_to": 600}, ["--damping", 0.01, "--timesteps", ":600"]),
        ({"group_by": "folder"}, ["--group-by", "folder"]),
    ],
)
def test_a_query_is_that_of_the_command_line(
    client: Any, built: Path, queries: list[Path], fields: dict[str, Any], options: list[Any]
) -> None:
    done = run("query", built, queries[0], "--device", "cpu", "--format", "json", *options)
    expected = json.loads(done.stdout)
    answer = ask(client, queries[0].read_bytes(), queries[0].name, **fields)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == list(expected)
    expected["index"] = "./digits"
    expected["queries"][0]["picture"] = queries[0].name
    assert answer.json() == expected


def test_info_is_that_of_the_command_line(client: Any, built: Path) -> None:
    expected = json.loads(run("info", built, "--format", "json").stdout)
    assert client.get("/api/info").json() == {**expected, "index": "./digits"}


def test_a_training_picture_is_asked_about_as_if_it_were_generated(
    client: Any, training: Path
) -> None:
    name = "odd & <b>/p003.png"
    answer = client.post("/api/query", data={"training": name, "k": "4"})
    assert answer.json()["queries"][0]["picture"] == name
    assert answer.json()["queries"][0]["hits"][0]["id"] == name
    uploaded = ask(client, (training / name).read_bytes(), k=4).json()
    assert answer.json()["queries"][0]["hits"] == uploaded["queries"][0]["hits"]


def test_several_indexes_have_names(serve: Serve, plain: Path, queries: list[Path]) -> None:
    client = serve()
    names = [index["name"] for index in client.get("/api/indexes").json()]
    assert names == ["digits", "plain"]
    assert client.get("/api/info", params={"index": "plain"}).json()["pictures"] == 9
    assert client.get("/api/info").json()["pictures"] == 12
    hits = ask(client, queries[0].read_bytes(), index="plain").json()["queries"][0]["hits"]
    assert len(hits) == 9
    unknown = client.get("/api/info", params={"index": str(plain)})
    assert unknown.status_code == 404
    assert unknown.json()["detail"].endswith("give digits, plain")


def test_a_training_picture_is_shown(client: Any, training: Path) -> None:
    name = "odd & <b>/p003.png"
    answer = client.get("/api/training/picture", params={"id": name})
    assert answer.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"))
    assert (shown == np.asarray(Image.open(training / name))).all()
    facts = client.get("/api/training", params={"id": name}).json()
    expected = {"id": name, "row": 9, "caption": None, "class_label": None, "excluded": False}
    assert facts == expected


def test_an_index_is_verified(client: Any, built: Path) -> None:
    assert client.post("/api/verify").json() == {"whole": True, "damages": []}
    (victim,) = built.glob("norm/c/0/0/0")
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        answer = client.post("/api/verify").json()
    finally:
        victim.write_bytes(content)
    assert not answer["whole"]
    assert "norm/c/0/0/0" in answer["damages"][0]


# --- what is refused ------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG that says it is of 100,000 × 100,000 pixels."""
    content = bytearray(png())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (b"", 415, "not a picture that opens"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no format that Pillow reads"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", 415, "no format that Pillow reads"),
        (png()[:45], 422, "not a picture that opens"),
        (bomb(), 413, "more than 50 million pixels"),
        (png((8000, 7000)), 413, "more than 50 million pixels"),
    ],
    ids=["empty", "svg", "eps", "cut", "bomb", "large"],
)
def test_a_bad_picture_is_refused_in_one_line(
    client: Any, content: bytes, status: int, text: str
) -> None:
    answer = ask(client, content, "x/../bad\n.png")
    assert answer.status_code == status, answer.text
    (detail,) = answer.json().values()
    assert text in detail
    assert "\n" not in detail
    assert ask(client, png()).status_code == 200


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"k": 0}, "k = '0': input should be greater than or equal to 1"),
        ({"method": "cosine"}, "method = 'cosine': input should be 'retrac' or 'tracin'"),
        ({"metod": "tracin"}, "metod: there is no such field"),
        ({"damping": 1, "whiten": False}, "damping: of whitening alone"),
        ({"damping": "nan"}, "damping = 'nan': input should be a finite number"),
        ({"timesteps_from": 990}, "timesteps = 990:"),
        ({"prompt": "a dog"}, "the model is given no captions"),
        ({"class_label": 1}, "the model is not class-conditional"),
        ({"group_by": "/etc/groups.CSV"}, "no file"),
        ({"group_by": "colour"}, "no column 'colour'"),
        ({"training": "even/p000.png"}, "not both"),
    ],
)
def test_a_wrong_field_is_refused_in_one_line(
    client: Any, fields: dict[str, Any], text: str
) -> None:
    answer = ask(client, png(), **fields)
    assert answer.status_code == 422
    assert text in answer.json()["detail"]


def test_a_picture_is_needed(client: Any) -> None:
    answer = client.post("/api/query", data={"picture": "abc"})
    text = "picture = 'abc': a text; send a file, such as curl -F picture=@FILE"
    assert (answer.status_code, answer.json()) == (422, {"detail": text})
    for form in ({}, {"k": "3"}):
        answer = client.post("/api/query", data=form)
        assert (answer.status_code, answer.json()["detail"][:18]) == (422, "picture: give one,")
    answer = client.post("/api/query", content=b"{}", headers={"content-type": "text/plain"})
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "even/../even/p000.png", "even", "\0", "p000.png"]
)
def test_only_the_pictures_of_the_index_are_served(client: Any, training: Path, name: str) -> None:
    for address in ("/api/training", "/api/training/picture"):
        answer = client.get(address, params={"id": name})
        assert answer.status_code == 404
        assert "no such training picture" in answer.json()["detail"]
    assert client.post("/api/query", data={"training": name}).status_code == 404


def test_a_picture_that_became_a_link_to_another_is_not_served(
    client: Any, training: Path, tmp_path: Path
) -> None:
    """The index knows the bytes of its pictures."""
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 8), 7).save(secret)
    victim = training / "even/p005.png"
    content = victim.read_bytes()
    victim.unlink()
    victim.symlink_to(secret)
    try:
        shown = client.get("/api/training/picture", params={"id": "even/p005.png"})
        asked = client.post("/api/query", data={"training": "even/p005.png"})
    finally:
        victim.unlink()
        victim.write_bytes(content)
    assert (shown.status_code, asked.status_code) == (404, 422)


def test_uploads_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_pictures, "KEPT_BYTES", 3 * len(png()))
    uploads = served_pictures.Uploads()
    read = [served_pictures.read_upload(png((8, 8 + number)), None) for number in range(5)]
    for upload in read:
        uploads.keep(upload)
    assert uploads.get(read[4].key).height == 12
    with pytest.raises(Exception, match="give the picture again"):
        uploads.get(read[0].key)


# --- the queue ------------------------------------------------------------------------------------


def test_questions_wait_for_each_other_up_to_a_limit(
    client: Any, opened: list[gradindex.Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is answered at a time; when too many wait, another one is refused."""
    monkeypatch.setattr(served_index, "MOST_WAITING", 3)
    running, most, free = 0, 0, threading.Event()
    query = opened[0].query

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        free.wait(30)
        running -= 1
        return query(*arguments, **options)

    monkeypatch.setattr(opened[0], "query", counted)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(ask(client, png()).status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while not statuses:  # the one that is refused does not wait
        threads[0].join(0.01)
    assert client.get("/api/info").status_code == 200
    free.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 200, 503]
    assert most == 1


def test_removed_pictures_are_not_answered(
    built: Path, queries: list[Path], tmp_path: Path
) -> None:
    from served_fixtures import make_client

    shutil.copytree(built, tmp_path / "idx")
    content = queries[0].read_bytes()
    with make_client([gradindex.open(tmp_path / "idx", device="cpu")], ["idx"]) as client:
        first = ask(client, content).json()["queries"][0]["hits"][0]["id"]
        remove(tmp_path / "idx", [first])
        answer = ask(client, content)
    assert answer.status_code == 503
    assert "pictures were removed from it; start the server again" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["a.csv", "/etc/a.csv/", "a.csv/.", "..\\a.CSV", "a.csv. "])
def test_no_file_is_read_for_groups(client: Any, queries: list[Path], name: str) -> None:
    answer = ask(client, queries[0].read_bytes(), group_by=name)
    assert answer.status_code == 422
    assert "give folder, or a column's name; no file" in answer.json()["detail"]


def test_a_page_is_told_how_far_its_answer_is(
    client: Any, opened: list[gradindex.Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many questions are before it, then how many gradients are taken; in the end the cards."""
    begun, free = threading.Event(), threading.Event()
    query = opened[0].query

    def held(*arguments: Any, **options: Any) -> Any:
        begun.set()
        free.wait(30)
        return query(*arguments, **options)

    def told(job: served_index.Job) -> dict[str, Any]:
        if job.ahead:
            free.set()
        return asdict(job)

    monkeypatch.setattr(opened[0], "query", held)
    monkeypatch.setattr(pages, "asdict", told)
    first = threading.Thread(target=ask, args=(client, png()))
    first.start()
    begun.wait(30)
    answer = client.get("/answer", params={"training": "even/p001.png", "k": 3})
    first.join()
    *lines, last = map(json.loads, answer.text.splitlines())
    assert lines[0]["ahead"] == 1
    assert 'aria-label="p001.png"' in last["html"]


def test_a_page_hears_in_one_line_what_does_not_fit(client: Any) -> None:
    parameters = {"training": "even/p001.png", "timesteps_from": 999}
    (line,) = client.get("/answer", params=parameters).text.splitlines()[-1:]
    assert json.loads(line)["error"].startswith("timesteps = 999:")
    for wrong in ({"k": 0}, {"colour": "red"}, {"upload": "../../etc/passwd"}, {}):
        answer = client.get("/answer", params=wrong)
        assert 400 <= answer.status_code < 500
        assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_page_shows_pictures_of_every_format(client: Any, kind: str) -> None:
    """The picture that is asked about, and what came in."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    files = {"picture": (f"gen.{kind.lower()}", stream.getvalue())}
    upload = client.post("/uploads", files=files).json()["upload"]
    for more in ({}, {"k": 3, "method": "tracin"}):
        answer = client.get("/answer", params={"upload": upload, **more})
        assert "picture not found" not in json.loads(answer.text.splitlines()[-1])["html"]
    assert "Nothing on this page" in client.get("/report", params={"upload": upload}).text
    shown = client.get(f"/uploads/{upload}")
    assert Image.open(io.BytesIO(shown.content)).size == (120, 90)
    compared = client.get("/compare/answer", params={"upload": upload})
    assert "Agreement on gen." in compared.text
