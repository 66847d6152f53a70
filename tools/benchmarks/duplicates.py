"""Whether copies of training pictures are found, and made one in answers: `tools/bench duplicates`.

Copies are planted among emoji and among Fashion-MNIST's pictures; a model is trained on a set in
which some pictures are twenty times.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import many_copies
import numpy as np
import record
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from emoji_pictures import TONES, read_emoji
from picture_sets import to_bytes
from PIL import Image, ImageDraw
from planted_copies import CHANGES, Planted, judged, plant, precision
from seeded_models import (
    DEFAULT,
    SCORES,
    SMOKE,
    asked_seeds,
    over_seeds,
    seeded_model,
    verdict_on_aim,
)
from subset_models import picture_folder

import gradindex
from gradindex.search.duplicates import MEASURES

COPIES, FEW_COPIES = 40, 5  # of each change; in a smoke test
SMOKE_EMOJI = 150
UNTRAINED = {  # its gradients are in the index, and play no part in comparing pixels
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
EMOJI, FASHION_16 = "emoji, 64 × 64", "Fashion-MNIST, 16 × 16"
SHOWN, ACROSS, SIDE = 24, 8, 48  # others on the sheet of each kind, in a line; pixels a side
SHEET = "duplicates-others.webp"

Clusters = list[list[str]]


def run(work: Path, device: str, only: list[str]) -> None:
    """Plant, train, ask, print, and write docs/benchmarks/duplicates.json, .md and a sheet.

    Args:
        only: "smoke" tries everything on few pictures.
    """
    smoke = SMOKE in only
    name = f"duplicates-{SMOKE}" if smoke else "duplicates"
    folder = work / name
    natural = record.resumable(folder)("natural emoji", partial(natural_emoji, work, smoke))
    seeds = asked_seeds(only)
    parts: dict[str, Callable[[], Any]] = {}
    for seed in seeds:
        parts[f"copies {seed}"] = partial(many_copies.measure, work, seed, smoke)
        parts[f"fashion {seed}"] = partial(measure_fashion, work, seed, smoke)
        parts[f"emoji {seed}"] = partial(measure_emoji, work, seed, smoke, natural)
    measured = record.measure(folder, parts, device)
    planted = [row for seed in seeds for row in measured[f"fashion {seed}"]["judged"]]
    planted += [row for seed in seeds for row in measured[f"emoji {seed}"]]
    results = {
        "planted": planted_rows(planted),
        "many copies": many_rows([measured[f"copies {seed}"] for seed in seeds]),
    }
    sheet = (folder if only else record.FOLDER) / SHEET
    originals = picture_folder(*_model_of(work, seeds[0], smoke))
    others: dict[str, tuple[Path, Clusters]] = {
        f"{EMOJI}, by pixels": (_emoji_folder(work, smoke) / "originals", natural)
    }
    for by, clusters in measured[f"fashion {seeds[0]}"]["natural"].items():
        others[f"{FASHION_16}, by {by}"] = originals, clusters
    save_sheet(sheet, others)
    text = page(results)
    print(text)
    if not only:
        record.save("duplicates", device, "tools/bench duplicates", results, text)


def _model_of(work: Path, seed: int, smoke: bool) -> tuple[Path, Any]:
    """The folder and the subject of a seed's model."""
    model = seeded_model(work, seed, smoke)
    return model.folder, model.subject


def _emoji_folder(work: Path, smoke: bool) -> Path:
    return work / (f"copied-emoji-{SMOKE}" if smoke else "copied-emoji")


def emoji_images(work: Path, smoke: bool) -> dict[str, Image.Image]:
    """Return emoji without skin tones, which differ in little else, {name of a file: picture}."""
    tones = [tone.casefold() for tone in TONES]
    plain = {
        f"{item.name}.png": item.picture
        for item in read_emoji(work)
        if not any(tone in item.name.casefold() for tone in tones)
    }
    return dict(list(plain.items())[:SMOKE_EMOJI]) if smoke else plain


def natural_emoji(work: Path, smoke: bool) -> Clusters:
    """Return the clusters that are named among emoji without any copies."""
    folder = _emoji_folder(work, smoke)
    data = folder / "originals"
    if not data.exists():
        draft = folder / "originals-draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, picture in emoji_images(work, smoke).items():
            picture.save(draft / name)
        draft.rename(data)
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**UNTRAINED), DDPMScheduler()).save_pretrained(folder / "model")
    return emoji_index(folder, "originals").duplicates()


def emoji_index(folder: Path, data: str) -> gradindex.Index:
    """Return the index of a folder of emoji, built with an untrained model and one timestep."""
    return gradindex.build(
        folder / f"{data}-index",
        model=folder / "model",
        data=folder / data,
        timesteps=1,
        dim=64,
        device="cpu",
    )


def measure_emoji(work: Path, seed: int, smoke: bool, natural: Clusters) -> list[dict[str, Any]]:
    """Return how many copies are found among emoji.

    Args:
        natural: clusters without copies.
    """
    folder = _emoji_folder(work, smoke)
    copies = FEW_COPIES if smoke else COPIES
    planted = plant(folder / f"planted-{seed}", emoji_images(work, smoke), copies, seed)
    clusters = emoji_index(folder, planted.folder.name).duplicates()
    return [{"set": EMOJI, "by": "pixels", **judged(clusters, planted, natural)}]


