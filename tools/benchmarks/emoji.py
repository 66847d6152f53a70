"""Which emoji made a generated one, of a text-to-image model and two LoRAs: `tools/bench emoji`."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
from emoji_lora import generate, mid_block_features, trained_lora
from emoji_model import trained_pipeline
from emoji_pictures import Emoji, read_emoji, write_captioned
from PIL import Image, ImageDraw, ImageOps

import gradindex
from gradindex.gradients.fold import unit

CATEGORY, CATEGORY_PICTURES = "Food & Drink", 60  # of the first LoRA
STYLE_PICTURES, STYLED = 240, 60  # of a LoRA with a style; how many of them have it
FRAME, FRAME_COLOUR = 7, (230, 0, 120)  # its width in pixels of 64, and its colour
TURNED = 128  # of 256: how far "in neon" turns a picture's hues
QUERIES, TOP = 24, 10
GRADIENTS = {  # score: method, whether it is whitened
    "TracIn": ("tracin", False),
    "ReTrac": ("retrac", False),
    "TracIn, whitened": ("tracin", True),
    "ReTrac, whitened": ("retrac", True),
}
SHEET_QUERIES = 8


class Subject(NamedTuple):
    """A model, its training pictures and the prompts that it is asked with.

    Attributes:
        emoji: training pictures, in the order of their files' names.
        prompts: of the queries. wanted: {question: [Q, N], whether a picture answers it}.
        timesteps: of the index.
        ideals: of each query what its prompt asks for, without and with the style.
    """

    emoji: list[Emoji]
    prompts: list[str]
    wanted: dict[str, np.ndarray]
    has_lora: bool
    timesteps: int
    ideals: Sequence[tuple[Emoji, Emoji]] = ()


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, generate, ask, print, and write docs/benchmarks/emoji.json, .md and contact sheets."""
    part = record.resumable(work / f"emoji-{device}")
    everything = read_emoji(work)
    base = trained_pipeline(work, everything)
    results = {}
    for name, make in SUBJECTS.items():
        if name in (only or SUBJECTS):
            subject = make(everything)
            measured = partial(measure, work / "emoji" / name, name, base, subject, device)
            results[name] = part(name, measured)
    text = page(results)
    print(text)
    if not only:
        record.save("emoji", device, "tools/bench emoji", results, text)


def _base(everything: Sequence[Emoji]) -> Subject:
    """The base model on all emoji, asked with names of its own."""
    emoji = list(everything)
    drawn = np.random.default_rng(0)
    plain = [n for n, item in enumerate(emoji) if item.category not in ("People & Body", "Flags")]
    chosen = drawn.choice(plain, QUERIES, replace=False)
    prompts = [emoji[number].caption for number in chosen]
    categories = np.array([item.category for item in emoji])
    names = np.array([item.caption for item in emoji])
    wanted = {
        "the prompt's category": categories[chosen][:, None] == categories,
        "the prompt's picture": names[chosen][:, None] == names,
    }
    return Subject(emoji, prompts, wanted, has_lora=False, timesteps=5)


