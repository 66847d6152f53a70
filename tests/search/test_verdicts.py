"""What an answer comes to: copied, attributable, nothing stands out, or too few pictures to say."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, make_pictures
from helpers import drawing, write_drawings
from PIL import Image

import gradindex
from gradindex.cli.main import main
from gradindex.report.answers import answer
from gradindex.report.page import to_html
from gradindex.report.rendering import to_table, to_values
from gradindex.search import copies as module
from gradindex.search import verdicts
from gradindex.search.copies import Copy, distances, mean_of_nearest
from gradindex.search.pixels import TrainingPixels
from gradindex.search.results import Hit
from gradindex.search.standing import Standing
from gradindex.search.verdicts import verdict

COUNT = 230


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("verdicts") / "data", COUNT)


@pytest.fixture(scope="module")
def place(data: Path) -> Path:
    model = make_model(data.parent / "model", sample_size=32, in_channels=3, out_channels=3)
    index = data.parent / "idx"
    gradindex.build(index, model=model, data=data, timesteps=[300], dim=32)
    return index


@pytest.fixture
def index(place: Path) -> gradindex.Index:
    return gradindex.open(place)


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return Image.open(io.BytesIO(content.getvalue()))


PLANTED = {
    "exact": lambda picture: picture,
    "enlarged": lambda picture: picture.resize((80, 80), Image.Resampling.BICUBIC),
    "made smaller": lambda picture: picture.resize((24, 24), Image.Resampling.BICUBIC),
    "JPEG of quality 75": lambda picture: jpeg(picture, 75),
    "JPEG of quality 30": lambda picture: jpeg(picture, 30),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_copies_are_named(index: gradindex.Index, kind: str) -> None:
    copies = [PLANTED[kind](drawing(seed)) for seed in range(0, 100, 5)]
    verdicts = [result.verdict for result in index.query(copies, verdict=True)]
    right = [
        one is not None and one.kind == "copied" and one.ids == [f"{seed:03d}.png"]
        for one, seed in zip(verdicts, range(0, 100, 5), strict=True)
    ]
    # At 32 pixels a side quality 30 changes a picture so much that some are no longer near enough.
    assert np.mean(right) >= (0.75 if kind == "JPEG of quality 30" else 0.95)


def test_new_pictures_are_no_copies(index: gradindex.Index) -> None:
    """Of the same kind as the training pictures: at most 5 %, and what chance adds to it."""
    new = [drawing(1000 + number) for number in range(60)]
    kinds = [result.verdict.kind for result in index.query(new, verdict=True) if result.verdict]
    assert len(kinds) == 60
    assert kinds.count("copied") <= 0.05 * 60 + 3 * np.sqrt(0.05 * 0.95 * 60)


def test_the_ratio_is_that_to_the_mean_of_fifty(index: gradindex.Index) -> None:
    """As one picture after the other is compared, by hand."""
    asked = jpeg(drawing(7), 60)
    (result,) = index.query(asked, verdict=True)
    assert result.verdict is not None
    all_pixels = [np.asarray(drawing(seed), np.float64) / 127.5 - 1 for seed in range(COUNT)]
    own = np.asarray(asked.convert("RGB"), np.float64) / 127.5 - 1
    lengths = np.sort([np.sqrt(((own - other) ** 2).sum()) for other in all_pixels])
    assert result.verdict.ratio == pytest.approx(lengths[0] / lengths[:50].mean(), rel=1e-3)
    assert result.verdict.as_near == pytest.approx(1 / (COUNT + 1))


def test_copies_are_found_in_sets_with_duplicates(place: Path, data: Path, tmp_path: Path) -> None:
    """Where every picture is there twice, a copy of one still is a copy."""
    twice = tmp_path / "twice"
    twice.mkdir()
    for seed in range(60):
        drawing(seed).save(twice / f"{seed}.png")
        drawing(seed).save(twice / f"{seed}-again.png")
    model = data.parent / "model"
    index = gradindex.build(tmp_path / "idx", model=model, data=twice, timesteps=[300], dim=8)
    (result,) = index.query(jpeg(drawing(5), 75), verdict=True)
    assert result.verdict is not None
    assert (result.verdict.kind, result.verdict.ids) == ("copied", ["5-again.png"])


def test_many_blank_pictures_count_as_one(data: Path, tmp_path: Path) -> None:
    """What is asked about may be blank, nearly so, or no such picture at all."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (32, 32)).save(folder / f"blank-{number:02d}.png")
        drawing(number).save(folder / f"{number:02d}.png")
    model = data.parent / "model"
    index = gradindex.build(tmp_path / "idx", model=model, data=folder, timesteps=[300], dim=8)
    nearly = np.zeros((32, 32, 3), np.uint8)
    nearly[:2] = 20
    asked = [Image.new("RGB", (32, 32)), Image.fromarray(nearly), drawing(5), drawing(1005)]
    said = [result.verdict for result in index.query(asked, 120, verdict=True)]
    assert [one and one.kind for one in said[:3]] == ["copied"] * 3
    assert said[0] is not None
    assert said[0].text.endswith("is identical in pixels")
    assert said[1] is not None
    assert said[1].ids[0].startswith("blank-")
    assert said[2] is not None
    assert said[2].ids == ["05.png"]
    assert said[3] is not None
    assert said[3].kind != "copied"


