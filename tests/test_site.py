"""The documentation site: it is built without a warning, has every page, and fetches nothing."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import required

import gradindex

ROOT = Path(__file__).parents[1]
# What a browser fetches of its own accord, by tag; `a` and the like wait for a click.
FETCHED = dict.fromkeys(
    ("audio", "embed", "iframe", "img", "object", "script", "source", "video"),
    ("src", "srcset", "poster", "data"),
) | {"link": ("href",)}
NOT_FETCHED = {"canonical", "next", "prev"}  # kinds of `link`
ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)


class Fetched(HTMLParser):
    """The addresses that a page has fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in NOT_FETCHED:
            return
        self.addresses += [given[name] or "" for name in FETCHED.get(tag, ()) if name in given]


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which a Python function is named."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *node: None)


def pages_of(entry: object) -> list[str]:
    """The pages below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    entries = entry.values() if isinstance(entry, dict) else entry
    return [page for each in entries for page in pages_of(each)]


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    docs = ROOT / "docs"
    assert sorted(pages_of(settings["nav"])) == sorted(
        page.relative_to(docs).as_posix() for page in docs.rglob("*.md")
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is built, without a warning."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        required(package)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    # Material for MkDocs' own switch against its news about its next version.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO ")]
    assert (done.returncode, done.stdout, said) == (0, "", [])
    return folder


def test_nothing_on_the_site_is_fetched_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > len([*(ROOT / "docs").rglob("*.md")])
    addresses = {address for page in pages for address in Fetched(page.read_text()).addresses}
    assert len(addresses) > 10
    assert [address for address in addresses if ELSEWHERE.match(address)] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet
    assert Fetched('<img src="//a/b.png"><script src="https://a/b.js">').addresses == [
        "//a/b.png",
        "https://a/b.js",
    ]


def test_the_site_has_every_public_name(site: Path) -> None:
    text = (site / "api/index.html").read_text()
    for name in gradindex.__all__:
        assert f'id="gradindex.{name}"' in text, name
    for name in ("query", "audit", "scores", "duplicates"):
        assert f'id="gradindex.Index.{name}"' in text, name
