"""A page of HTML as a browser would read it, and what is wrong with it."""

import io
import re
from base64 import b64decode
from collections import Counter
from html.parser import HTMLParser

from PIL import Image

VOID = {"meta", "img", "input", "path", "link", "br", "hr"}  # without an end tag, or closed in SVG


class Reading(HTMLParser):
    """What a page holds.

    Attributes:
        tags: names of all elements, in order.
        elements: (name, attributes) of each.
        texts: all texts outside of style and script.
        faults: what a validator would complain of.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        if not page.startswith("<!doctype html>\n<html lang="):
            self.faults.append("no doctype and language")
        self.feed(page)
        self.close()
        if self._open:
            self.faults.append(f"left open: {self._open}")
        self._check()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append(f"<{tag}> has an attribute twice")
        if "p" in self._open and tag in {"p", "div", "ol", "ul", "h2", "section"}:
            self.faults.append(f"<{tag}> in <p>")
        if "button" in self._open and tag in {"button", "a", "input", "select"}:
            self.faults.append(f"<{tag}> in <button>")
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    def _check(self) -> None:
        ids = Counter(attributes["id"] for _, attributes in self.elements if "id" in attributes)
        self.faults += [f"id {name} {count} times" for name, count in ids.items() if count > 1]
        for tag, attributes in self.elements:
            if tag == "img" and not attributes.get("alt"):
                self.faults.append("an <img> without a text in its place")
            for name in ("src", "href"):
                address = attributes.get(name, "#")
                if address.startswith("#") and address[1:] and address[1:] not in ids:
                    self.faults.append(f"{address} leads nowhere")

    def addresses(self) -> set[str]:
        """All that the page refers to outside of itself."""
        found = {
            attributes[name]
            for _, attributes in self.elements
            for name in ("src", "href", "action", "poster", "data", "srcset")
            if name in attributes
        }
        return {address for address in found if not address.startswith(("#", "data:"))}

    def attributes(self, name: str) -> list[str]:
        """The values of an attribute, of all elements that have it."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def with_class(self, name: str) -> list[dict[str, str]]:
        """The attributes of all elements of a class."""
        return [
            attributes
            for _, attributes in self.elements
            if name in attributes.get("class", "").split()
        ]


def pictures_in(page: str) -> list[Image.Image]:
    """The pictures that a page holds, but for the one transparent pixel."""
    contents = re.findall(r"url\(data:image/\w+;base64,(.*?)\)", page)
    return [Image.open(io.BytesIO(b64decode(content))) for content in contents]
