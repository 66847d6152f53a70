"""The prompt that a generated picture holds, as A1111, ComfyUI and others write it."""

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from gradindex.data.comfy_graph import graph_prompt
from gradindex.data.prompts import prompt_of, sidecar_prompt
from gradindex.errors import DataError

PROMPT = "a red dog, <lora:sks_v1:0.8> (masterpiece:1.2)\nsteps: made of gold"
WITHOUT_LORA = "a red dog,  (masterpiece:1.2)\nsteps: made of gold"
SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: abc"
A1111 = f"{PROMPT}\nNegative prompt: ugly,\nblurry\n{SETTINGS}"

Graph = dict[str, dict[str, Any]]


def opened(kind: str, **options: Any) -> Image.Image:
    """A picture that was saved and opened again, and not decoded."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, kind, **options)
    return Image.open(io.BytesIO(stream.getvalue()))


def png(compressed: bool = False, **chunks: str) -> Image.Image:
    info = PngImagePlugin.PngInfo()
    for name, text in chunks.items():
        info.add_text(name.replace("__", "-"), text, zip=compressed)
    return opened("PNG", pnginfo=info)


def comment(content: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = content
    return exif.tobytes()


# --- A1111 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (A1111, WITHOUT_LORA),
        (f"a dog\n{SETTINGS}", "a dog"),
        (f"a dog\r\nNegative prompt: cat\r\n{SETTINGS}", "a dog"),
        (f"Negative prompt: cat\n{SETTINGS}", ""),
        (SETTINGS, ""),
        ("a dog without settings", "a dog without settings"),
        (f"{{red|blue}} dog\n{SETTINGS}", "{red|blue} dog"),
        (f"caf\u00e9 \U0001f436\n{SETTINGS}", "caf\u00e9 \U0001f436"),
    ],
)
def test_the_parameters_of_a1111(text: str, prompt: str) -> None:
    assert prompt_of(png(parameters=text)) == prompt
    assert prompt_of(png(parameters=text, compressed=True)) == prompt


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "content",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),  # piexif's, which A1111 calls
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"UNICODE\0" + A1111.encode("utf-16"),
        b"ASCII\0\0\0" + A1111.encode(),
        bytes(8) + A1111.encode(),
        A1111.encode(),
    ],
)
def test_the_exif_comment_of_a1111(kind: str, content: bytes) -> None:
    assert prompt_of(opened(kind, exif=comment(content))) == WITHOUT_LORA


def test_another_exif_comment_is_no_prompt() -> None:
    assert prompt_of(opened("JPEG", exif=comment(b"ASCII\0\0\0my holidays"))) is None
    assert prompt_of(opened("JPEG", exif=comment(b"UNICODE\0" + b"\xd8\x00"))) is None


# --- ComfyUI -------------------------------------------------------------------------------------


def graph(positive: list[Any], **nodes: dict[str, Any]) -> Graph:
    """ComfyUI's usual graph, with these nodes for the conditioning."""
    kinds = {
        "model": ("CheckpointLoaderSimple", {"ckpt_name": "sd.safetensors"}),
        "not": ("CLIPTextEncode", {"text": "ugly", "clip": ["model", 1]}),
        "empty": ("EmptyLatentImage", {"width": 8, "height": 8, "batch_size": 1}),
        "sampler": (
            "KSampler",
            {
                "seed": 1,
                "model": ["model", 0],
                "negative": ["not", 0],
                "positive": positive,
                "latent_image": ["empty", 0],
            },
        ),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["model", 2]}),
        "save": ("SaveImage", {"filename_prefix": "a", "images": ["decode", 0]}),
    }
    usual = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in kinds.items()}
    return {**usual, **nodes}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def encode(text: Any) -> dict[str, Any]:
    return node("CLIPTextEncode", text=text, clip=["model", 1])


