"""Products of rows with each other and with queries, and the scores that can be made of them."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from row_settings import RowSetting, Scoring
from subset_models import picture_folder, query_pictures, training_log, whole_model

import gradindex
from gradindex.builder.plan import DIM
from gradindex.gradients.fold import unit
from gradindex.search.factors import DAMPING
from gradindex.search.index import Index
from gradindex.search.scoring import METHODS

VERSION = 2  # of what is in the files
ROWS_OF_PAIRING = {  # whose rows are multiplied with a pairing's queries
    "matched": "rows",
    "mean": "rows",
    "mean-rows": "mean-rows",
    "averaged": "averaged",
}

Products = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class RowProducts:
    """What scores are made of.

    A block is a (checkpoint, timestep), a checkpoint for means over timesteps, a timestep for those
    over checkpoints.

    Attributes:
        grams: products of training rows with each other, {(method, which rows): [blocks, N, N]}.
        products: of training rows with queries, {(method, pairing): [blocks, N, Q]}.
    """

    grams: Products
    products: Products

    @classmethod
    def of(cls, folder: Path, setting: RowSetting) -> "RowProducts":
        """Return those of a setting; made now, unless their file is there."""
        grams: Products = {}
        products: Products = {}
        with np.load(make_products(folder, setting)) as arrays:
            for name in arrays:
                letter, method, which = name.split(" ")
                target = grams if letter == "K" else products
                target[method, which] = arrays[name]
        return cls(grams, products)

    def scores(self, scoring: Scoring, damping: float = DAMPING) -> np.ndarray:
        """Return the mean of the blocks' scores, [Q, N]."""
        return self.blocks(scoring, damping).mean(0)

    def blocks(self, scoring: Scoring, damping: float = DAMPING) -> np.ndarray:
        """Return the scores of each block, [blocks, Q, N].

        Whitened ones are taken on the other side: G (GᵀG/N + λI)⁻¹ q = (GGᵀ/N + λI)⁻¹ G q.

        Args:
            damping: λ in mean squares of a row's norm, where scores are whitened.
        """
        method, pairing, treatment = scoring
        if pairing == "mean" and treatment == "centred":
            pairing = "mean-rows"  # what is subtracted is a mean over timesteps, too
        gram = self.grams[method, ROWS_OF_PAIRING[pairing]]
        products = self.products[method, pairing]
        if treatment == "centred":  # rows and queries, by the mean row
            products = products - gram.mean(2, keepdims=True)
        elif treatment == "whitened":
            pictures = gram.shape[1]
            moments = gram.astype(np.float64) / pictures
            loads = damping * np.trace(moments, axis1=1, axis2=2)
            loaded = moments + loads[:, None, None] * np.eye(pictures)
            products = np.linalg.solve(loaded, products)
        return products.transpose(0, 2, 1)


def make_products(folder: Path, setting: RowSetting) -> Path:
    """Return the file with a setting's products; made now, unless it is there."""
    file = folder / f"rows{VERSION}-{setting.name}.npz"
    if not file.exists():
        print(setting, flush=True)
        store = folder / f"store-{setting.name}"
        grams, products = _measure_products(folder, store, setting)
        arrays = {f"K {method} {rows}": gram for (method, rows), gram in grams.items()}
        for (method, pairing), product in products.items():
            arrays[f"B {method} {pairing}"] = product
        draft = file.with_suffix(".draft.npz")
        np.savez(draft, **arrays)
        os.replace(draft, file)
        # With its factors and search files it has up to 7 GB, of which nothing more is asked.
        shutil.rmtree(store)
    return file


