"""A build on Ray: the rows and errors of a plain one, whatever dies on the way."""

import gc
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model, make_pictures, required
from helpers import run

import gradindex
from gradindex.builder import workers as workers_module
from gradindex.errors import CallError, GradindexError, MissingPackage, RecipeMismatch
from gradindex.search import ann_builder as ann_builder_module
from gradindex.search import ann_making as ann_making_module
from gradindex.search.scoring import METHODS
from gradindex.store import store as store_module

ray, cluster_utils = required("ray"), required("ray.cluster_utils")
# At Ray's own 15 the tests beside these would starve the workers
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

Build = Callable[..., gradindex.Index]
QUICK_TO_NOTICE = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a CPU, and one node with one."""
    made = cluster_utils.Cluster(
        True, head_node_args={"num_cpus": 0, "_system_config": QUICK_TO_NOTICE}
    )
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def build(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """`gradindex.build` of ten shards, into tmp_path/idx."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    data = make_pictures(tmp_path / "pictures", 40)
    options = {
        "model": model,
        "data": data,
        "timesteps": [100, 400, 700],
        "draws": 4,
        "dim": 64,
        "batch_size": 16,
    }

    def call(**more: Any) -> gradindex.Index:
        return gradindex.build(
            more.pop("index", tmp_path / "idx"), **{**options, "device": "cpu", **more}
        )

    return call


def assert_equal(one: gradindex.Index, two: gradindex.Index) -> None:
    for name in store_module.ROW_ARRAYS:
        np.testing.assert_array_equal(getattr(one.store, name)[:], getattr(two.store, name)[:])


def nodes(cluster: Any) -> dict[int, Any]:
    """The worker nodes by the process that is the parent of their workers."""
    return {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}


def makers(cluster: Any) -> Iterator[tuple[int, Any]]:
    """The processes that are making a shard just now, with their nodes.

    Ray names a process after its task.
    """
    parents = nodes(cluster)
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents and (place / "cmdline").read_bytes().startswith(
                b"ray::BuildWorker.make"
            ):
                yield int(place.name), parents[parent]
        except OSError:  # it ended
            continue


@contextmanager
def meanwhile(work: Callable[[], bool]) -> Iterator[None]:
    """Call `work` in a thread until it says that it is done, or the block ends."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set() and not work():
            time.sleep(0.005)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The actors that the driver dropped: lost ones, and in the end all others."""
    found, drop = [], ray.kill
    monkeypatch.setattr(ray, "kill", lambda actor: (found.append(actor), drop(actor)))
    return found


def shards_made(index: Path) -> int:
    return len(list((index / "manifest").glob("c*.json")))


@pytest.mark.slow
def test_a_local_cluster_makes_the_same_index(build: Build, tmp_path: Path, model: Path) -> None:
    """Bitwise, over two checkpoints, and nothing of the cluster is left."""
    checkpoints = [model, make_model(tmp_path / "second", seed=1)]
    index = build(checkpoints=checkpoints, ray="local")
    assert not ray.is_initialized()
    assert_equal(index, build(index=tmp_path / "whole", checkpoints=checkpoints))