CONDITIONINGS: dict[str, Graph] = {
    "text": {"c": encode("a dog ")},
    "linked text": {"c": encode(["t", 0]), "t": node("PrimitiveStringMultiline", value="a dog")},
    "joined text": {
        "c": encode(["j", 0]),
        "j": node("StringConcatenate", string_a="a", string_b=["t", 0], delimiter=" "),
        "t": node("PrimitiveString", value="dog"),
    },
    "SDXL": {"c": node("CLIPTextEncodeSDXL", text_l="dog", text_g="a dog", width=1024)},
    "SDXL, the smaller encoder alone": {"c": node("CLIPTextEncodeSDXL", text_l="a dog", text_g="")},
    "Flux": {
        "g": node("FluxGuidance", guidance=3.5, conditioning=["f", 0]),
        "c": node("ConditioningSetTimestepRange", start=0.0, end=1.0, conditioning=["g", 0]),
        "f": node("CLIPTextEncodeFlux", clip_l="dog", t5xxl="a dog", guidance=3.5),
    },
    "ControlNet": {
        "c": node("ControlNetApplyAdvanced", positive=["d", 0], negative=["not", 0], strength=1),
        "d": encode("a dog"),
    },
    "combined": {
        "c": node("ConditioningCombine", conditioning_1=["d", 0], conditioning_2=["not", 0]),
        "d": encode("a dog"),
    },
    "loader with texts": {"c": node("Efficient Loader", positive="a dog", negative="ugly")},
    "a node that nobody knows": {
        "c": node("Mystery", image=["i", 0], cond_in=["d", 0]),
        "i": node("Describe", prompt="what is in the picture?"),
        "d": encode("a dog"),
    },
}


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_graphs_of_comfyui(name: str) -> None:
    values = graph(["c", 0], **CONDITIONINGS[name])
    assert prompt_of(png(prompt=json.dumps(values), workflow="{}")) == "a dog"
    backwards = dict(reversed(values.items()))
    assert prompt_of(png(prompt=json.dumps(backwards))) == "a dog"
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "prompt:" + json.dumps(values)
    exif[ExifTags.Base.Make] = "workflow:{}"
    assert prompt_of(opened("WEBP", exif=exif)) == "a dog"


def test_negative_and_positive_that_were_exchanged_behind_a_controlnet() -> None:
    control = node("ControlNetApplyAdvanced", positive=["not", 0], negative=["d", 0])
    assert graph_prompt(graph(["c", 1], c=control, d=encode("a dog"))) == "a dog"


@pytest.mark.parametrize("guided", ["conditioning", "positive"])
def test_guiders_of_comfyui(guided: str) -> None:
    kind = "BasicGuider" if guided == "conditioning" else "CFGGuider"
    nodes = {
        "sampler": node("SamplerCustomAdvanced", guider=["g", 0], noise=["n", 0], sigmas=["s", 0]),
        "g": node(kind, model=["model", 0], **{guided: ["c", 0]}, negative=["not", 0]),
        "n": node("RandomNoise", noise_seed=1),
        "s": node("BasicScheduler", model=["model", 0], steps=20),
        "c": encode("a dog"),
    }
    assert graph_prompt({**graph(["c", 0]), **nodes}) == "a dog"


def test_of_two_samplers_the_one_next_to_the_picture_counts() -> None:
    first = node("KSampler", positive=["old", 0], negative=["not", 0], latent_image=["empty", 0])
    values = graph(["c", 0], first=first, old=encode("a sketch"), c=encode("a dog"))
    values["sampler"]["inputs"]["latent_image"] = ["first", 0]
    assert graph_prompt(values) == "a dog"
    assert graph_prompt(dict(reversed(values.items()))) == "a dog"
    preview = node("PreviewImage", images=["sketch", 0])
    sketch = node("VAEDecode", samples=["first", 0], vae=["model", 2])
    assert graph_prompt({"preview": preview, "sketch": sketch, **values}) == "a dog"


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        {"1": None, "2": {"inputs": []}},
        graph(["c", 0]),  # a node that is not there
        graph([["c"], 0], c=encode("a dog")),
        graph(["c", "0"], c=encode("a dog")),
        graph(["c", 0], c=encode(["c", 0])),  # a circle
        graph(["c", 0], c=encode(["d", 0]), d=encode(["c", 0])),
        graph(["c", 0], c=encode(12)),
        graph(["n0", 0], **{f"n{n}": encode([f"n{n + 1}", 0]) for n in range(5000)}),
    ],
)
def test_graphs_without_a_prompt(values: Any) -> None:
    assert graph_prompt(values) is None


def test_a_graph_of_an_empty_prompt() -> None:
    assert graph_prompt(graph(["c", 0], c=encode(" "))) == ""


def test_the_work_on_a_graph_is_bounded_by_its_nodes() -> None:
    """Each node leads to the next one twice: 2^60 ways, were each one walked."""
    nodes = {
        f"n{n}": node("StringConcatenate", string_a=[f"n{n + 1}", 0], string_b=[f"n{n + 1}", 0])
        for n in range(60)
    }
    values = graph(["c", 0], c=encode(["n0", 0]), **nodes, n60=node("String", value="a"))
    assert graph_prompt(values) == "a"


