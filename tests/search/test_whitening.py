"""Whitening against dense float64 algebra, and how long its factors last."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pictures
from helpers import RECIPE, run

import gradindex
from gradindex.builder.build import _finish
from gradindex.builder.upkeep import grow, remove
from gradindex.errors import CallError
from gradindex.search import factor_making, factors, row_whitening
from gradindex.search import whitening as whiten_module
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import default_index_names
from gradindex.search.factors import DAMPING, WHITENED
from gradindex.search.ranker import Ranker
from gradindex.search.row_whitening import RowWhitening
from gradindex.search.scoring import METHODS
from gradindex.search.whitening import Whitening
from gradindex.store import memory as memory_module
from gradindex.store import store as store_module
from gradindex.store.store import Store


def make_store(place: Path, pictures: int) -> Store:
    """Two checkpoints, three timesteps, 16 numbers, one picture skipped.

    Rows share a direction and have uneven norms.
    """
    store = Store.create(place, RECIPE, [str(number) for number in range(pictures)])
    fill(store)
    return Store.finished(place)


def fill(store: Store) -> None:
    for shard in store.missing():
        random = np.random.default_rng([shard.checkpoint, shard.number])
        rows = (
            random.standard_normal((store.shard_rows, 3, 16)) * np.linspace(2, 0.2, 16)
            + np.eye(16)[0]
        )
        rows *= random.lognormal(size=(len(rows), 1, 1))
        rows = rows[: shard.stop - shard.start].astype(np.float32)
        skipped = [5] if shard.number == 0 else []
        rows[skipped] = 0
        store.write(shard, rows, np.zeros(rows.shape[:2], np.float32), skipped)
    store.finish()


def dense(store: Store, method: str, block: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """The formula, in float64."""
    rows = store.unnormalized[:].astype(np.float64)
    if method == "retrac":
        norms = np.linalg.norm(rows, axis=3, keepdims=True)
        rows /= np.where(norms == 0, 1, norms)
    out = np.empty(block.shape)
    for c in range(rows.shape[0]):
        for t in range(rows.shape[2]):
            g = rows[c, :, t]
            moment = g.T @ g / np.count_nonzero(g.any(1))  # skipped ones, all zeros, do not count
            damped = moment + damping * moment.trace() * np.eye(len(moment))
            out[:, c, t] = np.linalg.solve(damped, block[:, c, t].T.astype(np.float64)).T
    return out


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_ROWS", 32)


@pytest.fixture
def block() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 2, 3, 16)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pictures", [9, 100])
def test_whitened_queries_equal_dense_algebra(
    tmp_path: Path, block: np.ndarray, method: str, pictures: int
) -> None:
    """With fewer pictures than numbers in a row, and with more; at several dampings."""
    store = make_store(tmp_path / "idx", pictures)
    whitening = Whitening(store, method)
    for damping in (DAMPING, 0.01, 100.0):
        expected = dense(store, method, block, damping)
        np.testing.assert_allclose(
            whitening.whitened(block, damping), expected, rtol=1e-4, atol=1e-5 * expected.max()
        )
    again = Whitening(store, method)
    np.testing.assert_array_equal(again.whitened(block), whitening.whitened(block))


@pytest.mark.parametrize("method", METHODS)
def test_wide_rows_are_whitened_by_some_of_them(
    tmp_path: Path, block: np.ndarray, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, where these are all; near it, where they are half."""
    store = make_store(tmp_path / "idx", 200)
    monkeypatch.setattr(factors, "WIDEST", 15)
    for damping in (DAMPING, 0.01):
        expected = dense(store, method, block, damping)
        found = RowWhitening(store, method).whitened(block, damping)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    monkeypatch.setattr(row_whitening, "SAMPLE", 100)
    much = 10 / 16
    found, expected = (
        RowWhitening(store, method).whitened(block, much),
        dense(store, method, block, much),
    )
    assert 0.001 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.1
    with pytest.raises(CallError, match="16 numbers are too wide"):
        Whitening(store, method)
    assert not (tmp_path / "idx/whiten").exists()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("folded", [False, True])
