"""An index in an object store: a real S3 API serves it; what works on a disk works there."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import required
from helpers import IDS, RECIPE, fill, rows_of

import gradindex
from gradindex.builder.verify import damages
from gradindex.errors import CallError, StoreError
from gradindex.store import store as store_module
from gradindex.store.bucket import Bucket
from gradindex.store.disk import Disk
from gradindex.store.location import Location, locate
from gradindex.store.store import Store


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place of each kind."""
    if request.param == "disk":
        return locate(tmp_path / "place")
    return locate(f"{request.getfixturevalue('bucket')}/{request.node.name.partition('[')[0]}")


def test_files_of_a_place(place: Location) -> None:
    assert isinstance(place, Disk | Bucket)
    assert (place.exists(), place.names()) == (False, set())
    place.publish("a/b.json", b"one")
    place.publish("a/b.json", b"two")
    with pytest.raises(FileExistsError):
        place.publish("a/b.json", b"three", only_new=True)
    place.publish("c", b"", only_new=True)
    assert (place.exists(), place.names()) == (True, {"a", "c"})
    assert place.read("a/b.json") == b"two"
    assert list(place.read_many(["c", "absent", "a/b.json"])) == [b"", None, b"two"]
    some = ["c", "absent", "a/b.json"]
    for names in (some, some * 10):
        assert {name: size for name, size in place.sizes(names).items() if name in some} == {
            "c": 0,
            "a/b.json": 3,
        }
    assert place.digest("c") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert list(place.read_ranges([("a/b.json", 1, 3), ("a/b.json", 0, 1)])) == [b"wo", b"t"]
    for _ in range(2):
        place.discard("c")
    assert place.names() == {"a"}
    for call in (place.read, place.digest, lambda name: list(place.read_ranges([(name, 0, 1)]))):
        with pytest.raises(FileNotFoundError):
            call("absent")


def test_what_is_fetched_from_a_bucket_stays_in_a_cache(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And serves as long as it is what is wanted; a damaged copy is fetched anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = locate(f"{bucket}/cached")
    digests = {content: hashlib.sha256(content).hexdigest() for content in (b"one", b"two")}
    place.publish("file", b"one")
    assert place.fetch("file", digests[b"one"]) == b"one"
    place.publish("file", b"two")
    assert place.fetch("file", digests[b"one"]) == b"one"
    assert place.fetch("file", digests[b"two"]) == b"two"
    (copy,) = (tmp_path / "gradindex").iterdir()
    copy.write_bytes(b"damaged")
    assert place.fetch("file", digests[b"two"]) == b"two"
    with pytest.raises(ValueError, match="was changed"):
        place.fetch("file", digests[b"one"])


def test_an_index_in_a_bucket(
    bucket: str,
    tmp_path: Path,
    model: Path,
    pictures: Path,
    queries: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built in parts, damaged, mended and asked, it is as one on a disk."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"model": model, "data": pictures, "timesteps": 2, "dim": 16, "device": "cpu"}
    local = gradindex.build(tmp_path / "idx", **options)  # type: ignore[arg-type]
    url = f"{bucket}/idx"
    with pytest.raises(CallError, match=r"s3://pictures/idx: no such index"):
        gradindex.open(url)
    for part in ((1, 2), (0, 2)):
        gradindex.build(url, part=part, **options)  # type: ignore[arg-type]
    assert list(damages(url)) == []
    remote = gradindex.open(url)
    np.testing.assert_array_equal(remote.store.unnormalized[:], local.store.unnormalized[:])
    for method in ("tracin", "retrac"):
        assert remote.query(queries, 3, method) == local.query(queries, 3, method)
    remote.store.location.publish("norm/c/0/1/0", b"damaged")
    with pytest.raises(
        StoreError, match=r"norm is damaged \(norm/c/0/1/0 is cut off\); run the same build again"
    ):
        gradindex.open(url).scores(queries)
    assert list(damages(url)) == ["norm/c/0/1/0 was changed"]
    gradindex.build(url, **options)  # type: ignore[arg-type]
    assert list(damages(url)) == []
    with pytest.raises(CallError, match="an object store overwrites nothing"):
        gradindex.build(url, overwrite=True, seed=1, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_one_line() -> None:
    required("s3fs")
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    command = [sys.executable, "-m", "gradindex", "info", "s3://pictures/idx"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: s3://pictures/idx: .*; what was committed stays, run it again\n", done.stderr
    )


@pytest.mark.parametrize(
    "address",
    [
        "simplecache::s3://pictures/idx",
        "zip://idx::s3://pictures/all.zip",
        "zip::all.zip",
        "tar://idx::all.tar",
        "s3://pictures/a::b",
    ],
)
def test_an_address_within_an_address_is_one_line(address: str) -> None:
    """A cache in between would show a store as it was, and an archive takes no new files."""
    with pytest.raises(CallError) as caught:
        locate(address)
    assert str(caught.value) == (
        f"{address}: an address within an address (::) is not taken, a cache in between may be"
        " stale; give the store's own, such as s3://bucket/index"
    )


@pytest.mark.parametrize("name", ["run::1", "a b::zip", "[1]::?*"])
def test_colons_in_the_name_of_a_folder_are_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Store.create(name, RECIPE, IDS)).finish()
    store = Store(name)
    assert store.location.names() == {*os.listdir(tmp_path / name)}
    np.testing.assert_array_equal(store.unnormalized[0, :4], rows_of(store.shards()[0])[:4])


def test_a_url_of_no_known_kind() -> None:
    with pytest.raises(CallError, match="nosuch://x/y: Protocol not known: nosuch"):
        gradindex.open("nosuch://x/y")
