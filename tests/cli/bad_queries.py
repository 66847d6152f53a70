"""Kinds of bad input: indexes, queries, and what is to be written about them."""

from pathlib import Path

import numpy as np
from bad_inputs import (
    HEADERS,
    Bad,
    Make,
    Shared,
    built,
    file,
    folder,
    index,
    picture,
    replaced,
    saved,
    shorter,
)
from PIL import Image

from gradindex.store.records import CheckpointPath
from gradindex.store.store import Store

AGAIN = "build i --model {model} --data d --timesteps 100,700 --dim 16"
QUERY = "query {index} {picture} "
VECTORS = QUERY + "--embedding v.npy --query-embedding q.npy"
LDS = "evaluate lds {index} {picture} "
ENTRY, SUMMARY = "i/manifest/c000-s000000.json", "i/manifest/summary.json"


def vectors(training: np.ndarray, queries: np.ndarray) -> Make:
    """Two files of vectors, v.npy and q.npy."""

    def make(place: Path, shared: Shared) -> None:
        np.save(place / "v.npy", training)
        np.save(place / "q.npy", queries)

    return make


def other_picture(place: Path) -> None:
    picture(99).save(place / "d/p004.png")


def unfinished(place: Path) -> None:
    (place / ENTRY).unlink()
    (place / SUMMARY).unlink()


def moved_model(place: Path) -> None:
    Store(place / "i").update_header(model="gone", checkpoints=[CheckpointPath("gone")])


INDEXES = [
    Bad("no such index", "query i {picture}", "i: no such index; make it with `gradindex build`"),
    Bad(
        "a folder that is no index",
        "query {pictures} {picture}",
        "{pictures}: not a gradindex index (no zarr.json of one)",
    ),
    Bad(
        "another version of the format",
        "query i {picture}",
        "i: format version 9, this gradindex reads 1: update gradindex",
        index(replaced('"format": 1', '"format": 9', *HEADERS)),
        1,
    ),
    Bad(
        "headers changed by hand",
        "info i",
        "i: zarr.json was changed by hand or damaged; build it again with --overwrite",
        index(replaced('"pictures": 9', '"pictures": 8', *HEADERS)),
        1,
    ),
    Bad(
        "an index that is unfinished",
        "query i {picture}",
        "i: 1 of 1 shard is missing or damaged (c000-s000000 first); run the same build again,"
        " it makes only those",
        index(unfinished),
        1,
    ),
    Bad(
        "a damaged manifest",
        "verify i",
        "i: 1 file is damaged or missing; run the same build again with --check,"
        " it makes only those",
        index(shorter(ENTRY)),
        1,
        "manifest/c000-s000000.json was changed: pictures 0 to 8 do not count\n",
    ),
    Bad(
        "another recipe",
        "build i --model {model} --data {pictures} --timesteps 100,700 --dim 16 --seed 7",
        "i: built with another recipe (--overwrite replaces it): seed: 0, now 7",
        index(),
    ),
    Bad(
        "a picture that was exchanged",
        AGAIN,
        "i: built over another data set (--overwrite replaces it): data: 'p004.png' is"
        " another picture now",
        built(other_picture),
    ),
    Bad(
        "a picture that is gone",
        AGAIN,
        "i: built over another data set (--overwrite replaces it): data: 1 of 9 pictures is"
        " gone, such as 'p004.png'; `remove` them first",
        built(lambda place: (place / "d/p004.png").unlink()),
    ),
    Bad(
        "pictures that are not those",
        "verify i --data",
        "i: 1 training picture is not what was indexed; put them back, remove their"
        " ids, or build it anew",
        built(other_picture),
        1,
        "'p004.png' is another picture now\n",
    ),
    Bad(
        "pictures that are not there",
        "verify i --data e",
        "data e: no such file or folder",
        index(),
    ),
    Bad(
        "an id that is not in it",
        "remove i p000.png x.png",
        "i: 1 of 2 ids is not in it, such as 'x.png'; none is removed, give ids as a query"
        " shows them",
        index(),
    ),
    Bad(
        "no id",
        "remove i",
        "give ids or patterns, --under, or --file; see `gradindex remove --help`",
        index(),
    ),
    Bad(
        "no such file of ids",
        "remove i --file ids.txt",
        "Invalid value for '--file': 'ids.txt': No such file or directory",
        index(),
    ),
    Bad(
        "nothing to compact",
        "compact i",
        "i: none of its pictures are removed; nothing to do",
        index(),
    ),
    Bad(
        "an unknown factory",
        "index i --factory Tree",
        "factory Tree: give auto, flat, store, or what FAISS knows (could not parse index"
        " string Tree)",
        index(),
    ),
    Bad(
        "a model that was moved",
        "query i {picture}",
        "model gone: no such file or folder, and i was built from it; say where it is now"
        " with --model",
        index(moved_model),
    ),
]