@pytest.mark.slow
def test_workers_make_exact_rows_of_a_part(build: Build, tmp_path: Path) -> None:
    """Bitwise those of a plain build."""
    index = build(params="last", dim=128, ray="local")
    assert (index.store.recipe.part, index.store.recipe.projection) == ("last", "none")
    assert_equal(index, build(index=tmp_path / "whole", params="last", dim=128))


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_shard(
    build: Build, tmp_path: Path, cluster: Any, dropped: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And paths may be relative to where the driver runs."""

    def kill() -> bool:
        for process, _ in makers(cluster) if shards_made(tmp_path / "idx") >= 2 else ():
            os.kill(process, signal.SIGKILL)
            return True
        return False

    monkeypatch.chdir(tmp_path)
    with meanwhile(kill):
        index = build(index="idx", data="pictures", ray=cluster.address)
    assert len(dropped) == 1 + 1
    assert_equal(index, build(index="whole"))


@pytest.mark.slow
def test_a_killed_node_costs_only_what_it_was_making(
    build: Build, tmp_path: Path, cluster: Any, dropped: list[Any]
) -> None:
    """One of two, in the middle of a shard: the other node makes the rest.

    Nobody waits for a third.
    """
    second = cluster.add_node(num_cpus=1)

    def kill() -> bool:
        if shards_made(tmp_path / "idx") < 2:
            return False
        for process in [process for process, node in makers(cluster) if node == second]:
            os.kill(
                process, signal.SIGSTOP
            )  # so that it cannot end its shard before the node is gone
            if process in dict(makers(cluster)):
                cluster.remove_node(second, allow_graceful=False)
                return True
            os.kill(process, signal.SIGCONT)
        return False

    with meanwhile(kill):
        index = build(ray=cluster.address)
    assert second not in cluster.worker_nodes
    assert len(dropped) == 1 + 2  # in the end one that worked, and one that found no place
    assert_equal(index, build(index=tmp_path / "whole"))


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_ends_the_build(
    build: Build, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "MOST_LOSSES", 2)

    def kill() -> bool:
        for process, _ in makers(cluster):
            os.kill(process, signal.SIGKILL)
        return False

    message = (
        r"^shard c000-s000000: lost 2 times"
        r" \(The actor died unexpectedly before finishing this task.\)"
    )
    with meanwhile(kill), pytest.raises(GradindexError, match=message):
        build(ray=cluster.address)


@pytest.mark.slow
def test_a_workers_error_is_the_plain_one(
    build: Build, tmp_path: Path, model: Path, cluster: Any
) -> None:
    """One line and the same status; once the picture is repaired, its shard is made again."""
    data = tmp_path / "pictures"
    good = (data / "p005.png").read_bytes()
    (data / "p005.png").write_bytes(good[:60] + bytes(len(good) - 60))
    options = {
        "model": model,
        "data": data,
        "projection": "sketch",
        "dim": 64,
        "device": "cpu",
        "timesteps": 2,
        "batch-size": 8,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = ("build", tmp_path / "idx", *words)
    distant = run(*command, "--ray", cluster.address)
    assert distant == run(*command)
    # After what `build` says of the pictures
    assert (distant.returncode, distant.stdout, distant.stderr.count("Error: ")) == (1, "", 1)
    assert distant.stderr.splitlines()[-1].startswith("Error: ")
    assert "'p005.png' is not a readable picture" in distant.stderr
    assert "(1 skipped)" in run(*command, "--ray", cluster.address, "--skip-bad").stderr
    (data / "p005.png").write_bytes(good)
    assert run(*command, "--ray", cluster.address).returncode == 0
    assert run(*command[:1], tmp_path / "whole", *command[2:]).returncode == 0
    assert_equal(gradindex.open(tmp_path / "idx"), gradindex.open(tmp_path / "whole"))


def test_every_error_survives_the_way() -> None:
    error = pickle.loads(
        pickle.dumps(RecipeMismatch("idx: another", iter(["seed: 0, now 1", "dim: 2, now 3"])))
    )
    assert str(error) == "idx: another: seed: 0, now 1; dim: 2, now 3"
    assert error.differences == ["seed: 0, now 1", "dim: 2, now 3"]


@pytest.mark.slow
def test_a_full_cluster(build: Build, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, and not for ever; a connection that the caller made stays."""
    monkeypatch.setattr(workers_module, "PLACING_SECONDS", 1)
    ray.init(cluster.address, log_to_driver=False)
    holder = ray.remote(workers_module.BuildWorker).options(num_cpus=1).remote(None, "cpu", "")
    ray.get(holder.__ray_ready__.remote())
    with pytest.raises(GradindexError, match="no CPU was free for a worker within 1 s"):
        build(ray=cluster.address)
    with pytest.raises(CallError, match="device = 'cuda': the Ray cluster has no GPU"):
        build(ray=cluster.address, device="cuda")
    assert ray.is_initialized()
    ray.shutdown()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"ray": "local", "part": (0, 2)},
            CallError,
            r"ray = 'local' and part = \(0, 2\): give one of them",
        ),
        ({"ray": "127.0.0.1:1"}, GradindexError, r"ray = '127.0.0.1:1': .*Connection refused"),
        ({"ray": "nowhere"}, GradindexError, "ray = 'nowhere': Invalid address format: nowhere"),
    ],
)
def test_wrong_calls(
    build: Build, options: dict[str, Any], kind: type[GradindexError], message: str
) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        build(**options)


def test_without_the_package(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackage, match=r"^ray is not installed: pip install 'gradindex\[ray\]'$"
    ):
        build(ray="local")


def finders() -> list[int]:
    """The processes that search, when they have something open."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::SearchWorker"):
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_killed_finders_are_replaced(
    build: Build, cluster: Any, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two, then both: the answers are those of a search without Ray."""
    cluster.add_node(num_cpus=1)
    monkeypatch.setattr(ann_making_module, "FILE_BYTES", 1)
    place = build(dim=8).store.location  # more pictures than numbers in a row: files
    plain = gradindex.open(place, device="cpu")
    expected = {method: plain.query(queries, 7, method) for method in METHODS}
    assert len(ann_builder_module.open_ann_index(plain.store, "tracin").record.files) == 10
    index = gradindex.open(place, device="cpu", ray=cluster.address)
    assert index.query(queries, 7, "tracin") == expected["tracin"]
    assert len(finders()) == 2
    for count in (1, 2):
        for process in finders()[:count]:
            os.kill(process, signal.SIGKILL)
        assert index.query(queries, 7, "tracin") == expected["tracin"]
    assert len(finders()) == 2
    del index
    gc.collect()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_finder_that_hangs_is_not_waited_for(
    build: Build, cluster: Any, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped, not dead, which Ray takes minutes to notice; the other one answers."""
    cluster.add_node(num_cpus=1)
    monkeypatch.setattr(ann_making_module, "FILE_BYTES", 1)
    place = build(dim=8).store.location  # more pictures than numbers in a row: files
    expected = gradindex.open(place, device="cpu").query(queries, 7, "tracin")
    of_other_tests = set(finders())
    index = gradindex.open(place, device="cpu", ray=cluster.address)
    assert index.query(queries, 7, "tracin") == expected
    stopped, *_ = sorted(set(finders()) - of_other_tests)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert index.query(queries, 7, "tracin") == expected
    finally:
        os.kill(stopped, signal.SIGCONT)


@pytest.mark.slow
def test_a_damaged_index_file_is_scanned_around_with_ray_too(
    build: Build, queries: list[Path]
) -> None:
    place = build(dim=8).store.location  # more pictures than numbers in a row: files
    expected = gradindex.open(place, device="cpu").query(queries, 7, whiten=False)
    place.publish("faiss/retrac.faiss", b"damaged")
    with pytest.warns(UserWarning, match="the store is scanned"):
        answers = gradindex.open(place, device="cpu", ray="local").query(queries, 7, whiten=False)
    assert [result.ids for result in answers] == [result.ids for result in expected]
