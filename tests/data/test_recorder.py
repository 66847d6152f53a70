"""The training log: what is written comes back, whatever happens to the process or the file."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradindex
from gradindex import TrainingRecorder, random_numbers
from gradindex.data.log_file import records
from gradindex.data.training_log import open_log, training_weights
from gradindex.errors import CallError, DataError

SHAPE = (1, 4, 4)


def part(folder: Path, rank: int = 0) -> Path:
    return folder / f"rank-{rank:05d}.log"


def events(folder: Path) -> list[tuple[str, int, float]]:
    log = open_log(folder)
    return [
        (log.sample_ids[row["sample"]], int(row["step"]), float(row["timestep"]))
        for row in log.events
    ]


def test_what_is_drawn_can_be_made_again(tmp_path: Path) -> None:
    """From (seed, id, step): the same on any rank, in any batch; the noise is `gradindex.noise`."""
    with TrainingRecorder(tmp_path / "a", seed=7) as recorder:
        t, epsilon = recorder.draw(["x", "y"], (2, *SHAPE), 5)
    with TrainingRecorder(tmp_path / "b", seed=7, rank=3) as recorder:
        recorder.draw(["z"], SHAPE, 4)
        t_again, epsilon_again = recorder.draw(["y"], SHAPE, 5)
    assert (t.dtype, epsilon.dtype, epsilon.shape) == (torch.int64, torch.float32, (2, *SHAPE))
    assert t_again[0] == t[1]
    assert torch.equal(epsilon_again[0], epsilon[1])
    for row, name in enumerate("xy"):
        assert np.array_equal(epsilon[row].numpy(), gradindex.noise(7, name, int(t[row]), 5, SHAPE))
    assert events(tmp_path / "a") == [("x", 5, float(t[0])), ("y", 5, float(t[1]))]


def test_timesteps_are_uniform_and_noise_is_normal(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "log", num_train_timesteps=10) as recorder:
        drawn = [recorder.draw(range(100), SHAPE, step) for step in range(20)]
    counts = torch.cat([t for t, _ in drawn]).bincount()
    assert len(counts) == 10
    assert ((counts - 200).abs() < 5 * 200**0.5).all()
    noise = torch.cat([epsilon for _, epsilon in drawn])
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / noise.numel()) ** 0.5


@given(
    st.lists(
        st.lists(st.tuples(st.text(max_size=3), st.integers(0, 999)), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_any_log_comes_back(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    with TrainingRecorder(folder) as recorder:
        for step, batch in enumerate(batches):
            recorder.log([name for name, _ in batch], [t for _, t in batch], step, noise_seed=step)
    assert events(folder) == [
        (name, step, t) for step, batch in enumerate(batches) for name, t in batch
    ]
    log = open_log(folder)
    assert (log.events["noise_seed"] == log.events["step"]).all()
    assert (log.events["draw"] == log.events["step"]).all()


def test_it_costs_eight_bytes_an_event_and_a_little_a_step(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(range(64), [0] * 64, 0)
        before = part(tmp_path / "log").stat().st_size
        recorder.log(range(64), [0] * 64, 1)
    assert part(tmp_path / "log").stat().st_size - before == 64 * 8 + 44


def test_ranks_write_parts_of_their_own_and_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with (
        TrainingRecorder(tmp_path / "log", rank=0) as first,
        TrainingRecorder(tmp_path / "log") as second,
    ):
        for step in range(3):
            second.log(["b"], [step], step)
            first.log(["a"], [step + 100], step)
    assert part(tmp_path / "log", 1).exists()
    assert sorted(events(tmp_path / "log"), key=lambda event: event[1]) == events(tmp_path / "log")
    assert len(events(tmp_path / "log")) == 6


def test_a_torn_last_record_is_left_out_and_cut_off(tmp_path: Path) -> None:
    """At any byte: what was whole is read, a warning says what was lost, and the log goes on."""
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [1], 0)
        whole = part(tmp_path / "log").read_bytes()
        recorder.log(["a"], [2], 1)
    longer = part(tmp_path / "log").read_bytes()
    for end in range(len(whole) + 1, len(longer)):
        part(tmp_path / "log").write_bytes(longer[:end])
        with pytest.warns(
            UserWarning, match=f"torn by a crash and is left out \\({end - len(whole)} bytes\\)"
        ):
            assert events(tmp_path / "log") == [("a", 0, 1)]
    with pytest.warns(UserWarning, match="torn"), TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [3], 1)
    assert events(tmp_path / "log") == [("a", 0, 1), ("a", 1, 3)]


def test_any_flipped_byte_is_seen(tmp_path: Path) -> None:
    """Before the last record an error names the file; in the last it may pass for a crash."""
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [1], 0)
        recorder.log(["a"], [2], 1)
    file = part(tmp_path / "log")
    whole = file.read_bytes()
    starts = [0, *(end for _, _, end in records(file))]
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 64
        file.write_bytes(damaged)
        if position < starts[-2]:
            with pytest.raises(DataError, match=r"rank-00000.log: damaged at byte"):
                events(tmp_path / "log")
        else:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                with contextlib.suppress(DataError):
                    assert events(tmp_path / "log") == [("a", 0, 1)]


def test_a_killed_run_keeps_every_step_that_it_logged(tmp_path: Path) -> None:
    code = (
        "import sys; from gradindex import TrainingRecorder\n"
        "recorder = TrainingRecorder(sys.argv[1])\n"
        "for step in range(10**9):\n"
        "    recorder.log(range(64), [step % 1000] * 64, step)\n"
        "    if step == 50: print('now', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        log = open_log(tmp_path / "log")
    steps = log.events["step"].reshape(-1, 64)
    assert len(steps) > 50
    assert (steps == np.arange(len(steps))[:, None]).all()


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every rank, also one that the resumed run no longer has; later checkpoints go with it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        with TrainingRecorder(tmp_path / "log", rank=rank) as recorder:
            for step in range(6):
                recorder.log([f"r{rank}"], [step], step)
                if step in (1, 3) and rank == 0:
                    recorder.checkpoint(step + 1, tmp_path / f"checkpoint-{step + 1}", 0.1)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK", raising=False)
    # One process, as `python train.py` starts it.
    with TrainingRecorder(tmp_path / "log") as recorder:
        with pytest.warns(UserWarning, match="steps 2 to 5 were logged before and are drawn again"):
            recorder.log(["r0"], [900], 2)
        recorder.log(["r0"], [901], 3)
        recorder.checkpoint(4, tmp_path / "other-4", 0.2)
    assert events(tmp_path / "log") == [
        ("r0", 0, 0),
        ("r1", 0, 0),
        ("r0", 1, 1),
        ("r1", 1, 1),
        ("r0", 2, 900),
        ("r0", 3, 901),
    ]
    log = open_log(tmp_path / "log")
    assert [(each.step, Path(each.path).name, each.lr) for each in log.checkpoints] == [
        (2, "checkpoint-2", 0.1),
        (4, "other-4", 0.2),
    ]
    assert training_weights(log.checkpoints) == pytest.approx([0.1 * 0.5, 0.2 * 0.5])


def test_a_run_folder_that_was_moved_still_knows_its_checkpoints(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "run/log") as recorder:
        recorder.log(["a"], [1], 0)
        recorder.checkpoint(1, tmp_path / "run/checkpoint-1", 1e-4)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert open_log(tmp_path / "moved/log").checkpoints[0].path == str(
        tmp_path / "moved/checkpoint-1"
    )


def test_a_clock_that_was_set_back_does_not_matter_within_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment, steps in ((1000.0, range(4)), (900.0, range(2, 4))):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        with warnings.catch_warnings(), TrainingRecorder(tmp_path / "log") as recorder:
            warnings.simplefilter("ignore")
            for step in steps:
                recorder.log(["a"], [moment - 900 + step], step)
    assert events(tmp_path / "log") == [("a", 0, 100), ("a", 1, 101), ("a", 2, 2), ("a", 3, 3)]


def test_ids_and_steps_may_be_numbers_tensors_and_paths(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(torch.tensor([3, 4]), torch.tensor([1, 2]), torch.tensor(0))  # type: ignore[arg-type]
        recorder.log([torch.tensor(3), np.int64(4)], np.array([1.0, 2.0]), np.int64(1))
        recorder.log([Path("a/b.png")], [5], 2)
        recorder.log([], [], 3)
        recorder.checkpoint(np.int64(4), tmp_path / "c", np.float64(0.1))
    assert events(tmp_path / "log") == [
        ("3", 0, 1),
        ("4", 0, 2),
        ("3", 1, 1),
        ("4", 1, 2),
        ("a/b.png", 2, 5),
    ]


def test_an_empty_file_and_a_tail_of_zeros_are_what_a_crash_leaves(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [1], 0)
    part(tmp_path / "log", 1).touch()
    part(tmp_path / "log").write_bytes(part(tmp_path / "log").read_bytes() + bytes(50))
    with pytest.warns(UserWarning, match=r"torn by a crash and is left out \(50 bytes\)"):
        assert events(tmp_path / "log") == [("a", 0, 1)]
    part(tmp_path / "none").parent.mkdir()
    part(tmp_path / "none").touch()
    with pytest.raises(CallError, match="holds no event"):
        open_log(tmp_path / "none")


def test_a_damaged_log_stays_unlocked(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [1], 0)
    whole = part(tmp_path / "log").read_bytes()
    part(tmp_path / "log").write_bytes(b"x" + whole[1:])
    for _ in range(2):
        with pytest.raises(DataError, match="damaged at byte 0"):
            TrainingRecorder(tmp_path / "log")


def test_misuse_is_one_clear_line(tmp_path: Path) -> None:
    recorder = TrainingRecorder(tmp_path / "log")
    recorder.log(["a"], [1], 3)
    for call, message in [
        (lambda: recorder.log(["a"], [1], 2), "step 2 after step 3: steps go forwards"),
        (lambda: recorder.draw(["a"], SHAPE, -1), "step -1"),
        (
            lambda: recorder.log(["a"], [1000], 4),
            "timestep 1000: the recorder was made for 0 to 999",
        ),
        (lambda: recorder.log(["a"], [float("nan")], 4), "timestep nan"),
        (lambda: recorder.log(["a", "b"], [1], 4), "give one for each of 2 ids"),
        (lambda: recorder.log("ab", [1, 2], 4), "give a sequence of ids, not text"),
        (lambda: recorder.draw(["a"], (2, *SHAPE), 4), "give 1, channels, height, width"),
        (lambda: recorder.checkpoint(3, "c", 0.1), "step 3 was drawn already"),
        (lambda: recorder.checkpoint(4, "c", [0.1]), "lr = .*: give one number"),  # type: ignore[arg-type]
        (lambda: recorder.draw(["a"], SHAPE, 4.5), "step = 4.5: give a whole number"),  # type: ignore[arg-type]
        (lambda: recorder.draw([], SHAPE, 4), "give at least one"),
        (lambda: recorder.draw([b"a"], SHAPE, 4), "b'a' is not an id"),
        (lambda: recorder.log(["a"], [1], 4, noise_seed=-2), "seed -2"),
    ]:
        with pytest.raises(CallError, match=message):
            call()
    recorder.close()
    with pytest.raises(CallError, match="this recorder is closed"):
        recorder.log(["a"], [1], 4)
    with pytest.raises(CallError, match="seed: 0, now 1"):
        TrainingRecorder(tmp_path / "log", seed=1)
    with TrainingRecorder(tmp_path / "log"):  # the failed attempt let go of the file
        pass
    assert events(tmp_path / "log") == [("a", 3, 1)]


def test_a_log_of_another_noise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its noise cannot be made again, so neither may it be replayed nor go on."""
    monkeypatch.setattr("gradindex.data.recorder.NOISE_VERSION", 1)
    with gradindex.TrainingRecorder(tmp_path) as recorder:
        recorder.draw(["a"], SHAPE, 0)
    monkeypatch.undo()
    with pytest.raises(
        DataError, match=r"rank-00000\.log: recorded with noise of version 1, and this .* makes 2"
    ):
        open_log(tmp_path)
    with pytest.raises(CallError, match="noise_version: 1, now 2"):
        gradindex.TrainingRecorder(tmp_path)


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = TrainingRecorder(tmp_path / "log")
    recorder.log(["a"], [1], 0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(
        gradindex.GradindexError, match="the disk is full; the log so far stays readable"
    ):
        recorder.log(["a"], [2], 1)
    monkeypatch.undo()
    recorder.log(["a"], [2], 1)
    recorder.close()
    assert events(tmp_path / "log") == [("a", 0, 1), ("a", 1, 2)]


ACCELERATED = """
import sys
from accelerate import Accelerator
from torch.utils.data import DataLoader
from gradindex import TrainingRecorder

accelerator = Accelerator(cpu=True)
names = [f"p{number:03d}.png" for number in range(16)]
loader = accelerator.prepare(DataLoader(names, batch_size=4))
with TrainingRecorder(sys.argv[1], seed=3) as recorder:
    for step, ids in enumerate(loader):
        t, noise = recorder.draw(ids, (1, 4, 4), step, accelerator.device)
        assert noise.device.type == accelerator.device.type
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        recorder.checkpoint(step + 1, sys.argv[1] + "/../checkpoint-2", 0.1)
"""


@pytest.mark.slow
def test_two_processes_of_accelerate_log_every_picture_once(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ACCELERATED)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*launch, str(tmp_path / "train.py"), str(tmp_path / "run/log")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    log = open_log(tmp_path / "run/log")
    assert sorted(file.name for file in (tmp_path / "run/log").iterdir()) == [
        "rank-00000.log",
        "rank-00001.log",
    ]
    assert sorted(log.sample_ids) == [f"p{number:03d}.png" for number in range(16)]
    assert sorted(log.events["step"]) == [0] * 8 + [1] * 8
    # One process, another order: the same draws.
    names = [log.sample_ids[row["sample"]] for row in log.events if row["step"] == 1]
    with TrainingRecorder(tmp_path / "again", seed=3) as recorder:
        t, _ = recorder.draw(names, SHAPE, 1)
    assert t.tolist() == log.events["timestep"][log.events["step"] == 1].tolist()
    assert [each.step for each in log.checkpoints] == [2]


# --- notebooks, other systems ---------------------------------------------------------------------


def test_a_recorder_made_again_in_a_notebook_goes_on(tmp_path: Path) -> None:
    """A cell that runs twice makes the second before the first is dropped, or closed."""
    first = TrainingRecorder(tmp_path / "log", seed=3)
    first.log(["a"], [1], 0)
    with pytest.warns(UserWarning, match=r"rank-00000\.log: a recorder .* made before is closed"):
        second = TrainingRecorder(tmp_path / "log", seed=3)
    second.log(["a"], [2], 1)
    with pytest.raises(CallError, match="this recorder is closed"):
        first.log(["a"], [3], 2)
    first.close()  # once more; the second keeps its lock
    second.log(["a"], [3], 2)
    second.close()
    assert events(tmp_path / "log") == [("a", 0, 1), ("a", 1, 2), ("a", 2, 3)]


def test_a_recorder_that_was_dropped_does_not_keep_its_file(tmp_path: Path) -> None:
    """As where a training loop ended in an error, without `close`."""
    TrainingRecorder(tmp_path / "log").log(["a"], [1], 0)
    with pytest.warns(UserWarning, match="made before is closed"):
        TrainingRecorder(tmp_path / "log").close()
    TrainingRecorder(tmp_path / "log").close()
    assert events(tmp_path / "log") == [("a", 0, 1)]


def test_a_recorder_of_other_settings_does_not_close_the_one_before(tmp_path: Path) -> None:
    with TrainingRecorder(tmp_path / "log") as recorder:
        with pytest.raises(CallError, match=r"seed: 0, now 1.*; give this run another folder"):
            TrainingRecorder(tmp_path / "log", seed=1)
        recorder.log(["a"], [1], 0)
        # Nobody can go on with a log that is gone.
        part(tmp_path / "log").unlink()
        with pytest.warns(UserWarning, match="made before is closed"):
            TrainingRecorder(tmp_path / "log", seed=1).close()


def test_another_process_is_never_closed(tmp_path: Path) -> None:
    """Neither one of its own, nor a forked one, which has all that its parent had."""
    code = (
        "import sys; from gradindex import TrainingRecorder\n"
        "try: TrainingRecorder(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
    )
    with TrainingRecorder(tmp_path / "log") as recorder:
        command = [sys.executable, "-c", code, str(tmp_path / "log")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "another recorder writes there, in another process; end that" in done.stdout
        child = os.fork()
        if child == 0:
            try:
                TrainingRecorder(tmp_path / "log")
            except CallError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        recorder.log(["a"], [1], 0)
    assert events(tmp_path / "log") == [("a", 0, 1)]


# What Windows lacks, and what it locks files with.
ON_WINDOWS = """
import sys, types, warnings
import torch  # on Linux it needs what Windows has not
sys.modules["fcntl"] = sys.modules["resource"] = None
locks = []
if "msvcrt" in sys.argv:
    windows = sys.modules["msvcrt"] = types.ModuleType("msvcrt")
    windows.LK_NBLCK = 2
    def locking(descriptor, mode, length):
        if locks: raise PermissionError(13, "Permission denied")
        locks.append((mode, length))
    windows.locking = locking
import gradindex
from gradindex import TrainingRecorder
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with TrainingRecorder(sys.argv[1]) as recorder:
        recorder.draw(["a"], (1, 4, 4), 0)
        recorder.checkpoint(1, sys.argv[1] + "/c", 0.1)
print(locks, [str(warning.message) for warning in caught if "locked" in str(warning.message)])
try: TrainingRecorder(sys.argv[1])
except ValueError as error: print(error)
"""


@pytest.mark.parametrize("module", ["msvcrt", "none"])
def test_the_recorder_works_where_there_is_no_fcntl(tmp_path: Path, module: str) -> None:
    """On Windows, with its own locks; and where files have none, with a line that says so."""
    command = [sys.executable, "-c", ON_WINDOWS, str(tmp_path / "log"), module]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    if module == "msvcrt":
        assert done.stdout.splitlines()[0] == "[(2, 1)] []"
        assert "another recorder writes there" in done.stdout.splitlines()[1]
    else:
        assert done.stdout.count("files cannot be locked there; see to it that one process") == 1
    assert [(name, step) for name, step, _ in events(tmp_path / "log")] == [("a", 0)]


def test_a_file_system_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.warns(UserWarning, match="files cannot be locked there"),
        TrainingRecorder(tmp_path / "log") as recorder,
    ):
        recorder.log(["a"], [1], 0)
    assert events(tmp_path / "log") == [("a", 0, 1)]


def test_a_numpy_of_other_noise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a training run has logged noise that nobody can make again."""
    monkeypatch.setattr("gradindex.random_numbers.GOLDEN_DIGEST", "0" * 64)
    random_numbers._require_golden_noise.cache_clear()
    with (
        TrainingRecorder(tmp_path / "log") as recorder,
        pytest.raises(gradindex.GradindexError, match="draws other normal numbers"),
    ):
        recorder.draw(["a"], SHAPE, 0)
    monkeypatch.undo()
    assert part(tmp_path / "log").stat().st_size < 200  # the session alone


def test_a_checkpoint_on_another_drive_keeps_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no relative path from one drive to another."""

    def refuse(path: Path, start: Path) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [1], 0)
        with monkeypatch.context() as context:
            context.setattr("os.path.relpath", refuse)
            recorder.checkpoint(1, tmp_path / "checkpoint-1", 0.1)
    assert open_log(tmp_path / "log").checkpoints[0].path == str(tmp_path / "checkpoint-1")