def test_few_pictures_need_no_factors(tmp_path: Path, method: str, folded: bool) -> None:
    """Scores are those of factors, at every damping, also once some are removed."""
    recipe = replace(RECIPE, rows="folded") if folded else RECIPE
    store = Store.create(tmp_path / "idx", recipe, [str(number) for number in range(14)])
    shape = store.shape
    rows = np.random.default_rng(2).standard_normal(shape).astype(np.float32) + np.eye(shape[3])[0]
    for shard in store.missing():
        some_rows = rows[shard.checkpoint, shard.start : shard.stop].astype(np.float32)
        some_rows[5] = 0  # skipped
        units = some_rows / np.maximum(np.linalg.norm(some_rows, axis=2, keepdims=True), 1e-30)
        zeros = np.zeros(some_rows.shape[:2], np.float32)
        store.write(shard, some_rows, zeros, [5], units=units.astype(np.float16))
    _finish(store, tmp_path, "cpu")
    assert not (tmp_path / "idx/whiten").exists()
    assert not list((tmp_path / "idx").rglob("*.faiss"))
    assert default_index_names(store) == list(METHODS)
    block = (rows[:, :3] * 2 - rows[:, 3:6]).transpose(1, 0, 2, 3).astype(np.float32)
    for removed in ([], ["1", "7"]):
        if removed:
            remove(tmp_path / "idx", removed)
        store = Store.finished(tmp_path / "idx")
        ranker, by_factors = Ranker(store, "cpu"), Whitening(store, method, save=False)
        for damping in (DAMPING, 0.01, DAMPING):
            found = ranker.scores(method, ranker.whitened(method, block, damping))
            expected = ranker.scores(method, by_factors.whitened(block, damping))
            assert np.isnan(found[0]).sum() == 1 + len(removed)
            largest = np.nanmax(np.abs(expected))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)
    assert not (tmp_path / "idx/whiten").exists()


@pytest.mark.parametrize("method", METHODS)
def test_rows_and_factors_score_alike_where_rows_share_a_direction(
    tmp_path: Path, method: str
) -> None:
    """One direction holds half of the rows' squares, as of real gradients; to 1e-4."""
    recipe = replace(RECIPE, checkpoints=("a" * 64,), timesteps=(1, 2), dim=512)
    store = Store.create(tmp_path / "idx", recipe, [str(number) for number in range(300)])
    random = np.random.default_rng(0)
    for shard in store.missing():
        rows = random.standard_normal((shard.stop - shard.start, 2, 512)) * np.linspace(2, 0.2, 512)
        rows += 25 * np.eye(512)[0]
        rows *= random.lognormal(size=(len(rows), 1, 1))
        store.write(shard, rows.astype(np.float32), np.zeros(rows.shape[:2], np.float32))
    store.finish()
    ranker, by_factors = Ranker(store, "cpu"), Whitening(store, method, save=False)
    block = store.read("unnormalized", 0, slice(0, 6))[:, None]
    block = block[:3] / 3 + block[3:]
    found = ranker.scores(method, ranker.whitened(method, block))
    expected = ranker.scores(method, by_factors.whitened(block))
    largest = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(found - expected) <= 1e-4 * largest).all()


