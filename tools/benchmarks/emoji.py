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
from PIL import Image, ImageDraw

import gradindex
from gradindex.gradients.fold import unit

CATEGORY, CATEGORY_PICTURES = "Food & Drink", 60  # of the first LoRA
STYLE_PICTURES, STYLED = 240, 60  # of the second LoRA; how many of them have the style
STYLE = ", in neon"  # what their captions end with
TURNED = 128  # of 256: how far the style turns a picture's hues
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
    """

    emoji: list[Emoji]
    prompts: list[str]
    wanted: dict[str, np.ndarray]
    has_lora: bool
    timesteps: int


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


def _style(everything: Sequence[Emoji]) -> Subject:
    """A LoRA on pictures of which a quarter have a style, asked for the style of others."""
    drawn = np.random.default_rng(2)
    plain = [item for item in everything if item.category not in ("People & Body", "Flags")]
    order = drawn.permutation(len(plain))
    emoji = [plain[n] for n in order[:STYLE_PICTURES]]
    emoji[:STYLED] = [styled(item) for item in emoji[:STYLED]]
    emoji.sort(key=lambda item: item.name)
    prompts = [plain[n].caption + STYLE for n in order[STYLE_PICTURES:][:QUERIES]]
    has_style = np.array([item.caption.endswith(STYLE) for item in emoji])
    wanted = {"the planted style": np.tile(has_style, (QUERIES, 1))}
    return Subject(emoji, prompts, wanted, has_lora=True, timesteps=10)


SUBJECTS: dict[str, Callable[[Sequence[Emoji]], Subject]] = {
    "base": _base,
    "category": _category,
    "style": _style,
}


def styled(item: Emoji) -> Emoji:
    """Return an emoji with the style: its hues turned by half a circle."""
    hue, saturation, value = item.picture.convert("HSV").split()
    turned = hue.point(lambda level: (level + TURNED) % 256)
    picture = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return replace(item, caption=item.caption + STYLE, picture=picture)


def measure(folder: Path, name: str, base: Path, subject: Subject, device: str) -> dict[str, Any]:
    """Return {question: {score: share of the top hits that answer it}} of generated pictures.

    For "the prompt's picture" it is the share of queries whose top hits hold it.
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
    shares: dict[str, Any] = {}
    for question, answers in subject.wanted.items():
        hits = {score: np.take_along_axis(answers, top, 1) for score, top in tops.items()}
        if question == "the prompt's picture":
            asked = answers.any(1)  # of pictures that the model saw
            shares[question] = {s: float(hit[asked].any(1).mean()) for s, hit in hits.items()}
        else:
            shares[question] = {s: float(hit.mean()) for s, hit in hits.items()}
    return {"pictures": len(files), "queries": len(queries), "shares": shares}


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
    for name, result in results.items():
        rows = []
        for score in next(iter(result["shares"].values())):
            shares = {q: f"{of[score]:.0%}" for q, of in result["shares"].items()}
            rows.append({"score": score, **shares})
        tables[name] = record.table(rows)
    return record.fill_page(
        "emoji",
        queries=QUERIES,
        category_pictures=CATEGORY_PICTURES,
        style_pictures=STYLE_PICTURES,
        styled=STYLED,
        **tables,
    )