def measure_fashion(work: Path, seed: int, smoke: bool) -> dict[str, Any]:
    """Return how many copies are found among the training pictures of a model, by both measures.

    The model was trained on the pictures without the copies.

    Returns:
        {"judged": rows, "natural": {measure: clusters without copies}}.
    """
    model = seeded_model(work, seed, smoke)
    originals = model.index()
    images = {
        f"{number:05d}.png": Image.fromarray(picture[0])
        for number, picture in enumerate(to_bytes(model.pictures))
    }
    copies = FEW_COPIES if smoke else COPIES
    planted: Planted = plant(model.folder / "planted", images, copies, seed)
    index = model.build("planted-index", data=planted.folder)
    natural = {by: originals.duplicates(by) for by in MEASURES}
    rows = []
    for by in MEASURES:
        judgement = judged(index.duplicates(by), planted, natural[by])
        rows.append({"set": FASHION_16, "by": by, **judgement})
    return {"judged": rows, "natural": natural}


def planted_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return figures of each set and measure, as lists with a value for each seed."""
    pooled = []
    for key in dict.fromkeys((row["set"], row["by"]) for row in rows):
        of_seeds = [row for row in rows if (row["set"], row["by"]) == key]
        pooled.append(
            {
                "set": key[0],
                "by": key[1],
                "recall": {
                    change: [row["found"][change] / row["planted"][change] for row in of_seeds]
                    for change in CHANGES
                },
                "precision": [precision(row) for row in of_seeds],
                "lowest precision": [precision(row, row["natural"]) for row in of_seeds],
                "wrong": [row["wrong"] for row in of_seeds],
                "natural": [row["natural"] for row in of_seeds],
            }
        )
    return pooled


def many_rows(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return for each score and kind of query the summaries of the seeds' queries."""
    kinds = dict.fromkeys(row["query"] for row in seeds[0])
    rows = []
    for kind in kinds:
        for score in SCORES:
            of_seeds = []
            for seed in seeds:
                asked = [row for row in seed if (row["query"], row["score"]) == (kind, score)]
                of_seeds.append(many_copies.summary(asked))
            rows.append({"query": kind, "score": score, "seeds": of_seeds})
    return rows


def save_sheet(file: Path, others: Mapping[str, tuple[Path, Clusters]]) -> None:
    """Write a contact sheet of natural near-duplicates, two pictures of each cluster.

    Args:
        others: {title: folder of the pictures, clusters}.
    """
    gap, title = 10, 16
    lines = -(-SHOWN // ACROSS)
    block = title + lines * (SIDE + 4) + gap
    sheet = Image.new("RGB", (ACROSS * (2 * SIDE + gap), len(others) * block), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, (folder, clusters)) in enumerate(others.items()):
        top = number * block
        order = np.random.default_rng(0).permutation(len(clusters))[:SHOWN]
        text = f"{name.replace('×', 'x')}: {len(order)} of {len(clusters)}"
        draw.text((2, top + 2), text, fill="black")
        for place, cluster in enumerate(order.tolist()):
            y = top + title + place // ACROSS * (SIDE + 4)
            for column, picture in enumerate(clusters[cluster][:2]):
                image = Image.open(folder / picture).convert("RGB").resize((SIDE, SIDE))
                sheet.paste(image, (place % ACROSS * (2 * SIDE + gap) + column * SIDE, y))
    file.parent.mkdir(exist_ok=True, parents=True)
    sheet.save(file, quality=80)


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    recall, precisions = [], []
    for row in results["planted"]:
        names = {"set": row["set"], "by": row["by"]}
        recall.append({**names, **{change: _shares(row["recall"][change]) for change in CHANGES}})
        counts = {name: over_seeds(row[name], 0) for name in ("wrong", "natural")}
        least = {"were natural pairs wrong": _shares(row["lowest precision"])}
        precisions.append({**names, "precision": _shares(row["precision"]), **counts, **least})
    many = []
    for row in results["many copies"]:
        cells = {"score": row["score"], "asked with": row["query"]}
        for title, name in COLUMNS.items():
            cells[title] = _over_known([seed[name] for seed in row["seeds"]])
        many.append(cells)
    default = [row for row in results["many copies"] if row["score"] == DEFAULT]
    as_one = [seed["as one"] for row in results["many copies"] for seed in row["seeds"]]
    known = [share for share in as_one if share is not None]
    return record.fill_page(
        "duplicates",
        copies=COPIES,
        copied=many_copies.COPIED,
        times=many_copies.COPIES,
        queries=many_copies.QUERIES,
        start=many_copies.START,
        verdict=verdict_on_aim(float(np.mean(known)), 1) if known else "No list has the copies.",
        default="\n".join(_sentence(row) for row in default),
        recall=record.table(recall),
        precision=record.table(precisions),
        many=record.table(many),
        sheet=SHEET,
    )


COLUMNS = {
    "copies in the ten best": "copies",
    "merged: places of copies": "places",
    "copies first": "first",
    "copies in the hit": "together",
    "other pictures in it": "strangers",
    "share of their sum": "share",
}


def _sentence(row: Mapping[str, Any]) -> str:
    """What merging does to one kind of query, with the figures of the default score."""
    mean = {
        name: np.mean([seed[name] for seed in row["seeds"]])
        for name in ("copies", "places", "first")
    }
    return (
        f"- Asked with *{row['query']}* pictures: {mean['copies']:.1f} of the ten best are copies."
        f" Merged, copies have {mean['places']:.2f} places, and are first in {mean['first']:.0%}."
    )


def _shares(values: Sequence[float]) -> str:
    """Shares of seeds in per cent: their mean, the lowest and the highest."""
    return over_seeds([100 * value for value in values], 0)


def _over_known(values: Sequence[float | None]) -> str:
    """As `over_seeds`, without seeds that have no value."""
    known = [value for value in values if value is not None]
    return over_seeds(known) if known else "–"
