"""What the benchmarks of answers count, on cases with known answers."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

sys.path.append(str(Path(__file__).parents[2] / "tools" / "benchmarks"))
import audit
import many_copies
import regions
from planted_copies import CHANGES, Planted, judged, plant, precision
from planted_faults import DAMAGES, WRONG_LABEL, with_faults
from roc import auc

import gradindex

FAULTS = np.array(["", WRONG_LABEL, "", "noise", "", "", "black square", "inverted"], object)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    positives, negatives = random.integers(5, size=13) + 1.0, random.integers(5, size=29) + 0.0
    wins = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert auc(positives, negatives) == pytest.approx(np.mean(wins))


def test_faults_of_another_kind_have_no_part_in_an_auc() -> None:
    # The wrong label is above two of four sound pictures; the damaged ones are above all.
    suspicion = np.array([4.0, 3.0, 2.0, 9.0, 1.0, 5.0, 8.0, 7.0])
    figures = audit.found_by(suspicion, FAULTS)
    assert figures[WRONG_LABEL] == 0.5
    assert figures[audit.ANY_DAMAGE] == figures["noise"] == figures["inverted"] == 1
    assert figures[audit.AMONG_FIRST] == 0.75  # of the first four, three are faulty


def test_faults_are_planted_where_it_is_said() -> None:
    random = np.random.default_rng(1)
    pictures = random.uniform(-1, 1, (200, 1, 16, 16)).astype(np.float32)
    labels = random.integers(10, size=200).astype(np.uint8)
    faulty = with_faults(pictures, labels, seed=3)
    wrong = faulty.faults == WRONG_LABEL
    damaged = np.isin(faulty.faults, list(DAMAGES))
    assert (wrong.sum(), damaged.sum()) == (20, 10)
    assert ((faulty.labels != labels) == wrong).all()
    assert ((faulty.pictures != pictures).any((1, 2, 3)) == damaged).all()
    assert {*faulty.faults[damaged]} == {*DAMAGES}
    assert ((faulty.labels >= 0) & (faulty.labels < 10)).all()


def test_neighbours_tell_outliers_and_other_labels() -> None:
    pictures = np.zeros((12, 1, 2, 2), np.float32)
    pictures[:, 0, 0, 0] = np.arange(12) / 100
    pictures[5] = 1
    labels = np.zeros(12, np.int64)
    labels[3] = 1
    none = np.full(12, "", object)
    distance, disagreement = audit.neighbour_scores(audit.FaultySet(pictures, labels, none))
    assert distance.argmax() == 5
    assert disagreement.argmax() == 3
    assert disagreement[3] == 1


PLANTED = Planted(
    Path(),
    origins={"copy-0": "a", "copy-1": "b", "copy-2": "c"},
    changes={"copy-0": "exact", "copy-1": "flipped", "copy-2": "flipped"},
)


def test_copies_natural_pairs_and_wrong_ones_are_told_apart() -> None:
    # a's copy is found with it, and with a natural neighbour of a; b's copy only with another.
    clusters = [["a", "copy-0", "d"], ["copy-1", "e"], ["c", "copy-2"]]
    judgement = judged(clusters, PLANTED, natural=[["a", "d"], ["f", "g"]])
    assert judgement["found"] == {**dict.fromkeys(CHANGES, 0), "exact": 1, "flipped": 1}
    assert judgement["planted"] == {**dict.fromkeys(CHANGES, 0), "exact": 1, "flipped": 2}
    assert (judgement["natural"], judgement["wrong"]) == (1, 1)  # (a, d) and (b, e)
    assert precision(judgement) == pytest.approx(2 / 3)
    assert precision(judgement, natural=1) == 0.5


def test_a_copy_alone_is_not_found() -> None:
    judgement = judged([], PLANTED, natural=[])
    assert sum(judgement["found"].values()) == judgement["wrong"] == 0


def test_copies_are_what_their_kind_says(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(20, 64, 64, 3), dtype=np.uint8)
    pictures = {f"{number:02d}.png": Image.fromarray(array) for number, array in enumerate(pixels)}
    planted = plant(tmp_path / "planted", pictures, copies=2, seed=0)
    assert len({*planted.origins.values()}) == 2 * len(CHANGES)
    assert len(list(planted.folder.glob("*.png"))) == 20 + 2 * len(CHANGES)
    sizes = {"resized to 75%": (48, 48), "cut to 90%": (58, 58)}
    for name, change in planted.changes.items():
        copy, origin = Image.open(planted.folder / name), pictures[planted.origins[name]]
        assert copy.size == sizes.get(change, (64, 64))
        same = np.array_equal(np.asarray(copy), np.asarray(origin))
        assert same == (change == "exact")
        mirrored = np.array_equal(np.asarray(copy), np.asarray(ImageOps.mirror(origin)))
        assert mirrored == (change == "flipped")


def test_a_list_of_copies_is_counted_before_and_after_merging() -> None:
    def hit(rank: int, row: int, duplicates: list[str] | None = None) -> gradindex.Hit:
        return gradindex.Hit(rank, f"{row:05d}.png", row, 0.5, None, duplicates=duplicates)

    is_copy = np.array([False, True, True, True, False])
    apart = gradindex.Result("q", [hit(1, 2), hit(2, 0), hit(3, 1)])
    merged = gradindex.Result("q", [hit(1, 0), hit(2, 2, ["00001.png", "00004.png"]), hit(3, 3)])
    scores = np.array([0.1, 0.2, 0.2, 0.1, 0.1])
    row = many_copies._row(apart, merged, is_copy, scores)
    assert row.pop("share") == pytest.approx(1)
    assert row == {"copies": 2, "places": 2, "rank": 2, "together": 2, "strangers": 1}
    figures = many_copies.summary([{**row, "share": 1.0}, {**row, "rank": None, "share": None}])
    assert (figures["listed"], figures["first"], figures["together"]) == (0.5, 0, 2)
    assert figures["as one"] == 0
    whole = {**row, "places": 1, "together": many_copies.COPIES, "share": 1.0}
    assert many_copies.summary([whole, {**row, "share": 1.0}])["as one"] == 0.5


@pytest.mark.parametrize("layout", regions.LAYOUTS)
def test_parts_of_a_composite_are_of_their_sources(layout: str) -> None:
    first, second = regions.LAYOUTS[layout]
    assert (first.mask ^ second.mask).all()
    training = np.stack([np.full((1, 16, 16), value, np.float32) for value in (0.0, 1.0, 2.0)])
    sources = np.array([[2, 0], [1, 2]])
    made = regions.composed(training, sources, first.mask)
    for composite, (one, other) in zip(made, sources, strict=True):
        assert (composite[:, first.mask] == one).all()
        assert (composite[:, second.mask] == other).all()


def test_both_halves_of_a_composite_are_one_value() -> None:
    row = {"part": "a half", "pictures": "exact", "asked": "the part", "score": "ReTrac"}
    seeds = [
        [
            {**row, "first": [1, 1], "in ten": [1, 1]},
            {**row, "first": [0, 1], "in ten": [1, 1]},
        ],
        [
            {**row, "first": [0, 0], "in ten": [1, 0]},
            {**row, "first": [0, 0], "in ten": [0, 0]},
        ],
    ]
    (pooled,) = regions.pooled(seeds)
    assert pooled["first"][0] == pytest.approx(0.375)
    assert pooled["first, by seed"] == [0.75, 0]
    low, high = pooled["first"][1:]
    assert low < 0.375 < high