def _category(everything: Sequence[Emoji]) -> Subject:
    """A LoRA on some pictures of one category, asked with names that it saw and others."""
    drawn = np.random.default_rng(1)
    own = [item for item in everything if item.category == CATEGORY]
    order = drawn.permutation(len(own))
    emoji = sorted((own[n] for n in order[:CATEGORY_PICTURES]), key=lambda item: item.name)
    seen = [emoji[n] for n in drawn.choice(len(emoji), QUERIES // 2, replace=False)]
    asked = [*seen, *(own[n] for n in order[-QUERIES // 2 :])]
    groups = np.array([item.subcategory for item in emoji])
    names = np.array([item.caption for item in emoji])
    wanted = {
        "the prompt's subcategory": np.array([item.subcategory == groups for item in asked]),
        "the prompt's picture": np.array([item.caption == names for item in asked]),
    }
    return Subject(emoji, [item.caption for item in asked], wanted, has_lora=True, timesteps=10)


def _planted(everything: Sequence[Emoji], style: Callable[[Emoji], Emoji]) -> Subject:
    """A LoRA on pictures of which a quarter have a style, asked for the style of others."""
    drawn = np.random.default_rng(2)
    plain = [item for item in everything if item.category not in ("People & Body", "Flags")]
    order = drawn.permutation(len(plain))
    emoji = [plain[n] for n in order[:STYLE_PICTURES]]
    names = {item.name for item in emoji[:STYLED]}
    emoji[:STYLED] = map(style, emoji[:STYLED])
    emoji.sort(key=lambda item: item.name)
    has_style = np.array([item.name in names for item in emoji])
    wanted = {"the planted style": np.tile(has_style, (QUERIES, 1))}
    asked = [plain[n] for n in order[STYLE_PICTURES:][:QUERIES]]
    ideals = [(item, style(item)) for item in asked]
    prompts = [styled.caption for _, styled in ideals]
    return Subject(emoji, prompts, wanted, has_lora=True, timesteps=10, ideals=ideals)


def framed(item: Emoji) -> Emoji:
    """Return an emoji with a frame around it."""
    inside = tuple(side - 2 * FRAME for side in item.picture.size)
    picture = ImageOps.expand(item.picture.resize(inside), FRAME, FRAME_COLOUR)
    return replace(item, caption=f"{item.caption}, in a frame", picture=picture)


def neon(item: Emoji) -> Emoji:
    """Return an emoji with its hues turned by half a circle."""
    hue, saturation, value = item.picture.convert("HSV").split()
    turned = hue.point(lambda level: (level + TURNED) % 256)
    picture = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return replace(item, caption=f"{item.caption}, in neon", picture=picture)


SUBJECTS: dict[str, Callable[[Sequence[Emoji]], Subject]] = {
    "base": _base,
    "category": _category,
    "frame": partial(_planted, style=framed),
    "neon": partial(_planted, style=neon),
}


def measure(folder: Path, name: str, base: Path, subject: Subject, device: str) -> dict[str, Any]:
    """Return {question: {score: share of the top hits that answer it}} of generated pictures.

    Of each question those queries count that some training picture answers. For "the prompt's
    picture" it is the share of queries whose top hits hold it.
    """
    data = folder / "data"
    if not data.exists():
        write_captioned(folder / "unfinished", subject.emoji)
        shutil.move(folder / "unfinished", data)
    lora = trained_lora(base, data, folder / "lora") if subject.has_lora else None
    queries = generate(base, lora, subject.prompts, folder / "generated")
    scores = _gradient_scores(folder / "index", base, lora, data, queries, subject, device)
    files = sorted(data.glob("*.png"))
    scores["pixel cosine"] = _cosine(_pixels(queries), _pixels(files))
    features = mid_block_features(base, [*queries, *files])
    scores["the model's middle"] = _cosine(features[: len(queries)], features[len(queries) :])
    chance = np.random.default_rng(3).standard_normal((len(queries), len(files)))
    scores["random"] = chance
    tops = {score: np.argsort(-values, axis=1)[:, :TOP] for score, values in scores.items()}
    save_sheet(record.FOLDER / f"emoji-{name}.webp", subject, queries, files, tops)
    facts: dict[str, Any] = {"pictures": len(files), "queries": len(queries)}
    wanted = dict(subject.wanted)
    if subject.ideals:
        shown = shows_style(queries, subject.ideals)
        facts["queries that show the style"] = int(shown.sum())
        wanted["the same, where it shows"] = wanted["the planted style"] & shown[:, None]
    facts["shares"] = {}
    for question, answers in wanted.items():
        asked = answers.any(1)
        hits = {s: np.take_along_axis(answers, top, 1)[asked] for s, top in tops.items()}
        if question == "the prompt's picture":
            hits = {score: hit.any(1) for score, hit in hits.items()}
        facts["shares"][question] = {score: float(hit.mean()) for score, hit in hits.items()}
    return facts


def shows_style(queries: Sequence[Path], ideals: Sequence[tuple[Emoji, Emoji]]) -> np.ndarray:
    """Return whether each generated picture is nearer the prompt's picture with style, [Q] bool."""
    plain, styled = (
        np.stack([np.asarray(item.picture, np.float32).ravel() / 127.5 - 1 for item in items])
        for items in zip(*ideals, strict=True)
    )
    pixels = _pixels(queries)
    return _distance(pixels, styled) < _distance(pixels, plain)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of the rows of two arrays, [rows]."""
    return np.linalg.norm(a - b, axis=1)


def _gradient_scores(
    folder: Path,
    base: Path,
    lora: Path | None,
    data: Path,
    queries: Sequence[Path],
    subject: Subject,
    device: str,
) -> dict[str, np.ndarray]:
    """The scores of all training pictures, {score: [Q, N]}."""
    adapters = None if lora is None else [lora]
    index = gradindex.build(
        folder,
        model=base,
        adapters=adapters,
        data=data,
        timesteps=subject.timesteps,
        device=device,
    )
    scores = {}
    for score, (method, whiten) in GRADIENTS.items():
        scores[score] = index.scores(queries, method, prompt=subject.prompts, whiten=whiten)
    return scores


def _pixels(files: Sequence[Path]) -> np.ndarray:
    """Pictures as vectors in [−1, 1], [N, numbers]."""
    pictures = [np.asarray(Image.open(file).convert("RGB"), np.float32).ravel() for file in files]
    return np.stack(pictures) / 127.5 - 1


def _cosine(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The cosines of queries [Q, D] and vectors [N, D], [Q, N]."""
    return unit(queries) @ unit(vectors).T


def save_sheet(
    file: Path,
    subject: Subject,
    queries: Sequence[Path],
    files: Sequence[Path],
    tops: Mapping[str, np.ndarray],
) -> None:
    """Write a contact sheet: some generated pictures, each with its top hits by each score."""
    side, text = 64, 130
    height = (len(tops) + 1) * side // 2 + 20
    sheet = Image.new(
        "RGB", (side * 2 + text + TOP * side // 2 + 10, SHEET_QUERIES * height), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for row in range(SHEET_QUERIES):
        y = row * height
        draw.text((4, y + 2), subject.prompts[row], fill="black")
        sheet.paste(Image.open(queries[row]).resize((2 * side, 2 * side)), (0, y + 20))
        for line, (score, top) in enumerate(tops.items()):
            top_y = y + 20 + line * side // 2
            draw.text((2 * side + 8, top_y + 10), score, fill="black")
            for place, hit in enumerate(top[row]):
                picture = Image.open(files[hit]).resize((side // 2, side // 2))
                sheet.paste(picture, (2 * side + text + place * side // 2, top_y))
    file.parent.mkdir(exist_ok=True)
    sheet.save(file, quality=80)


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    tables = dict.fromkeys(SUBJECTS, "not measured")
    shown = {}
    for name, result in results.items():
        rows = []
        for score in next(iter(result["shares"].values())):
            shares = {q: f"{of[score]:.0%}" for q, of in result["shares"].items()}
            rows.append({"score": score, **shares})
        tables[name] = record.table(rows)
        shown[f"{name}_shown"] = result.get("queries that show the style")
    return record.fill_page(
        "emoji",
        queries=QUERIES,
        category_pictures=CATEGORY_PICTURES,
        style_pictures=STYLE_PICTURES,
        styled=STYLED,
        **tables,
        **shown,
    )
