"""FAISS proposes candidates: one inner-product index per method over the store's rows.

The search vector of a picture is its rows over all (checkpoint, timestep), one after the other. Where that is wider
than WIDTH numbers, each row is added into one vector with random signs and a random shift of its own, which keeps
inner products right on average; the exact scores come from the store afterwards.
"""

from contextlib import suppress
from importlib.metadata import distributions
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.errors import MissingPackage
from gradindex.gradients.noise import random_offset, random_signs
from gradindex.manifest import seal, unseal
from gradindex.place import sha256
from gradindex.recipe import Recipe
from gradindex.store import Store

ROWS_OF = {"tracin": "unnormalized", "retrac": "normalized"}
WIDTH = 4096
FOLD_VERSION = 1  # raised whenever `search_vectors` gives other numbers for the same rows


def search_vectors(rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Rows [B, C, T, D] → search vectors [B, W] float32, W = C·T·D or at most WIDTH (at least D)."""
    batch, checkpoints, timesteps, dim = rows.shape
    if checkpoints * timesteps * dim <= max(WIDTH, dim):
        return np.ascontiguousarray(rows.reshape(batch, checkpoints * timesteps * dim), dtype=np.float32)
    width = max(WIDTH, dim)
    vectors = np.zeros((batch, width), np.float32)
    for c in range(checkpoints):
        for t in range(timesteps):
            signs = random_signs(recipe.seed, "search", c, t, size=dim)
            start = random_offset(recipe.seed, "search", c, t, below=width)
            head = min(dim, width - start)
            signed = rows[:, c, t] * signs
            vectors[:, start : start + head] += signed[:, :head]
            vectors[:, : dim - head] += signed[:, head:]
    return vectors


def build_index(store: Store, method: str) -> Any:
    """A flat inner-product index over all rows but the skipped ones, saved in the store's `faiss` folder."""
    faiss = require_faiss()
    store.require_whole(ROWS_OF[method])
    skipped = set(store.skipped())
    index = None
    for block in tqdm(list(store.blocks()), desc=f"{method} index", unit="shard", delay=2, disable=None):
        keep = [row for row in range(block.start, block.stop) if row not in skipped]
        array = ROWS_OF[method]
        rows = np.stack([store.read(array, c, block) for c in range(store.shape[0])], axis=1)
        vectors = search_vectors(rows[[row - block.start for row in keep]], store.recipe)
        if index is None:
            index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors, np.array(keep, np.int64))
    content = faiss.serialize_index(index).tobytes()
    facts = {"sha256": sha256(content), **made_from(store)}
    store.place.publish(file_of(method), content)
    store.place.publish(facts_of(method), seal(facts))
    return index


def load_index(store: Store, method: str) -> Any:
    """The saved index of a method; built anew when it is absent, damaged or made from other rows."""
    (facts,) = store.place.read_many([facts_of(method)])
    with suppress(ValueError, FileNotFoundError, RuntimeError):  # RuntimeError: another FAISS wrote it
        known = unseal(facts)
        digest = known.pop("sha256")
        if known == made_from(store):
            content = store.place.fetch(file_of(method), digest)
            return require_faiss().deserialize_index(np.frombuffer(content, np.uint8))
    return build_index(store, method)


def candidates(index: Any, queries: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows that FAISS ranks best for each of the queries [Q, W], ascending: [Q, min(count, rows)]."""
    _, rows = index.search(queries, min(count, index.ntotal))
    return np.sort(rows, axis=1)


def made_from(store: Store) -> dict[str, Any]:
    """What an index file must agree with: the rows, and how search vectors are made of them."""
    return {"recipe": store.recipe.digest, "state": store.state(), "fold": FOLD_VERSION, "width": WIDTH}


def file_of(method: str) -> str:
    """The file of a method's index."""
    return f"faiss/{method}.faiss"


def facts_of(method: str) -> str:
    """The file that says what it was made from."""
    return f"faiss/{method}.json"


def require_faiss() -> ModuleType:
    """The faiss module.

    Raises:
        MissingPackage: no wheel is installed, or two that overwrite each other.
    """
    wheels = sorted({d.name for d in distributions() if (d.name or "").startswith(("faiss-cpu", "faiss-gpu"))})
    if len(wheels) > 1:
        raise MissingPackage(
            f"{' and '.join(wheels)} overwrite each other's files: uninstall all of them, then install"
            " gradindex[cpu] or gradindex[gpu]"
        )
    if not wheels:
        raise MissingPackage("FAISS is not installed: pip install 'gradindex[cpu]', or [gpu] where there is CUDA")
    import faiss

    return faiss
