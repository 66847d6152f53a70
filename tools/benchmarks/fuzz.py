"""Hostile inputs of every kind, many of them: `tools/bench chaos`.

The inputs, and what is a true answer to each, are those of tests/fuzz. Each kind has a process of
its own, so that one that crashes or hangs is counted.
"""

import faulthandler
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "tests"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "fuzz"))

import index_inputs
import log_inputs
import model_inputs
import picture_inputs
from judging import SECONDS, Case, TooLong

INPUTS = 20_000  # of all kinds together
SETUP_SECONDS = 300.0  # that a kind may take to make what is then changed
GRACE_SECONDS = 10.0  # after which a process that does not stop by itself is killed
KINDS: dict[str, Callable[[Path], Case]] = {
    **index_inputs.KINDS,
    **log_inputs.KINDS,
    **model_inputs.KINDS,
    **picture_inputs.KINDS,
}
LATE = f"no answer for {SECONDS:g} seconds"
READY, TRUE_ANSWER, REFUSAL = "ready", "true answers", "refusals"
Row = dict[str, Any]


def fuzz(folder: Path, count: int) -> list[Row]:
    """Have so many hostile inputs read, as many of each kind.

    Args:
        folder: for what is made meanwhile; what was there is gone.

    Returns:
        A row for each kind, which counts, and says what was wrong, with the seed of the input.
    """
    rows = []
    for number, name in enumerate(KINDS):
        share = range(count * number // len(KINDS), count * (number + 1) // len(KINDS))
        rows.append(_fuzz_kind(name, folder / str(number), len(share)))
    return rows


def _fuzz_kind(name: str, folder: Path, count: int) -> Row:
    """The row of a kind, of inputs that are drawn from the seeds 0 … count − 1.

    An input without an answer in time is tried once more: the machine may have stood still.
    """
    counts = Counter({TRUE_ANSWER: 0, REFUSAL: 0})
    wrong = []
    seed, late = 0, -1
    while seed < count:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for result in _results(name, folder, range(seed, count)):
            if result == LATE and late != seed:
                late = seed
                break
            if result in counts:
                counts[result] += 1
            else:
                wrong.append(f"seed {seed}: {result}")
            seed += 1
    shutil.rmtree(folder, ignore_errors=True)
    return {"input": name, "inputs": count, **counts, "failures": len(wrong), "what": wrong}


def _results(name: str, folder: Path, seeds: range) -> Iterator[str]:
    """What comes of each input of a kind, up to one that ends the process or does not end."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_judge_all, args=(name, folder, seeds, sender))
    process.start()
    sender.close()
    try:
        if not _next_result(receiver, SETUP_SECONDS) == READY:
            raise RuntimeError(f"{name}: what is to be changed could not be made")
        for _ in seeds:
            result = _next_result(receiver, SECONDS + GRACE_SECONDS)
            if result is None:
                process.kill()
                process.join()
                yield _how_it_ended(process.exitcode or 0)
                return
            yield result
    finally:
        process.kill()
        process.join()
        receiver.close()


def _next_result(receiver: Connection, seconds: float) -> str | None:
    """What a process says next; None if it ends, or says nothing for so long."""
    try:
        return str(receiver.recv()) if receiver.poll(seconds) else None
    except EOFError:
        return None


def _how_it_ended(code: int) -> str:
    """What an input did to its process, by the exit code."""
    if code == -signal.SIGKILL:
        return LATE
    return f"ended the process with status {code}"


def _judge_all(name: str, folder: Path, seeds: range, sender: Connection) -> None:
    """Judge the inputs of a kind, and send what comes of each."""
    # What libraries write of damaged files is not for the terminal, nor are crashes that count.
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    case = KINDS[name](folder)
    sender.send(READY)
    for seed in seeds:
        sender.send(_judge(case, seed))


def _judge(case: Case, seed: int) -> str:
    """What comes of an input: a true answer, a refusal, or what is wrong."""
    try:
        return TRUE_ANSWER if case(Random(seed)) else REFUSAL
    except TooLong:
        return LATE
    except Exception as error:
        text = str(error).splitlines()
        return f"{type(error).__name__}: {text[0][:200] if text else ''}"
