"""A small index of which some files are hostile, and what reads it."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from conftest import make_model, make_pictures
from judging import bounded, is_answered

import gradindex
from gradindex.builder.upkeep import remove
from gradindex.builder.verify import damages
from gradindex.errors import StoreError
from gradindex.report.info import describe
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import INDEX_NAMES
from gradindex.search.scoring import METHODS
from gradindex.store.array_names import ROW_ARRAYS
from gradindex.store.digests import sha256
from gradindex.store.manifest import COPIES, COPY, HEADER, seal, seal_header, unseal
from gradindex.store.store import Store

PICTURES, K = 9, 4
MOST_GRADIENTS = 100  # that a hostile index can have a query take
WAYS = [(method, whiten) for method in METHODS for whiten in (True, False)]
Files = Mapping[str, bytes]


class HostileIndex:
    """A small index, and what becomes of it when some of its files are others.

    Attributes:
        folder: of the index. files: {name: content}. fields: of its header.
        truth: {(method, whether whitened): hits (id, row, score) of every picture, best first}.
    """

    def __init__(self, folder: Path, factory: str | None = None) -> None:
        self.folder, self._place = folder / "index", folder / "place"
        self._queries = sorted(make_pictures(folder / "queries", 1, seed=5).iterdir())
        make_pictures(folder / "pictures", PICTURES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FAISS's codes want more pictures
            index = gradindex.build(
                self.folder,
                model=make_model(folder / "model"),
                data=folder / "pictures",
                timesteps=2,
                dim=8,
                device="cpu",
                batch_size=4,
            )
            for name in INDEX_NAMES if factory else ():
                build_ann_index(Store(self.folder), name, factory)
        header = json.loads((self.folder / HEADER).read_bytes())
        self.fields = header["attributes"]["gradindex"]
        self.recipe, self.sample_ids = index.store.recipe, list(index.store.sample_ids)
        self.arrays = {name: getattr(index.store, name)[...] for name in ROW_ARRAYS}
        query = index.to_query(self._queries)
        self._blocks, _ = index.gradients.blocks(query, METHODS)
        self.truth = {way: self.ask(gradindex.open(self.folder), *way, PICTURES) for way in WAYS}
        remove(self.folder, ["p003.png"])
        names = [file for file in self.folder.rglob("*") if file.is_file()]
        self.files = {file.relative_to(self.folder).as_posix(): file.read_bytes() for file in names}

    def place(self, changes: Files) -> Path:
        """Return a copy of the index in which some files are others."""
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self.folder, self._place, copy_function=os.link)
        for name, content in changes.items():
            file = self._place / name
            file.unlink(missing_ok=True)
            file.write_bytes(content)
        return self._place

    def judge(self, changes: Files, is_sealed: bool, random: Random) -> bool:
        """Return whether all that reads an index gives the true answer; False: one clear error.

        A query by a random method, `verify`, what `info` prints, the arrays, the ids, and what
        mends the files.

        Args:
            changes: {name: content} of the files that are others.
            is_sealed: whether checksums were made anew, so that no change can be seen by them.

        Raises:
            Wrong: a wrong answer or a bad error, or `verify` does not name a changed file.
        """
        folder = self.place(changes)
        method, whiten = random.choice(WAYS)
        takes_gradients = random.random() < 0.03
        with bounded():
            answered = [
                is_answered(lambda: self._is_named(folder, changes, is_sealed), bool),
                is_answered(lambda: describe(Store(folder)), bool),
                is_answered(
                    lambda: _arrays(Store(folder)),
                    lambda arrays: is_sealed or self._are_true_arrays(arrays),
                ),
                is_answered(
                    lambda: list(Store(folder).sample_ids),
                    lambda ids: is_sealed or ids == self.sample_ids,
                ),
                is_answered(
                    lambda: self._open_and_ask(folder, method, whiten, takes_gradients),
                    lambda answer: self._is_true(*answer, method, whiten, is_sealed),
                ),
                is_answered(lambda: Store.mended(folder).missing(), lambda _: True),
            ]
        return all(answered)

    def _is_named(self, folder: Path, changes: Files, is_sealed: bool) -> bool:
        """Whether `verify` names the files that were changed, as far as it can."""
        named = {line.split()[0] for line in damages(folder)}
        changed = {name for name, content in changes.items() if content != self.files.get(name)}
        return is_sealed or changed <= named

    def _open_and_ask(
        self, folder: Path, method: str, whiten: bool, takes_gradients: bool
    ) -> tuple[Store, list[tuple[str, int, float]]]:
        index = gradindex.open(folder, device="cpu")
        header = index.store.header
        paths = [header.model, header.scheduler, [part.path for part in header.checkpoints]]
        true_paths = [self.fields["model"], self.fields["scheduler"]]
        true_paths.append([part["path"] for part in self.fields["checkpoints"]])
        recipe = index.store.recipe
        if recipe != self.recipe or paths != true_paths:
            takes_gradients = True
        if recipe.draws * recipe.per_picture > MOST_GRADIENTS:
            return index.store, []  # what it asks for may take for ever, with a progress bar
        return index.store, self.ask(index, method, whiten, K, takes_gradients)

    def ask(
        self, index: Any, method: str, whiten: bool, k: int, takes_gradients: bool = False
    ) -> list[tuple[str, int, float]]:
        """The hits of a query, whose gradients were taken once for all inputs."""
        if not takes_gradients:
            index.gradients = SimpleNamespace(blocks=self._weighted_blocks)
        (result,) = index.query(self._queries, k, method, whiten=whiten, batch_size=4)
        return [(hit.id, hit.row, hit.score) for hit in result.hits]

    def _weighted_blocks(
        self, query: Any, methods: Sequence[str], first: int = 1
    ) -> tuple[list[np.ndarray], float]:
        """In place of `QueryGradients.blocks`."""
        weights = np.float32(query.weights) / np.float32(self.fields["weights"])
        blocks = [self._blocks[METHODS.index(method)] for method in methods]
        return [block * weights[None, :, None, None] for block in blocks], 0.0

    def _is_true(
        self,
        store: Store,
        hits: Sequence[tuple[str, int, float]],
        method: str,
        whiten: bool,
        is_sealed: bool,
    ) -> bool:
        """Whether an answer is the true one, up to rounding, for what the header says now."""
        scores = [score for _, _, score in hits]
        is_ranked = bool(np.isfinite(scores).all()) and scores == sorted(scores, reverse=True)
        expected = [hit for hit in self.truth[method, whiten] if hit[1] not in store.excluded]
        if is_sealed:
            # An index of another recipe, of other weights or rows is a true one too.
            is_ranked &= all(row not in store.excluded for _, row, _ in hits)
            is_same = store.header.weights == self.fields["weights"] and not store.summary.skipped
            is_same &= store.recipe == self.recipe and store.shape[1] == PICTURES
            if not (is_same and self._has_true_numbers()):
                return is_ranked
            # Whatever its search files propose, the scores are those of the rows.
            true_scores = {row: score for _, row, score in self.truth[method, whiten]}
            expected_scores = [true_scores[row] for _, row, _ in hits]
            return is_ranked and np.allclose(scores, expected_scores, rtol=1e-3, atol=0)
        expected_scores = [score for _, _, score in expected[:K]]
        return [hit[0] for hit in hits] == [hit[0] for hit in expected[:K]] and np.allclose(
            scores, expected_scores, rtol=1e-5, atol=0
        )

    def _are_true_arrays(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether rows are the true ones, or NaN where a file is missing or cut off."""
        return all(
            (np.isnan(array) | (array == self.arrays[name][: len(array), : array.shape[1]])).all()
            for name, array in arrays.items()
        )

    def _has_true_numbers(self) -> bool:
        """Whether the files of rows and of whitening factors are as they were made."""
        names = [name for name in self.files if "norm" in name or name.endswith(".f32")]
        return all((self._place / name).read_bytes() == self.files[name] for name in names)

    # --- files whose checksums were made anew ------------------------------------------------

    def sealed_header(self, **changes: Any) -> dict[str, bytes]:
        """Return a header with other fields and its copy, sealed."""
        content = seal_header({**self.fields, **changes})
        return {HEADER: content, COPY: content}

    def sealed_copied(self, name: str, content: bytes) -> dict[str, bytes]:
        """Return one of the header's files with another content, its copy, and the header."""
        files = {**self.fields["files"], name: sha256(content)}
        return {name: content, COPIES + name: content, **self.sealed_header(files=files)}

    def sealed_recipe(self, recipe: Any) -> dict[str, bytes]:
        """Return all files that name the recipe, with another one."""
        digest = sha256(json.dumps(recipe, sort_keys=True).encode())
        changes = self.sealed_header(recipe=recipe, digest=digest)
        for name, content in self.files.items():
            if name.endswith(".json") and name not in (HEADER, COPY) and "zarr" not in name:
                fields = unseal(content)
                if "recipe" in fields:
                    changes[name] = seal({**fields, "recipe": digest})
        return changes

    def sealed_shard_file(self, name: str, content: bytes) -> dict[str, bytes]:
        """Return a shard's file with another content, and its manifest entry."""
        entry_name = next(name for name in self.files if name.startswith("manifest/c0"))
        entry = unseal(self.files[entry_name])
        file = {"bytes": len(content), "sha256": sha256(content)}
        changed = {**entry, "files": {**entry["files"], name: file}}
        return {name: content, entry_name: seal(changed)}

    def sealed_search_file(self, name: str, content: bytes) -> dict[str, bytes]:
        """Return the FAISS file of a search index with another content, and its record."""
        record = unseal(self.files[f"faiss/{name}.json"])
        parts = [dict(record["files"][0], bytes=len(content), sha256=sha256(content))]
        changed = seal({**record, "files": parts})
        return {f"faiss/{name}.faiss": content, f"faiss/{name}.json": changed}

    def sealed_factor(self, method: str, content: bytes) -> dict[str, bytes]:
        """Return a file of whitening factors with another content, and all that names it."""
        record = unseal(self.files[f"whiten/{method}.json"])
        first, *others = record["blocks"]
        blocks = [{**first, "sha256": sha256(content)}, *others]
        index_name = f"faiss/{method}-whitened.json"
        search = unseal(self.files[index_name])
        return {
            first["file"]: content,
            f"whiten/{method}.json": seal({**record, "blocks": blocks}),
            index_name: seal({**search, "whitened": [block["sha256"] for block in blocks]}),
        }


def _arrays(store: Store) -> dict[str, np.ndarray]:
    """The first rows of every array, as zarr reads them."""
    try:
        return {name: getattr(store, name)[:1, :2] for name in ROW_ARRAYS}
    except (ValueError, OSError, RuntimeError, RuntimeWarning) as error:
        # zarr's own errors, of rows that do not match their checksums, are zarr's to word.
        raise StoreError("zarr reads no rows") from error
