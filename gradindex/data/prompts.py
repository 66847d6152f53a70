"""The prompt that a generated picture was made with: embedded in it, or in a file beside it.

Read are the text of AUTOMATIC1111's web UI and what took it over from it, the graphs of ComfyUI,
and the metadata of InvokeAI, Fooocus and SwarmUI.
"""

import json
import re
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from gradindex.data.comfy_graph import graph_prompt
from gradindex.data.sidecars import find_sidecar, read_sidecar, read_text

MOST_LETTERS = 2**22  # of what a picture says of itself; more is not looked at

# A1111: the prompt, "Negative prompt: …", and a last line "Steps: 20, Sampler: …".
_AFTER_PROMPT = re.compile(r"^[ \t]*(?:Negative prompt:|Steps: ?\d)", re.MULTILINE)
# How an object in JSON begins. A prompt may begin so too: {red|blue} dog.
_OBJECT = re.compile(r"\s*\{\s*[\"}]")
# A1111 takes these out of the prompt before a text encoder sees it.
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>\n]*>")


def prompt_of(picture: Image.Image) -> str | None:
    """Return the prompt that is embedded in a generated picture; None where none is found.

    Nothing is decoded: only the head of a picture is read, as Pillow does when it opens it. What a
    picture says of itself is not trusted: whatever it holds, no error is raised.

    Returns:
        The prompt without the names of LoRAs (`<lora:x:1>`). It may be empty: a picture can be made
        without a prompt.

    Args:
        picture: opened by Pillow: a PNG, JPEG, WebP or AVIF.

    >>> picture = Image.new("L", (1, 1))
    >>> picture.info["parameters"] = "a dog\\nNegative prompt: cat\\nSteps: 20, Sampler: Euler"
    >>> prompt_of(picture)
    'a dog'
    """
    try:
        text = _embedded(picture.info)
        if text is not None:
            text.encode()  # a lone surrogate, which JSON can hold, is no text
    except Exception:  # whatever damaged bytes lead Pillow to, and JSON that is nested too deeply
        return None
    return text


def sidecar_prompt(path: str | Path) -> str | None:
    """Return the prompt in the text file beside a picture; None where there is no such file.

    `x.caption` or `x.txt` is beside `x.png`. It holds the text of A1111, or a caption, which is its
    first line.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    picture = Path(path)
    file = find_sidecar(picture) if picture.name else None
    if file is None:
        return None
    text = read_text(file)
    return _before_settings(text) if _AFTER_PROMPT.search(text) else read_sidecar(file).text


def _embedded(info: dict[Any, Any]) -> str | None:
    """Return the prompt in what Pillow read of a picture beside its pixels."""
    parameters = _text(info.get("parameters"))
    if parameters is not None:
        return _infotext(parameters)
    prompt = _text(info.get("prompt"))
    if prompt is not None:
        found = _graph_or_text(prompt)
        if found is not None:
            return found
    for name in ("invokeai_metadata", "sd-metadata"):
        values = _json(_text(info.get(name)))
        if values is not None:
            return _json_prompt(values)
    exif = info.get("exif")
    return _in_exif(exif) if isinstance(exif, bytes) and len(exif) <= MOST_LETTERS else None


def _text(value: Any) -> str | None:
    """Return a text chunk as a plain string; None where it is none, or is too long."""
    return str(value) if isinstance(value, str) and len(value) <= MOST_LETTERS else None


def _json(text: str | None) -> dict[str, Any] | None:
    """Return the object that a text is as JSON; None where it is another text.

    Raises:
        ValueError, RecursionError: it begins as JSON, and is damaged.
    """
    if text is None or not _OBJECT.match(text):
        return None
    values: dict[str, Any] = json.loads(text)
    return values


def _infotext(text: str) -> str | None:
    """Return the prompt of A1111's text, or of what Fooocus and SwarmUI write in its place."""
    values = _json(text)
    if values is not None:
        return _json_prompt(values)
    return _before_settings(text) if text.strip() else None


def _before_settings(text: str) -> str:
    """Return what stands in A1111's text before the negative prompt and the settings."""
    after = _AFTER_PROMPT.search(text)
    prompt = text[: after.start()] if after else text
    return _NETWORK.sub("", prompt.replace("\r\n", "\n")).strip()


def _json_prompt(values: dict[str, Any]) -> str | None:
    """Return the prompt in the metadata of InvokeAI, Fooocus or SwarmUI."""
    for name in ("sui_image_params", "image"):
        if isinstance(values.get(name), dict):
            values = values[name]
    prompt = values.get("positive_prompt", values.get("prompt"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = prompt[0].get("prompt")  # InvokeAI 2 writes [{"prompt": …, "weight": 1}]
    return prompt.strip() if isinstance(prompt, str) else None


def _graph_or_text(text: str) -> str | None:
    """Return the prompt of a ComfyUI graph, or a text that is no graph as it is."""
    values = _json(text)
    if values is None:
        return text.strip() or None
    return graph_prompt(values)


def _in_exif(exif: bytes) -> str | None:
    """Return the prompt in EXIF: A1111's comment, or ComfyUI's graph in a WebP."""
    tags = Image.Exif()
    tags.load(exif)
    for tag in (ExifTags.Base.Model, ExifTags.Base.Make, ExifTags.Base.ImageDescription):
        value = tags.get(tag)
        if isinstance(value, str) and value.casefold().startswith("prompt:{"):
            return graph_prompt(_json(value[len("prompt:") :]))
    comment = _comment(tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment))
    # Cameras and programs write other comments there.
    is_prompt = _AFTER_PROMPT.search(comment) or _json(comment) is not None
    return _infotext(comment) if is_prompt else None


def _comment(value: Any) -> str:
    """Return EXIF's UserComment as text: its first eight bytes name its encoding."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return ""
    code, body = value[:8], value[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return body.decode("utf-16")
        # EXIF does not say which byte comes first. Of Latin letters the first one is zero.
        is_big = body[0::2].count(0) >= body[1::2].count(0)
        return body.decode("utf-16-be" if is_big else "utf-16-le")
    if code in (b"ASCII\0\0\0", bytes(8)):
        return body.decode().strip("\0")
    return value.decode().strip("\0")