def _measure_products(folder: Path, store: Path, setting: RowSetting) -> tuple[Products, Products]:
    """A setting's grams and products, from the rows and query gradients that gradindex makes."""
    index = _build(folder, store, setting)
    rows = index.store.unnormalized[:]
    grams: Products = {}
    products: Products = {}
    for method, queries in zip(METHODS, _query_blocks(index, folder, setting), strict=True):
        vectors = _query_vectors(queries, setting)
        for name, blocks in _row_blocks(rows, method, setting).items():
            pairings = [pairing for pairing in vectors if ROWS_OF_PAIRING[pairing] == name]
            gram_blocks = []
            product_blocks: dict[str, list[np.ndarray]] = {pairing: [] for pairing in pairings}
            for number, block in enumerate(blocks):
                gram_blocks.append(block @ block.T)
                for pairing in pairings:
                    product_blocks[pairing].append(block @ vectors[pairing][number].T)
            grams[method, name] = np.stack(gram_blocks)
            for pairing in pairings:
                products[method, pairing] = np.stack(product_blocks[pairing])
    return grams, products


def _build(folder: Path, store: Path, setting: RowSetting) -> Index:
    """The index of a setting's rows."""
    checkpoints = whole_model(folder)
    options: dict[str, Any] = {"timesteps": setting.timesteps, "noise": setting.noise}
    if setting.noise == "trained":
        options = {
            "timesteps": "recorded",
            "log": training_log(folder),
            "events": setting.timesteps,
            "noise": "own",
        }
    if setting.checkpoints > 1:
        options["checkpoints"] = checkpoints[-setting.checkpoints :]
    return gradindex.build(
        store,
        model=checkpoints[-1],
        data=picture_folder(folder),
        draws=setting.draws,
        output=setting.output,
        seed=setting.seed,
        dim=setting.dim or DIM,
        projection="auto" if setting.dim else "none",
        device="cpu",
        **options,
    )


def _query_blocks(index: Index, folder: Path, setting: RowSetting) -> list[np.ndarray]:
    """The gradients of the query pictures, for each method [Q, C, T, D]."""
    pictures = list(torch.from_numpy(query_pictures(folder)))
    options: dict[str, Any] = {"pairing": "matched"}
    if setting.noise == "trained":
        # Recorded rows have timesteps of their own; their mean pairing is what is measured.
        options = {
            "pairing": "mean",
            "query_timesteps": setting.timesteps,
            "query_draws": setting.draws,
        }
    query = index.to_query(pictures, whiten=False, **options)
    return index.query_blocks(query, *METHODS)


def _query_vectors(queries: np.ndarray, setting: RowSetting) -> dict[str, list[np.ndarray]]:
    """What each block's rows are multiplied with, {pairing: [Q, D] for each block}.

    Args:
        queries: a method's gradients, [Q, C, T, D].
    """
    checkpoints, timesteps = (range(size) for size in queries.shape[1:3])
    means = [queries[:, c].mean(1) for c in checkpoints]
    vectors = {"mean": [mean for mean in means for _ in timesteps], "mean-rows": means}
    if setting.noise != "trained":
        vectors["matched"] = [queries[:, c, t] for c in checkpoints for t in timesteps]
    if setting.checkpoints > 1:
        vectors["averaged"] = [queries[:, :, t].mean(1) for t in timesteps]
    return vectors


def _row_blocks(
    rows: np.ndarray, method: str, setting: RowSetting
) -> dict[str, Iterator[np.ndarray]]:
    """A method's rows, {which rows: [N, D] of each block}.

    One block is in memory at a time, since whole gradients are wide.

    Args:
        rows: unnormalized ones, [C, N, T, D].
    """
    checkpoints, timesteps = range(rows.shape[0]), range(rows.shape[2])

    def block(c: int, t: int) -> np.ndarray:
        vectors = rows[c, :, t].astype(np.float32)
        return unit(vectors) if method == "retrac" else vectors

    def mean_over_timesteps(c: int) -> np.ndarray:
        return sum(block(c, t) for t in timesteps) / len(timesteps)

    def mean_over_checkpoints(t: int) -> np.ndarray:
        return sum(block(c, t) for c in checkpoints) / len(checkpoints)

    blocks = {
        "rows": (block(c, t) for c in checkpoints for t in timesteps),
        "mean-rows": map(mean_over_timesteps, checkpoints),
    }
    if setting.checkpoints > 1:
        blocks["averaged"] = map(mean_over_checkpoints, timesteps)
    return blocks
