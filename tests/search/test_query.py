"""A query: FAISS proposes, the store decides, and nothing that does not fit is compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model, make_pictures
from PIL import Image

import gradindex
from gradindex.errors import CallError, RecipeMismatch
from gradindex.recipe import Recipe
from gradindex.search import query_gradients as search_module
from gradindex.store.manifest import COPY, HEADER, seal, seal_header, unseal
from gradindex.store.records import to_json

METHODS = ("tracin", "retrac")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("search") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=4, dim=32, device="cpu")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pairing", ["matched", "mean"])
def test_hits_and_opponents_are_the_ends_of_the_scores(
    index: gradindex.Index, queries: list[Path], method: str, pairing: str
) -> None:
    grid = {"query_timesteps": [10, 900], "query_draws": 1} if pairing == "mean" else {}
    scores = index.scores(queries, method, pairing=pairing, **grid)
    results = index.query(queries, 3, method, opponents=True, pairing=pairing, **grid)
    for row, result in zip(scores, results, strict=True):
        assert [hit.row for hit in result.hits] == np.argsort(-row)[:3].tolist()
        assert [hit.row for hit in result.opponents or []] == np.argsort(row)[:3].tolist()
        assert result.scores == row[[hit.row for hit in result.hits]].tolist()
        assert [hit.rank for hit in result.hits] == [1, 2, 3]
        assert result.ids == [index.store.sample_ids[hit.row] for hit in result.hits]


def test_a_training_picture_finds_itself_with_cosine_one(
    index: gradindex.Index, pictures: Path
) -> None:
    """With shared noise and matched timesteps its gradient is its row."""
    for result in index.query(sorted(pictures.iterdir()), 1, whiten=False):
        assert result.ids == [Path(result.picture).name]
        assert result.scores == pytest.approx([1], abs=1e-5)


def test_pixels_of_another_resolution_than_the_models_own(tmp_path: Path, model: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", 3, size=16)
    gradindex.build(
        tmp_path / "i", model=model, data=pictures, timesteps=2, dim=32, resolution=16, device="cpu"
    )
    index = gradindex.open(tmp_path / "i", device="cpu")
    assert index.store.recipe.image == (1, 16, 16)
    for result in index.query(sorted(pictures.iterdir()), 1, whiten=False):
        assert result.ids == [Path(result.picture).name]


def test_k_beyond_n_returns_every_picture(index: gradindex.Index, queries: list[Path]) -> None:
    assert [len(result.hits) for result in index.query(queries, 1000)] == [9, 9]


def test_paths_pictures_and_tensors_are_the_same_query(
    index: gradindex.Index, queries: list[Path]
) -> None:
    opened = [Image.open(file) for file in queries]
    tensors = [
        torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1)[None] for picture in opened
    ]
    expected = index.scores(queries)
    for same in (opened, tensors, [str(file) for file in queries]):
        np.testing.assert_allclose(index.scores(same), expected, rtol=1e-6)


def test_queries_do_not_see_each_other(index: gradindex.Index, queries: list[Path]) -> None:
    together = index.scores(queries)
    for number, file in enumerate(queries):
        np.testing.assert_allclose(
            index.scores([file], batch_size=3)[0], together[number], rtol=1e-4, atol=1e-5
        )


def test_the_standard_error_is_that_of_the_mean_over_timesteps(
    index: gradindex.Index, queries: list[Path]
) -> None:
    hit = index.query(queries, 1)[0].hits[0]
    block = index.query_blocks(index.to_query(queries[:1]), "retrac")[0][0, 0]
    u = index.store.unnormalized[0, hit.row]
    cosines = [(u[t] / np.linalg.norm(u[t])) @ block[t] for t in range(4)]
    assert hit.score == pytest.approx(np.mean(cosines), rel=1e-5)
    assert hit.stderr == pytest.approx(np.std(cosines, ddof=1) / 2, rel=1e-4)


def test_one_timestep_has_no_standard_error(
    tmp_path: Path, model: Path, pictures: Path, queries: list[Path]
) -> None:
    index = gradindex.build(
        tmp_path / "i", model=model, data=pictures, timesteps=1, dim=16, device="cpu"
    )
    assert index.query(queries, 1)[0].hits[0].stderr is None


def test_equal_scores_come_in_the_order_of_rows(
    tmp_path: Path, model: Path, queries: list[Path]
) -> None:
    """The same picture under nine names: same score, rows ascending, for both ends."""
    folder = make_pictures(tmp_path / "one", 1)
    for number in range(1, 9):
        shutil.copy(folder / "p000.png", folder / f"q{number}.png")
    index = gradindex.build(
        tmp_path / "i", model=model, data=folder, timesteps=3, dim=16, device="cpu"
    )
    for method in METHODS:
        result = index.query(queries, 9, method, opponents=True)[0]
        assert len(set(result.scores)) == 1
        assert (
            [hit.row for hit in result.hits]
            == [hit.row for hit in result.opponents or []]
            == list(range(9))
        )


def test_own_noise_is_keyed_by_ids(
    tmp_path: Path, model: Path, pictures: Path, queries: list[Path]
) -> None:
    index = gradindex.build(
        tmp_path / "i", model=model, data=pictures, timesteps=2, noise="own", device="cpu"
    )
    np.testing.assert_allclose(
        index.scores(queries, ids=["a", "b"]), index.scores(queries, ids=["a", "b"]), rtol=1e-6
    )
    assert (
        np.abs(index.scores(queries, ids=["a", "b"]) - index.scores(queries, ids=["c", "d"])).max()
        > 1e-4
    )
    name = "p003.png"  # under its own id a training picture has its own noise, and finds itself
    found = index.query([pictures / name], 1, ids=[name], whiten=False)[0]
    assert found.scores == pytest.approx([1], abs=1e-5)


# --- refusals


def test_a_retrained_model_is_refused_and_a_moved_one_is_found(
    tmp_path: Path, pictures: Path, queries: list[Path]
) -> None:
    place = make_model(tmp_path / "m", seed=4)
    index = gradindex.build(
        tmp_path / "i", model=place, data=pictures, timesteps=2, dim=16, device="cpu"
    )
    expected = index.scores(queries)
    place.rename(tmp_path / "moved")
    with pytest.raises(CallError, match="m: no such file or folder"):
        gradindex.open(tmp_path / "i").scores(queries)
    moved = gradindex.open(tmp_path / "i", model=tmp_path / "moved", device="cpu")
    np.testing.assert_allclose(moved.scores(queries), expected, rtol=1e-6)
    make_model(place, seed=5, prediction_type="sample")
    with pytest.raises(RecipeMismatch, match="is not the one that indexed") as caught:
        gradindex.open(tmp_path / "i").scores(queries)
    assert [text.partition(":")[0] for text in caught.value.differences] == [
        "checkpoints",
        "prediction_type",
    ]


def test_the_same_weights_under_another_config_are_refused(
    tmp_path: Path, pictures: Path, queries: list[Path]
) -> None:
    place = make_model(tmp_path / "m")
    gradindex.build(tmp_path / "i", model=place, data=pictures, timesteps=1, dim=16, device="cpu")
    config = json.loads((place / "unet/config.json").read_text())
    (place / "unet/config.json").write_text(json.dumps({**config, "act_fn": "gelu"}))
    with pytest.raises(RecipeMismatch, match="is not the one that indexed: config:"):
        gradindex.open(tmp_path / "i").scores(queries)


def test_tensors_of_any_kind(index: gradindex.Index, queries: list[Path]) -> None:
    tensor = torch.zeros(1, 8, 8)
    expected = index.scores([tensor])
    np.testing.assert_array_equal(index.scores([tensor.bfloat16()]), expected)
    np.testing.assert_array_equal(index.scores([tensor.requires_grad_()]), expected)


def test_a_store_made_by_other_noise_code_is_refused(
    tmp_path: Path, index: gradindex.Index, queries: list[Path]
) -> None:
    """A store whose noise or projection version is not this package's gives no scores."""
    place = tmp_path / "copy"
    shutil.copytree(index.store.location.path, place)
    old = Recipe.from_json({**index.store.recipe.to_json(), "projection_version": 0})
    header = seal_header(
        {**to_json(index.store.header), "recipe": old.to_json(), "digest": old.digest}
    )
    for name in (HEADER, COPY):
        (place / name).write_bytes(header)
    for shard in index.store.shards():
        entry = place / shard.entry
        entry.write_bytes(seal({**unseal(entry.read_bytes()), "recipe": old.digest}))
    with pytest.raises(RecipeMismatch, match="projection_version: 0, now 3"):
        gradindex.open(place).scores(queries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k = 0: give a whole number, 1 or more"),
        ({"method": "dot"}, "method = 'dot': allowed are 'tracin', 'retrac'"),
        ({"pairing": "max"}, "pairing = 'max'"),
        ({"query_timesteps": 5}, "with pairing matched the timesteps and draws are the store's"),
        ({"query_draws": 5}, "with pairing matched the timesteps and draws are the store's"),
        ({"pairing": "mean", "query_timesteps": 0}, "timesteps = 0"),
        ({"pairing": "mean", "query_draws": 0}, "query_draws = 0"),
        ({"weights": [1, 2]}, "weights = [1, 2]: this index has 1 checkpoint"),
        ({"class_label": 1}, "the model is not class-conditional"),
        ({"ids": ["a"]}, "ids: 1 for 2 pictures"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_wrong_queries(
    index: gradindex.Index, queries: list[Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CallError) as caught:
        index.query(queries, **options)
    assert message in str(caught.value)


def test_query_pictures_that_do_not_open(index: gradindex.Index, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for picture, message in [
        (tmp_path / "text.png", "text.png: not a picture that opens"),
        (tmp_path / "absent.png", "absent.png: not a picture that opens"),
        (np.zeros((3, 8, 8)), r"shape \(3, 8, 8\): give \(1, 8, 8\)"),
        (np.full((1, 8, 8), 2.0), r"values in \[-1, 1\]"),
        (np.full((1, 8, 8), np.nan), r"values in \[-1, 1\]"),
    ]:
        with pytest.raises(CallError, match=message):
            index.query([picture])
    with pytest.raises(CallError, match="pictures: give at least one"):
        index.query([])


# --- ranges of timesteps


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("three") / "idx"
    settings = {
        "model": model,
        "data": pictures,
        "dim": 16,
        "device": "cpu",
        "timesteps": [100, 400, 700],
    }
    return gradindex.build(place, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["tracin", "retrac"])
@pytest.mark.parametrize("pairing", ["matched", "mean"])
@pytest.mark.parametrize(
    ("span", "kept"), [((0, 1000), [0, 1, 2]), ((400, 700), [1]), ((None, 401), [0, 1])]
)
def test_a_range_scores_only_its_rows(
    three: gradindex.Index,
    queries: list[Path],
    method: str,
    pairing: str,
    span: tuple[int | None, int],
    kept: list[int],
) -> None:
    grid = {"query_timesteps": 3, "query_draws": 1} if pairing == "mean" else {}
    options = {"pairing": pairing, "whiten": False, **grid}
    (block,) = three.query_blocks(three.to_query(queries, **options), method)  # type: ignore[arg-type]
    block = block[:, 0].astype(np.float64)
    rows = three.store.unnormalized[0].astype(np.float64)
    if method == "retrac":
        rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    each = np.einsum("ntd,qtd->qnt", rows, block)[:, :, kept]
    found = three.scores(queries, method, timesteps=span, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, each.mean(2), rtol=1e-5)
    asked = {"k": 4, "opponents": True, "by_timestep": True, "timesteps": span, **options}
    for result, values, parts in zip(
        three.query(queries, method=method, **asked), each.mean(2), each, strict=True
    ):  # type: ignore[arg-type]
        assert [hit.row for hit in result.hits] == np.argsort(-values)[:4].tolist()
        assert [hit.row for hit in result.opponents or []] == np.argsort(values)[:4].tolist()
        for hit in result.hits:
            assert hit.by_timestep is not None
            assert list(hit.by_timestep) == [three.store.recipe.timesteps[j] for j in kept]
            np.testing.assert_allclose(
                list(hit.by_timestep.values()), parts[hit.row] / len(kept), rtol=1e-5
            )
            expected = parts[hit.row].std(ddof=1) / np.sqrt(len(kept)) if len(kept) > 1 else None
            assert hit.stderr == (None if expected is None else pytest.approx(expected, rel=1e-5))


def test_a_matched_query_takes_only_the_gradients_of_its_range(
    three: gradindex.Index, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(
        search_module,
        "sample_gradients",
        lambda *a, **k: taken.append(a[4].timesteps.tolist()) or np.ones((1, 2, 16)),
    )
    three.query(queries[:1], timesteps=(0, 500))
    assert taken == [[[100, 400]]]


def test_a_range_must_be_two_ends(three: gradindex.Index, queries: list[Path]) -> None:
    for wrong in (5, [100, 400, 700]):
        with pytest.raises(CallError, match=r"give the first and the one after the last, \(A, B\)"):
            three.query(queries, timesteps=wrong)  # type: ignore[arg-type]


def test_a_range_without_rows_says_what_there_is(
    three: gradindex.Index, queries: list[Path]
) -> None:
    with pytest.raises(CallError, match=r"= 0:100: the index has none of them, but 100, 400, 700"):
        three.query(queries, timesteps=(0, 100))


def test_a_method_may_be_named_twice(index: gradindex.Index, queries: list[Path]) -> None:
    scores = index.scores_by_method(queries, "retrac", "retrac")
    np.testing.assert_array_equal(scores["retrac"], index.scores(queries))
