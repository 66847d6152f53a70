"""A query about a part of a picture, or about what makes two pictures differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures
from helpers import run
from models.families.tiny_pipelines import stable_diffusion
from PIL import Image

import gradindex
from gradindex.errors import CallError
from gradindex.gradients.fold import unit
from gradindex.report.answers import answer
from gradindex.report.page import to_html
from gradindex.report.rendering import to_table, to_values

SIDE = 8  # pixels of the pictures
METHODS = ("tracin", "retrac")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("parts") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=4, dim=32, device="cpu")


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> gradindex.Index:
    place = tmp_path_factory.mktemp("captioned")
    return gradindex.build(
        place / "idx",
        model=stable_diffusion(place / "pipeline"),
        data=make_pictures(place / "pictures", 4, size=16, mode="RGB"),
        caption="a cat",
        timesteps=2,
        dim=32,
        device="cpu",
    )


@pytest.mark.parametrize("whiten", [True, False])
def test_the_parts_of_a_picture_add_up_to_it(
    index: gradindex.Index, queries: list[Path], whiten: bool
) -> None:
    whole = index.scores(queries, "tracin", whiten=whiten)
    left = index.scores(queries, "tracin", whiten=whiten, region=(0, 0, 3, SIDE))
    right = index.scores(queries, "tracin", whiten=whiten, region=(3, 0, SIDE, SIDE))
    assert np.allclose(left + right, whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())
    assert not np.allclose(left, whole, rtol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_region_is_a_mask_of_a_rectangle(
    index: gradindex.Index, queries: list[Path], tmp_path: Path, method: str
) -> None:
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[2:7, 1:4] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    scores = index.scores(queries, method, region=(1, 2, 4, 7))
    for mask in (tmp_path / "mask.png", str(tmp_path / "mask.png"), white > 0):
        assert np.array_equal(index.scores(queries, method, mask=mask), scores)
    assert np.array_equal(
        index.scores(queries, method, region=(0, 0, SIDE, SIDE)), index.scores(queries, method)
    )


def test_masks_of_numbers_count_by_their_values(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    """What a JPEG has in place of black counts as little as it does in the file."""
    grey = np.full((SIDE, SIDE), 2, np.uint8)
    grey[:, :4] = 255
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = index.scores(queries, mask=tmp_path / "grey.png")
    assert np.array_equal(index.scores(queries, mask=grey), expected)
    assert np.array_equal(index.scores(queries, mask=grey / 255), expected)
    with pytest.raises(CallError, match="an array of int64; give bool, uint8, or numbers 0 to 1"):
        index.scores(queries, mask=np.full((SIDE, SIDE), 7))


def test_masks_of_every_kind_of_picture(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    """What is black and white in them is what counts, and a JPEG is nearly grey."""
    white = Image.new("L", (SIDE, SIDE))
    white.paste(255, (0, 0, 4, SIDE))
    expected = index.scores(queries, mask=white)
    for mode in ("1", "RGB", "RGBA", "P", "LA"):
        white.convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(index.scores(queries, mask=tmp_path / f"{mode}.png"), expected)
    white.convert("RGB").save(tmp_path / "mask.jpg", quality=60)
    found = index.scores(queries, mask=tmp_path / "mask.jpg")
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.05 * abs(expected).max())


def test_a_region_is_in_pixels_of_the_picture_as_it_came(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    """A picture four times as large, with a border that is cut off, has its region there."""
    small = Image.open(queries[0])
    large = Image.new("L", (4 * SIDE + 8, 4 * SIDE))
    large.paste(small.resize((4 * SIDE, 4 * SIDE), Image.Resampling.NEAREST), (4, 0))
    large.save(tmp_path / "large.png")
    expected = index.scores(
        [tmp_path / "large.png"], mask=np.pad(np.ones((32, 16)), ((0, 0), (4, 20)))
    )
    found = index.scores([tmp_path / "large.png"], region=(4, 0, 20, 32))
    assert np.array_equal(found, expected)
    with pytest.raises(CallError, match=r"against: a picture of 8 × 8 pixels, .* has 40 × 32: a"):
        index.scores(tmp_path / "large.png", region=(4, 0, 8, 8), against=queries[1])
    of_small = index.scores(queries[:1], region=(0, 0, 4, 8))
    assert np.corrcoef(found[0], of_small[0])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": (0, 0, 9, 8)}, r"region = 0,0,9,8: give X0 below X1 .* 8 × 8 pixels"),
        ({"region": (-1, 0, 4, 4)}, r"inside the picture, which has 8 × 8"),
        ({"region": (4, 0, 4, 8)}, r"give X0 below X1"),
        ({"region": (1, 2, 3)}, r"region = 1,2,3: give left, top, right and bottom"),
        ({"region": "ab"}, r"give left, top, right and bottom"),
        ({"region": (0, 0, 1.0, 1.0)}, r"give left, top, right and bottom in whole pixels"),
        ({"mask": np.ones((8, 8), np.uint8)}, r"mask: is of 0 and 1, nearly black; give 0 and 255"),
        ({"mask": Image.new("L", (8, 8), 1)}, r"mask: is of 0 and 1, nearly black"),
        ({"mask": Image.new("RGB", (8, 8), (0, 255, 0))}, r"mask: has colours; give white where"),
        ({"mask": Image.new("RGBA", (8, 8), (255, 255, 255, 9))}, r"mask: has transparent parts"),
        ({"mask": Image.new("LA", (8, 8), (255, 0))}, r"mask: has transparent parts"),
        ({"region": (0, 0, 4, 4), "mask": np.ones((8, 8))}, r"region and mask: give one of them"),
        ({"mask": np.zeros((8, 8))}, r"mask: empty, nothing of what the model sees"),
        ({"mask": np.ones((4, 8))}, r"mask has 8 × 4 pixels, and the picture 8 × 8"),
        ({"mask": np.ones((3, 8, 8))}, r"an array of shape \(3, 8, 8\); give \[height, width\]"),
        ({"mask": "nothing.png"}, r"mask nothing\.png: not a picture that opens"),
        ({"against": []}, r"against: 0 for 1 pictures; give one, or one each"),
        ({"against": ["a.png"] * 3}, r"against: 3 for 1 pictures; give one, or one each"),
        ({"against_prompt": "a dog"}, r"against_prompt = 'a dog': the model is given no captions"),
    ],
)
def test_parts_and_contrasts_that_do_not_fit(
    index: gradindex.Index, queries: list[Path], options: Any, message: str
) -> None:
    with pytest.raises(CallError, match=message) as caught:
        index.query(queries[0], 1, **options)
    assert "\n" not in str(caught.value)


def test_a_part_smaller_than_a_cell_of_the_latent(
    captioned: gradindex.Index, tmp_path: Path
) -> None:
    picture = make_pictures(tmp_path / "q", 1, size=16, mode="RGB", seed=9)
    options: Any = {"prompt": "a cat"}
    name = next(picture.iterdir())
    recipe = captioned.store.recipe
    factor = recipe.pixels[1] // recipe.image[1]
    assert factor > 1
    with pytest.raises(CallError, match=rf"smaller than {factor} × {factor} pixels of the 16 × 16"):
        captioned.query(name, region=(0, 0, 1, 1), **options)
    assert captioned.query(name, region=(0, 0, factor, factor), **options)


def test_a_part_that_is_cut_off(index: gradindex.Index, tmp_path: Path) -> None:
    Image.new("L", (80, 8), 100).save(tmp_path / "wide.png")
    with pytest.raises(CallError, match="empty, nothing of what the model sees"):
        index.query(tmp_path / "wide.png", region=(0, 0, 8, 8))


@pytest.mark.parametrize("pairing", ["matched", "mean"])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_contrast_is_the_difference_of_two_queries(
    index: gradindex.Index, queries: list[Path], pairing: str, whiten: bool
) -> None:
    """At the same noise: TracIn is linear in the query."""
    options: Any = {"pairing": pairing, "whiten": whiten}
    if pairing == "mean":
        options |= {"query_timesteps": 3, "query_draws": 1}
    first, second = (
        index.scores(query, "tracin", ids=["same"], **options) for query in queries[:2]
    )
    found = index.scores(queries[0], "tracin", against=queries[1], ids=["same"], **options)
    largest = np.abs(first).max() + np.abs(second).max()
    assert np.abs(found - (first - second)).max() <= 1e-4 * largest


def test_the_cosine_of_a_contrast(index: gradindex.Index, queries: list[Path]) -> None:
    """The difference comes before its norm is taken away."""
    blocks = [
        index.query_blocks(index.to_query(query, whiten=False), "tracin")[0]
        for query in queries[:2]
    ]
    rows = index.store.unnormalized[:]
    units = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    difference = unit(blocks[0] - blocks[1])
    expected = np.einsum("qctd,cntd->qn", difference, units) / rows.shape[2]
    found = index.scores(queries[0], "retrac", whiten=False, against=queries[1])
    assert np.allclose(found, expected, atol=1e-5)


def test_one_contrast_for_all_or_one_each(
    index: gradindex.Index, queries: list[Path], pictures: Path
) -> None:
    other = pictures / "p004.png"
    one = index.scores(queries[:2], against=[other, other])
    assert np.array_equal(index.scores(queries[:2], against=other), one)
    assert np.array_equal(index.scores(queries[:2], against=iter([other, other])), one)
    opened = Image.open(other)
    (first, second) = index.query(queries[:2], 1, against=opened)
    assert first.asked == second.asked == {"against": "a picture"}


def test_what_a_word_of_the_prompt_draws_on(captioned: gradindex.Index, tmp_path: Path) -> None:
    picture = next(make_pictures(tmp_path / "q", 1, size=16, mode="RGB", seed=9).iterdir())
    cat, dog = (
        captioned.scores(picture, "tracin", prompt=prompt, whiten=False)
        for prompt in ("a cat", "a dog")
    )
    found = captioned.scores(
        picture, "tracin", prompt="a cat", against_prompt="a dog", whiten=False
    )
    largest = np.abs(cat).max()
    assert np.abs(cat - dog).max() > 1e-3 * largest
    assert np.abs(found - (cat - dog)).max() <= 1e-4 * largest


def test_prompts_of_what_is_compared_are_told_apart(
    captioned: gradindex.Index, tmp_path: Path
) -> None:
    first, second = sorted(make_pictures(tmp_path / "q", 2, size=16, mode="RGB", seed=9).iterdir())
    first.with_suffix(".txt").write_text("a cat")
    with pytest.raises(CallError, match=r"p001\.png: the model .* \(against_prompt=\), or ''"):
        captioned.query(first, against=second)
    with pytest.raises(CallError, match="against_prompt: 2 for 1 picture; give one, or one each"):
        captioned.query(first, against_prompt=["a dog", "a cat"])
    with pytest.warns(UserWarning, match="picture 1 of those asked about is what it is compared"):
        captioned.query(first, against=first)


def test_the_command_asks_about_parts_and_contrasts(
    index: gradindex.Index, queries: list[Path]
) -> None:
    place = index.store.location
    asked = ["query", place, queries[0], "--format", "json", "-k", "9"]

    def scores(*options: object) -> dict[int, float]:
        done = run(*asked, *options)
        assert done.returncode == 0, done.stderr
        (query,) = json.loads(done.stdout)["queries"]
        return {hit["row"]: hit["score"] for hit in query["hits"]}

    for given, options in (
        (["--region", "0,0,4,8"], {"region": (0, 0, 4, 8)}),
        (["--against", queries[1]], {"against": queries[1]}),
    ):
        expected = index.scores(queries[0], **options)[0]  # type: ignore[arg-type]
        assert scores(*given) == pytest.approx(dict(enumerate(expected)), rel=1e-5)
    for wrong in ("0,0,4", "a,b,c,d", "0,0,4,-8"):
        refused = run(*asked, "--region", wrong)
        assert refused.returncode == 2
        assert "give X0,Y0,X1,Y1 in pixels of the picture" in refused.stderr


def test_answers_say_what_was_asked(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    """In JSON, in the table, and in a report; an answer about whole pictures says nothing of it."""
    mask = tmp_path / "hat.png"
    Image.new("L", (SIDE, SIDE), 255).save(mask)
    options: Any = {"mask": mask, "against": queries[1], "timesteps": (0, 900), "whiten": 0.25}
    results = index.query(queries[0], 2, verdict=True, **options)
    asked = {"mask": str(mask), "against": str(queries[1]), "timesteps": "0:900", "damping": 0.25}
    values = to_values(results, "idx", "retrac", 2)["queries"][0]
    assert values["asked"] == asked
    words = f"mask {mask}, against {queries[1]}, timesteps 0:900, damping 0.25"
    lines = to_table(results, "retrac").splitlines()
    assert lines[0].startswith(f"{queries[0]}, {words}: no verdict")
    assert lines[1].startswith(f"{queries[0]}, {words}: proponents (")
    report = answer(index, queries[0], 2, **options)
    assert f"<p>{words}</p>" in to_html(report)
    each: Any = {"against": [queries[1], queries[0]], "region": (0, 0, 4, 8)}
    both = index.query(queries[:2], 2, **each)
    assert [result.asked["against"] for result in both] == [str(queries[1]), str(queries[0])]
    assert both[0].asked["region"] == [0, 0, 4, 8]
    page = to_html(answer(index, queries[:2], 2, **each))
    assert all(f"<p>region 0,0,4,8, against {other}</p>" in page for other in queries[:2])
    (whole,) = index.query(queries[0], 2)
    assert whole.asked == {}
    assert "asked" not in to_values([whole], "idx", "retrac", 2)["queries"][0]


def test_parts_and_contrasts_are_no_copies(model: Path, tmp_path: Path) -> None:
    """The pixels of the whole picture say nothing of them."""
    data = make_pictures(tmp_path / "data", 60)
    index = gradindex.build(tmp_path / "idx", model=model, data=data, timesteps=[500], dim=8)
    asked = sorted(data.iterdir())
    for options, reason in (
        ({"region": (0, 0, 4, 8)}, "only a part of the picture was asked about"),
        ({"against": asked[1]}, "what two queries differ by is no picture"),
    ):
        said = index.query(asked[0], verdict=True, **options)[0].verdict  # type: ignore[arg-type]
        assert said is not None
        assert said.kind != "copied"
        assert said.text.endswith(f"; copies were not looked for: {reason}")
    whole = index.query(asked[0], verdict=True)[0].verdict
    assert whole is not None
    assert whole.kind == "copied"