@pytest.mark.parametrize("method", METHODS)
def test_factors_of_few_pictures_that_are_there_are_used(
    tmp_path: Path, block: np.ndarray, method: str
) -> None:
    """As an earlier gradindex made them, with search files; and they grow with the index."""
    store = make_store(tmp_path / "idx", 9)
    with_factors = Whitening(store, method)
    made = build_ann_index(store, method + WHITENED, "flat")
    ranker = Ranker(store, "cpu")
    whitened = ranker.whitened(method, block)
    np.testing.assert_array_equal(whitened, with_factors.whitened(block, DAMPING))
    options = {"span": None, "damping": DAMPING, "signs": (1,), "is_like_rows": True}
    proposed = ranker.proposed(whitened, 3, method, **options)[1]  # type: ignore[arg-type]
    for mine, expected in zip(proposed, made.proposed(whitened, 3, (1,))[1], strict=True):  # type: ignore[index]
        np.testing.assert_array_equal(mine, expected)
    grown = grow(store, [str(number) for number in range(9, 13)])
    fill(grown)
    _finish(grown, tmp_path, "cpu")
    whitened = Ranker(Store.finished(tmp_path / "idx"), "cpu").whitened(method, block)
    expected = dense(grown, method, block)
    np.testing.assert_allclose(whitened, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert (tmp_path / f"idx/faiss/{method}-whitened.faiss").exists()


def test_an_index_of_few_pictures_is_little_larger_than_its_rows(tmp_path: Path) -> None:
    """300 pictures of ten timesteps at D = 4096: nothing that a query needs is beside them."""
    recipe = replace(RECIPE, checkpoints=("a" * 64,), timesteps=tuple(range(10)), dim=4096)
    ids = [str(number) for number in range(300)]
    store = Store.create(tmp_path / "idx", recipe, ids)
    for shard in store.missing():
        random = np.random.default_rng(shard.number)
        rows = random.standard_normal((shard.stop - shard.start, 10, 4096), np.float32)
        store.write(shard, rows, np.zeros(rows.shape[:2], np.float32))
    _finish(store, tmp_path, "cpu")
    row_bytes = 300 * 10 * 4096 * (4 + 2)
    files = [file for file in (tmp_path / "idx").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1.01 * row_bytes


@pytest.mark.parametrize("method", METHODS)
def test_half_whitened_rows_have_the_same_products(
    tmp_path: Path, block: np.ndarray, method: str
) -> None:
    store = make_store(tmp_path / "idx", 40)
    whitening, rows = Whitening(store, method), store.unnormalized[:].transpose(1, 0, 2, 3)
    whitened = whitening.whitened(block)
    halves = np.einsum("qctd,nctd->qn", whitening.half_queries(whitened), whitening.half_rows(rows))
    np.testing.assert_allclose(
        halves, np.einsum("qctd,nctd->qn", whitened, rows), rtol=1e-3, atol=1e-4
    )


def test_a_little_memory_takes_several_passes(
    tmp_path: Path, block: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "idx", 100)
    expected = Whitening(store, "tracin").whitened(block)
    for module in (whiten_module, factor_making):
        monkeypatch.setattr(module, "free_memory_on", lambda device: 1)
    (tmp_path / "idx/whiten/tracin.json").unlink()
    np.testing.assert_array_equal(Whitening(store, "tracin").whitened(block), expected)
    assert memory_module.free_memory() > 1


@pytest.mark.parametrize("method", METHODS)
def test_new_pictures_extend_the_factors(
    tmp_path: Path, block: np.ndarray, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only their rows are read, in the middle of a shard too."""
    store = make_store(tmp_path / "idx", 70)
    Whitening(store, method)
    grown = grow(store, [str(number) for number in range(70, 130)])
    fill(grown)
    read, pieces = [], factor_making.row_pieces
    monkeypatch.setattr(
        factor_making, "row_pieces", lambda *args: (read.append(args[2]), pieces(*args))[1]
    )
    grown = Store.finished(tmp_path / "idx")
    whitened = Whitening(grown, method).whitened(block)
    assert {*range(70, 130)} == {row for rows in read for row in range(rows.start, rows.stop)}
    expected = dense(grown, method, block)
    np.testing.assert_allclose(whitened, expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize("what", ["changed", "cut", "missing", "of the other method"])
def test_damaged_factors_are_made_again(tmp_path: Path, block: np.ndarray, what: str) -> None:
    store = make_store(tmp_path / "idx", 40)
    expected = Whitening(store, "tracin").whitened(block)
    Whitening(store, "retrac")
    file = tmp_path / "idx/whiten/tracin-1-2.f32"
    content = file.read_bytes()
    if what == "missing":
        file.unlink()
    else:
        other = (tmp_path / "idx/whiten/retrac-1-2.f32").read_bytes()
        file.write_bytes(
            {"changed": content[:7] + b"?" + content[8:], "cut": content[:-4]}.get(what, other)
        )
    np.testing.assert_array_equal(Whitening(store, "tracin").whitened(block), expected)
    assert file.read_bytes() == content


def test_too_little_damping_is_refused(tmp_path: Path, block: np.ndarray) -> None:
    store = make_store(tmp_path / "idx", 9)
    with pytest.raises(CallError, match=r"damping = -1\.0"):
        Whitening(store, "tracin").whitened(block, -1.0)


def test_recipe_matters(tmp_path: Path, block: np.ndarray) -> None:
    """Factors of another store that lie there are not believed."""
    store = make_store(tmp_path / "idx", 40)
    Whitening(store, "tracin")
    other = Store.create(
        tmp_path / "other", replace(RECIPE, seed=1), [str(number) for number in range(40)]
    )
    fill(other)
    (tmp_path / "idx/whiten").rename(tmp_path / "other/whiten")
    expected = dense(other, "tracin", block)
    found = Whitening(Store.finished(tmp_path / "other"), "tracin").whitened(block)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> gradindex.Index:
    data = make_pictures(tmp_path_factory.mktemp("data") / "pictures", 30)
    place = tmp_path_factory.mktemp("whiten") / "idx"
    return gradindex.build(
        place, model=model, data=data, timesteps=[100, 700], dim=16, device="cpu"
    )


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, index: gradindex.Index, model: Path
) -> gradindex.Index:
    """Two events of each picture."""
    place, names = tmp_path_factory.mktemp("whiten"), index.store.sample_ids
    events = [
        (name, step, (37 * number + 400 * step) % 1000)
        for step in (0, 1)
        for number, name in enumerate(names)
    ]
    lines = [f"{name},{step},{t}" for name, step, t in events]
    (place / "log.csv").write_text("\n".join(["sample_id,step,timestep", *lines]))
    return gradindex.build(
        place / "idx",
        model=model,
        data=index.store.header.data.source,
        timesteps="recorded",
        log=place / "log.csv",
        events=2,
        dim=64,
        device="cpu",
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damping", [True, 0.5])
def test_whitened_answers_of_recorded_rows_are_those_of_the_formula(
    recorded: gradindex.Index, queries: list[Path], method: str, damping: bool | float
) -> None:
    """The query's mean is whitened at each event."""
    rows = recorded.store.unnormalized[:].astype(np.float64)
    if method == "retrac":
        rows /= np.linalg.norm(rows, axis=3, keepdims=True)
    grid = {"query_timesteps": 3, "query_draws": 1}
    (block,) = recorded.query_blocks(recorded.to_query(queries, whiten=False, **grid), method)  # type: ignore[arg-type]
    whitened = dense(recorded.store, method, block, DAMPING if damping is True else damping)
    truth = np.einsum("cntd,qctd->qn", rows, whitened) / 2
    scores = recorded.scores(queries, method, whiten=damping, **grid)  # type: ignore[arg-type]
    np.testing.assert_allclose(scores, truth, rtol=1e-3, atol=1e-4 * np.abs(truth).max())


def test_a_damping_is_above_zero(index: gradindex.Index, queries: list[Path]) -> None:
    for odd in (0, -1.0, None, "yes", float("nan")):
        with pytest.raises(CallError, match="give True, False, or a damping above 0"):
            index.query(queries, whiten=odd)  # type: ignore[arg-type]
    assert (
        index.query(queries, whiten=DAMPING)
        == index.query(queries, whiten=np.bool_(True))
        == index.query(queries)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damping", [True, 0.5])
@pytest.mark.parametrize("pairing", ["matched", "mean"])
def test_whitened_answers_are_those_of_the_formula(
    index: gradindex.Index, queries: list[Path], method: str, damping: bool | float, pairing: str
) -> None:
    """From the search index at the default damping, from a scan at another or in a span."""
    rows = index.store.unnormalized[:].astype(np.float64)
    if method == "retrac":
        rows /= np.linalg.norm(rows, axis=3, keepdims=True)
    (block,) = index.query_blocks(index.to_query(queries, pairing=pairing, whiten=False), method)
    whitened = dense(index.store, method, block, DAMPING if damping is True else damping)
    truth = np.einsum("cntd,qctd->qn", rows, whitened) / 2
    scores = index.scores(queries, method, whiten=damping, pairing=pairing)
    np.testing.assert_allclose(scores, truth, rtol=1e-3, atol=1e-4 * np.abs(truth).max())
    results = index.query(queries, 5, method, whiten=damping, pairing=pairing, opponents=True)
    for row, result in zip(scores, results, strict=True):
        assert [hit.row for hit in result.hits] == np.argsort(-row)[:5].tolist()
        assert [hit.row for hit in result.opponents or ()] == np.argsort(row)[:5].tolist()
        np.testing.assert_allclose(result.scores, np.sort(row)[::-1][:5], rtol=1e-5)
    early = index.scores(queries, method, whiten=damping, pairing=pairing, timesteps=(None, 500))
    truth = np.einsum("cnd,qcd->qn", rows[:, :, 0], whitened[:, :, 0])
    np.testing.assert_allclose(early, truth, rtol=1e-3, atol=1e-4 * np.abs(truth).max())


def test_factors_are_read_once(
    index: gradindex.Index, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second query takes those in memory; where there is little, those on disk."""
    opened = gradindex.open(index.store.location.path)
    expected = opened.query(queries, 3, whiten=True)
    factor = next((Path(str(index.store.location)) / "whiten").glob("retrac-*.f32"))
    factor.unlink()
    assert opened.query(queries, 3, whiten=True) == expected
    assert not factor.exists()
    monkeypatch.setattr(whiten_module, "free_memory_on", lambda device: 1)
    opened = gradindex.open(index.store.location.path)
    for _ in range(2):
        assert [r.ids for r in opened.query(queries, 3, whiten=True)] == [r.ids for r in expected]
        assert not factor.exists()  # a reader writes nothing


def test_the_command_whitens(index: gradindex.Index, queries: list[Path]) -> None:
    place = index.store.location
    done = run("query", place, queries[0], "-k", 3, "--whiten", "--format", "json")
    answer, expected = json.loads(done.stdout), index.query(queries[:1], 3, whiten=True)[0]
    assert ([hit["id"] for hit in answer["queries"][0]["hits"]], answer["whitened"]) == (
        expected.ids,
        True,
    )
    assert (
        "(retrac, whitened ± standard error" in run("query", place, queries[0], "--whiten").stdout
    )
    done = run("query", place, queries[0], "--no-whiten", "--damping", 3)
    assert (done.returncode, "--no-whiten has no --damping" in done.stderr) == (2, True)
    assert "retrac-whitened" in run("info", place).stdout
    assert run("index", place, "--whiten", "--factory", "store").returncode == 0
    assert "tracin-whitened scans the store" in run("info", place).stdout
    assert run("verify", place).returncode == 0


def test_whitened_search_files_are_measured(tmp_path: Path) -> None:
    """Half-whitened rows in codes: the true ten are candidates as often as the index says."""
    store = make_store(tmp_path / "idx", 400)
    for method in METHODS:
        made = build_ann_index(store, method + WHITENED, "SQ8")
        assert made.record.recall_at_10 >= 0.99
        block = np.random.default_rng(1).standard_normal((20, 2, 3, 16)).astype(np.float32)
        whitened = Whitening(store, method).whitened(block)
        rows = store.unnormalized[:]
        rows /= np.maximum(store.norm[:][..., None], 1e-30) if method == "retrac" else 1
        scores = np.einsum("qctd,cntd->qn", whitened, rows)
        scores[:, 5] = -np.inf
        proposed = made.proposed(whitened, 10, (1,))
        assert proposed is not None
        for row, mine in zip(scores, proposed[1], strict=True):
            assert len({*np.argsort(-row)[:10]} & {*mine}) >= 9