# --- others --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "values"),
    [
        ("invokeai_metadata", {"positive_prompt": "a dog", "negative_prompt": "cat"}),
        ("sd__metadata", {"image": {"prompt": [{"prompt": "a dog", "weight": 1.0}]}}),
        ("sd__metadata", {"image": {"prompt": "a dog"}}),
        ("parameters", {"prompt": "a dog", "negative_prompt": "cat", "steps": 30}),
        ("parameters", {"sui_image_params": {"prompt": "a dog", "seed": 1}}),
    ],
)
def test_metadata_of_others(chunk: str, values: dict[str, Any]) -> None:
    assert prompt_of(png(**{chunk: json.dumps(values)})) == "a dog"


def test_a_plain_prompt() -> None:
    assert prompt_of(png(prompt="a dog ")) == "a dog"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_that_say_nothing(kind: str) -> None:
    assert prompt_of(opened(kind)) is None
    assert prompt_of(png(parameters=" ", prompt="\n", Software="x")) is None


def test_only_the_head_is_read() -> None:
    stream = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", A1111)
    Image.effect_noise((64, 64), 50).save(stream, "PNG", pnginfo=info)
    picture = Image.open(io.BytesIO(stream.getvalue()[:-1000]))  # its pixels are cut off
    assert prompt_of(picture) == WITHOUT_LORA
    with pytest.raises(OSError, match="truncated"):
        picture.load()


# --- hostile pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks",
    [
        {"parameters": '{"a":' + 100_000 * "["},
        {"prompt": '{"a":' + 100_000 * '{"a":'},
        {"prompt": '{"1": {"inputs": {"text": '},
        {"prompt": '{"1": ' + 5000 * "9" + "}"},
        {"invokeai_metadata": '{"positive_prompt": "\\ud800"}'},
        {"invokeai_metadata": '{"positive_prompt": 3}'},
        {"sd__metadata": '{"image": {"prompt": [3]}}'},
        {"parameters": '{"sui_image_params": [], "prompt": {}}'},
        {"parameters": 2**22 * "a" + "a"},
    ],
)
def test_hostile_texts_are_no_prompt(chunks: dict[str, str]) -> None:
    picture = Image.new("L", (1, 1))
    picture.info.update({name.replace("__", "-"): text for name, text in chunks.items()})
    assert prompt_of(picture) is None


@pytest.mark.parametrize("value", [None, 3, b"a dog", ["a dog"], {"prompt": "a dog"}])
def test_what_is_no_text_is_no_prompt(value: Any) -> None:
    picture = Image.new("L", (1, 1))
    for name in ("parameters", "prompt", "invokeai_metadata", "exif"):
        picture.info[name] = value
        assert prompt_of(picture) is None


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes of which up to eight are others, and some are cut out."""
    changed = bytearray(content)
    for _ in range(random.randint(0, 8)):
        changed[random.randrange(len(changed))] = random.choice((0, 1, 34, 92, 127, 128, 255))
    start = random.randrange(len(changed))
    if random.random() < 0.5:
        del changed[start : random.randint(start, len(changed))]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore")  # of Pillow's, about what is damaged
def test_damaged_metadata_never_raises(seed: int) -> None:
    random = Random(seed)
    values = json.dumps(graph(["c", 0], **CONDITIONINGS["joined text"])).encode()
    exif = comment(b"UNICODE\0" + A1111.encode("utf-16-be"))
    answers = set()
    for _ in range(300):
        picture = Image.new("L", (1, 1))
        picture.info["prompt"] = damaged(values, random).decode("utf-8", "surrogateescape")
        answers.add(type(prompt_of(picture)))
        picture.info = {"exif": damaged(exif, random)}
        answers.add(type(prompt_of(picture)))
    assert answers == {str, type(None)}


# --- text files beside a picture -----------------------------------------------------------------


def test_the_text_file_beside_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "gen.png"
    assert sidecar_prompt(path) is None
    (tmp_path / "gen.txt").write_text("\ufeffa dog\nmore", "utf-8")
    assert sidecar_prompt(path) == sidecar_prompt(str(path)) == "a dog"
    (tmp_path / "gen.txt").write_text(A1111)
    assert sidecar_prompt(path) == WITHOUT_LORA
    (tmp_path / "gen.caption").write_text("a cat")
    assert sidecar_prompt(path) == "a cat"
    (tmp_path / "gen.caption").write_bytes(b"\xff")
    with pytest.raises(DataError) as caught:
        sidecar_prompt(path)
    assert str(caught.value) == (
        f"caption {tmp_path / 'gen.caption'}: not UTF-8 text; save it as UTF-8"
    )


@pytest.mark.parametrize("name", ["", ".", "/", "..", "\0"])
def test_what_is_no_file_has_no_text_file(name: str) -> None:
    assert sidecar_prompt(name) is None


def test_a_text_file_is_not_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "gen.txt").write_text("a dog")
    assert sidecar_prompt(tmp_path / "gen.txt") is None