QUERIES = [
    Bad(
        "no picture", "query {index}", "Missing argument 'PICTURE...'; see `gradindex query --help`"
    ),
    Bad("no such picture", "query {index} a.png", "a.png: not a picture that opens (no such file)"),
    Bad(
        "a folder",
        "query {index} d",
        "d: not a picture that opens (a folder; give its pictures one by one: in a shell"
        " d/*.png, in Python Path('d').glob('*.png'))",
        folder("d"),
    ),
    Bad(
        "a pattern",
        "query {index} *.png",
        "*.png: not a picture that opens (no such file; a pattern is not expanded: in Python"
        " give what glob.glob finds, in a shell it matches nothing)",
    ),
    Bad(
        "an address",
        "query {index} https://example.com/a.png",
        "https://example.com/a.png: not a picture that opens (an address; download it, and"
        " give the file or its bytes)",
    ),
    Bad(
        "a file that is no picture",
        "query {index} a.png",
        "a.png: not a picture that opens (no format that Pillow reads)",
        file("a.png", "text"),
    ),
    Bad(
        "a picture of 32 bits",
        "query {index} a.tif",
        "a.tif: not a picture that opens (a picture of mode 'F': give 8 or 16 bits a channel)",
        saved("a.tif", Image.new("F", (8, 8))),
    ),
    Bad(
        "a model of classes, no label",
        "query {labelled_index} {picture}",
        "the model is class-conditional: give --class-label, 0 to 2",
    ),
    Bad(
        "a label beyond the classes",
        "query {labelled_index} {picture} --class-label 3",
        "--class-label 3: give one from 0 to 2 per picture",
    ),
    Bad(
        "a label for a model without classes",
        QUERY + "--class-label 3",
        "--class-label 3: the model is not class-conditional",
    ),
    Bad(
        "vectors of training pictures alone",
        QUERY + "--embedding v.npy",
        "embedding: a file holds the training pictures' vectors; give those of the pictures that"
        " you ask about, too (--query-embedding)",
        vectors(np.ones((9, 2)), np.ones((1, 2))),
    ),
    Bad(
        "vectors of queries alone",
        QUERY + "--query-embedding q.npy",
        "--query-embedding: goes with a file of the training pictures' (--embedding)",
    ),
    Bad(
        "vectors of other pictures",
        VECTORS,
        "embedding: [8, 2]; give [9, E], a row for each picture in the order of"
        " `gradindex ids {index}`",
        vectors(np.ones((8, 2)), np.ones((1, 2))),
    ),
    Bad(
        "vectors that are no numbers",
        VECTORS,
        "embedding: row 0 is not finite; give numbers for every picture",
        vectors(np.full((9, 2), np.nan), np.ones((1, 2))),
    ),
    Bad(
        "vectors of whole numbers",
        VECTORS,
        "embedding v.npy: int64 [9, 2]; give floating point numbers [pictures, E]",
        vectors(np.ones((9, 2), np.int64), np.ones((1, 2))),
    ),
    Bad(
        "an embedding's file that is none",
        VECTORS,
        "embedding v.npy: not a .npy file of numbers (No such file or directory)",
    ),
    Bad(
        "a folder without a model",
        QUERY + "--embedding d",
        "d: no weights in safetensors, which are the only ones read",
        folder("d"),
        1,
    ),
    Bad("no hits", QUERY + "-k 0", "-k 0: give a whole number, 1 or more"),
    Bad(
        "hits in words", QUERY + "-k many", "Invalid value for '-k': 'many': give a number, or all"
    ),
    Bad(
        "an unknown method",
        QUERY + "--method trak",
        "Invalid value for '--method': 'trak' is not one of 'retrac', 'tracin'",
    ),
    Bad(
        "negative damping",
        QUERY + "--damping -1",
        "Invalid value for '--damping': -1.0 is not in the range x>0",
    ),
    Bad(
        "damping of plain scores",
        QUERY + "--no-whiten --damping 0.1",
        "--no-whiten has no --damping; leave one of them out; see `gradindex query --help`",
    ),
    Bad(
        "timesteps of the matched pairing",
        QUERY + "--query-timesteps 5",
        "with pairing matched the timesteps and draws are the store's; leave out"
        " --query-timesteps and --query-draws, or give --pairing mean",
    ),
    Bad(
        "more timesteps than the scheduler has",
        QUERY + "--pairing mean --query-timesteps 2000",
        "--query-timesteps 2000: give 1 to 1000, as many as the scheduler has",
    ),
    Bad(
        "a range of one end",
        QUERY + "--timesteps 500",
        "Invalid value for '--timesteps': '500': give A:B, such as 0:500",
    ),
    Bad(
        "a range without timesteps",
        QUERY + "--timesteps 200:300",
        "--timesteps 200:300: the index has none of them, but 100, 700",
    ),
    Bad(
        "a range backwards",
        QUERY + "--timesteps 800:50",
        "--timesteps 800:50: give A:B with A below B",
    ),
    Bad(
        "a range of folded rows",
        "query {folded} {picture} --timesteps 0:500",
        "--timesteps 0:500: the rows of this index are folded into one for each picture;"
        " leave it out",
    ),
    Bad(
        "timesteps of folded rows",
        "query {folded} {picture} --by-timestep",
        "--by-timestep: the rows of this index are folded into one a picture; leave it out",
    ),
    Bad("no such model", QUERY + "--model m", "model m: no such file or folder"),
    Bad(
        "another model",
        QUERY + "--model {labelled}",
        "{index}: model {labelled} or this gradindex is not the one that indexed: config:"
        ' "ab28c47b305632936ceb55796c6662e72d80d65… (d7e6de52), now'
        ' "c32b1e03e3ee9e0888f0bdc203a3f173debf30c… (9d1afddc); checkpoints:'
        ' ["4307f0b79323e2f5ffdfe36598a445d37cc518… (6365549e), now'
        ' ["91c745d2388113fafcf999d887116a19d1aa5e… (040ec745); classes: null, now 3',
    ),
]