def test_a_set_of_hardly_different_pictures(data: Path, tmp_path: Path) -> None:
    """Their distances are below what can be told; nothing is divided by them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(60):
        pixels = np.full((32, 32, 3), 255, np.uint8)
        pixels[number % 32, number // 32, 0] = 254
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    model = data.parent / "model"
    index = gradindex.build(tmp_path / "idx", model=model, data=folder, timesteps=[300], dim=8)
    (result,) = index.query(Image.new("RGB", (32, 32), "white"), verdict=True)
    assert result.verdict is not None


def test_some_pictures_are_compared_with_all(
    index: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPARED", 40)
    monkeypatch.setattr(module, "BATCH", 16)
    (result,) = index.query(jpeg(drawing(7), 75), verdict=True)
    assert result.verdict is not None
    assert (result.verdict.kind, result.verdict.ids) == ("copied", ["007.png"])


@pytest.mark.parametrize(
    ("most", "source", "reason"),
    [
        (100, None, "there are more than 100 pictures"),
        (10_000, "nowhere", "the pictures are not files on this machine"),
        (10_000, "others", f"{COUNT - 1} of {COUNT} pictures are not there"),
    ],
)
def test_why_copies_are_not_looked_for(
    index: gradindex.Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    source: str | None,
    reason: str,
) -> None:
    """It is said, and the list is answered all the same."""
    monkeypatch.setattr(verdicts, "MOST_READ", most)
    (tmp_path / "others").mkdir()
    drawing(1).save(tmp_path / "others/001.png")
    place = index.store.location
    moved = index if source is None else gradindex.open(place, data=tmp_path / source)
    (result,) = moved.query(drawing(7), verdict=True)
    assert len(result.hits) == 10
    assert result.verdict is not None
    assert result.verdict.kind != "copied"
    assert "; copies were not looked for: " in result.verdict.text
    assert reason in result.verdict.text


def test_only_what_looks_copied_reads_all(
    index: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = TrainingPixels.read

    def counting(pixels: TrainingPixels, rows: np.ndarray) -> Iterator[np.ndarray]:
        read.append(len(rows))
        return real(pixels, rows)

    monkeypatch.setattr(TrainingPixels, "read", counting)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    index.query(noise, verdict=True, pixels=False)
    assert len(read) == 1
    assert 50 <= read[0] <= 60
    index.query(drawing(7), verdict=True)
    assert COUNT in read


def test_distances_are_those_between_vectors() -> None:
    random = np.random.default_rng(0)
    some = random.normal(size=(3, 20)).astype(np.float32)
    others = random.normal(size=(4, 20)).astype(np.float32)
    slowly = [[np.linalg.norm(one - other) for other in others] for one in some]
    np.testing.assert_allclose(distances(some, others), slowly, rtol=1e-5)
    assert np.isnan(mean_of_nearest(np.array([1.0, np.nan]), 2))


# --- what is said ---------------------------------------------------------------------------------

NORMAL = np.random.default_rng(0).normal(size=1800)


def hits(*scores: float) -> list[Hit]:
    return [Hit(rank, f"{rank}.png", rank, score, None) for rank, score in enumerate(scores, 1)]


def test_what_has_a_quarter_of_the_influence_is_named() -> None:
    scores = np.append(NORMAL, [150.0, 140.0])
    said = verdict(hits(150.0, 140.0, 3.0), Standing.of(scores), None)
    assert (said.kind, said.ids) == ("attributable", ["1.png", "2.png"])
    assert said.text == (
        "attributable: of 1,802 training pictures the 2 that stand out have 29% of all positive"
        " influence"
    )
    assert said.q is not None
    assert said.q <= 1e-9
    assert said.share == pytest.approx(290 / np.maximum(scores, 0).sum())
    one = verdict(hits(300.0, 3.0), Standing.of(np.append(NORMAL, [300.0])), None)
    assert one.text.startswith(
        "attributable: of 1,801 training pictures the 1 that stands out has 30% of"
    )


def test_what_stands_out_with_little_influence_is_not() -> None:
    scores = np.append(NORMAL, [30.0, 29.0])
    said = verdict(hits(30.0, 29.0, 3.0), Standing.of(scores), None)
    assert (said.kind, said.ids) == ("nothing stands out", [])
    assert said.text == (
        "not attributable to few pictures: of 1,802 training pictures the 2 that stand out have"
        " only 7% of all positive influence"
    )
    assert said.share == pytest.approx(59 / np.maximum(scores, 0).sum())


def test_ten_of_few_pictures_do_not_stand_out_by_their_number() -> None:
    """Of 60 they have half of the influence, whatever it is."""
    few = NORMAL[:60]
    said = verdict(hits(*np.sort(few)[::-1][:10].tolist()), Standing.of(few), None)
    assert (said.kind, said.ids, said.share) == ("nothing stands out", [], 0.0)


@pytest.mark.parametrize("count", [50, 100, 200, 500, 2000])
def test_of_bulks_with_heavier_tails_little_is_attributable(count: int) -> None:
    """Nothing is planted; the best are few where pictures are few."""
    random = np.random.default_rng(1)
    for draw, most in ((random.laplace, 0.08), (partial(random.standard_t, 3), 0.13)):
        said = []
        for _ in range(200):
            scores = draw(size=count)
            best = np.sort(scores)[::-1][:10].tolist()
            said.append(verdict(hits(*best), Standing.of(scores), None).kind)
        assert np.mean([kind == "attributable" for kind in said]) <= most


def test_only_the_ten_best_are_judged(index: gradindex.Index) -> None:
    """So that a verdict is the same however many hits are asked for."""
    random = np.random.default_rng(0)
    for count, named in ((480, 10), (80, 2)):
        scores = np.append(random.normal(size=count), np.full(20, 50.0))
        said = verdict(hits(*np.full(10, 50.0)), Standing.of(scores), None)
        assert len(said.ids) == named or said.share == named * 50 / scores.clip(0).sum()
    noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    of_one, of_all = (index.query(noise, k, opponents=True, verdict=True)[0] for k in (1, COUNT))
    assert of_one.verdict == of_all.verdict
    assert of_one.opponents is not None
    assert (len(of_one.hits), len(of_one.opponents), len(of_all.hits)) == (1, 1, COUNT)
    report = answer(index, Image.fromarray(noise), 1).listings[0].results[0]
    assert report.verdict is not None
    assert (len(report.hits), report.verdict.ids) == (1, of_all.verdict and of_all.verdict.ids)


def test_what_is_like_the_bulk_does_not_stand_out() -> None:
    best = np.sort(NORMAL)[::-1][:3].tolist()
    said = verdict(hits(*best), Standing.of(NORMAL), None, "the pictures are gone")
    assert (said.kind, said.ids) == ("nothing stands out", [])
    assert said.text == (
        "nothing stands out: scores as high are to be expected among 1,800 training pictures;"
        " copies were not looked for: the pictures are gone"
    )


def test_a_near_picture_among_near_ones_is_no_copy() -> None:
    copy = Copy(hits(3.0)[0], ratio=0.41, as_near=0.12)
    said = verdict(hits(3.0), Standing.of(NORMAL), copy)
    assert said.kind == "nothing stands out"
    assert said.text.endswith(
        "; in pixels 1.png is 0.41 times as far away as the 50 nearest are on average, but 12% of"
        " training pictures have another as near"
    )
    said = verdict(hits(3.0), Standing.of(NORMAL), Copy(copy.hit, 0.2, 0.01))
    assert (said.kind, said.ids, said.ratio, said.as_near) == ("copied", ["1.png"], 0.2, 0.01)
    near = "in pixels 1.png is 0.2 times as far away as the 50 nearest are on average"
    assert said.text == f"copied: {near}"
    said = verdict(hits(3.0), Standing.of(NORMAL), Copy(copy.hit, 0.0, 0.01, is_same=True))
    assert said.text == "copied: 1.png is identical in pixels"


def test_of_few_pictures_nothing_is_said(
    model: Path, pictures: Path, queries: list[Path], tmp_path: Path
) -> None:
    index = gradindex.build(tmp_path / "idx", model=model, data=pictures, timesteps=[500], dim=8)
    (result,) = index.query(queries[0], verdict=True)
    assert result.verdict is not None
    assert result.verdict.kind is None
    assert (
        result.verdict.text
        == "no verdict: 9 training pictures; it takes 50 to tell what stands out"
    )
    (without,) = index.query(queries[0])
    assert without.verdict is None


def test_small_sets_have_verdicts(model: Path, tmp_path: Path) -> None:
    """From 50 pictures on; copies are looked for from 51 on."""
    folder = make_pictures(tmp_path / "data", 60)
    index = gradindex.build(tmp_path / "idx", model=model, data=folder, timesteps=[500], dim=8)
    (result,) = index.query(folder / "p007.png", verdict=True)
    assert result.verdict is not None
    assert (result.verdict.kind, result.verdict.ids) == ("copied", ["p007.png"])
    assert result.verdict.q is not None


def test_pictures_that_are_gone_are_not_compared(place: Path, data: Path) -> None:
    data.rename(data.with_name("moved"))
    try:
        (result,) = gradindex.open(place).query(drawing(7), verdict=True)
    finally:
        data.with_name("moved").rename(data)
    assert result.verdict is not None
    assert result.verdict.kind in ("attributable", "nothing stands out")
    assert result.verdict.text.endswith("the pictures are not files on this machine")


# --- where it is shown ----------------------------------------------------------------------------


def test_every_output_shows_it(
    index: gradindex.Index, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing(7).save(tmp_path / "gen.png")
    results = index.query(tmp_path / "gen.png", 3, verdict=True)
    said = results[0].verdict
    assert said is not None
    assert to_table(results, "retrac").splitlines()[0] == f"{tmp_path / 'gen.png'}: {said.text}"
    values = to_values(results, "idx", "retrac", 3)["queries"][0]["verdict"]
    assert values.keys() == {"kind", "text", "ids", "q", "share", "ratio", "as_near"}
    assert (values["kind"], values["ids"]) == ("copied", ["007.png"])
    main(["query", str(place), str(tmp_path / "gen.png"), "--format", "json"])
    assert json.loads(capsys.readouterr().out)["queries"][0]["verdict"] == values
    main(["query", str(place), str(tmp_path / "gen.png"), "--no-verdict", "-k", "1"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    page = to_html(answer(index, tmp_path / "gen.png", 3))
    assert f'<p class="verdict">{said.text}</p>' in page


def test_sums_over_duplicates_have_no_verdict() -> None:
    merged = [replace(hit, duplicates=["b.png"]) for hit in hits(30.0)]
    said = verdict(merged, Standing.of(NORMAL), None)
    assert (said.kind, said.q) == (None, None)
    assert said.text == "no verdict: the scores are sums over near-duplicates"