REPORTS = [
    Bad(
        "no folder for the output",
        QUERY + "--output gone/a.html",
        "Invalid value for '--output': 'gone/a.html': there is no folder 'gone'",
    ),
    Bad(
        "an output that is a folder",
        QUERY + "--output d",
        "Invalid value for '--output': File 'd' is a directory",
        folder("d"),
    ),
    Bad(
        "an unknown format",
        QUERY + "--format pdf",
        "Invalid value for '--format': 'pdf' is not one of 'table', 'json', 'csv', 'parquet',"
        " 'html'",
    ),
    Bad(
        "neither models nor arrays",
        LDS,
        "give --models or --arrays; see `gradindex evaluate lds --help`",
    ),
    Bad(
        "no models",
        LDS + "--models d",
        "d: 0 folders with a subset.txt; give three models or more",
        folder("d"),
    ),
    Bad(
        "no such arrays",
        LDS + "--arrays a.npz",
        "a.npz: give a .npz file with the arrays subsets and losses (No such file or directory)",
    ),
    Bad(
        "a command without places",
        "evaluate counterfactual {index} {picture} --command train",
        "command 'train' has no {data} and no {out}: write {data} where it takes the folder"
        " of pictures, and {out} where it takes the folder to save the model in",
    ),
    Bad(
        "more left out than there are",
        "evaluate counterfactual {index} {picture} -k 9 --command {data}{out}",
        "-k 9: the index has 9 pictures, and some have to stay; give fewer",
    ),
    Bad(
        "one picture compared",
        "diagnose {index} --compared 1",
        "--compared 1: give 0, or at least 2 pictures",
    ),
    Bad(
        "folded rows diagnosed",
        "diagnose {folded}",
        "{folded}: rows are folded into one for each picture; norms and self-influence need all of"
        " them",
    ),
    Bad(
        "a file where the report's folder is to be",
        "diagnose {index} --out d",
        "Invalid value for '--out': Directory 'd' is a file",
        file("d"),
    ),
]
