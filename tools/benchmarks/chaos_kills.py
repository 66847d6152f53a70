"""Commands that are killed or terminated at random instants."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from command_processes import STOP_SECONDS, measure_duration, stop_at_random, tells_reason
from digit_indexes import SEED, Setting
from index_files import committed_shards, count_drafts, finish_and_compare

SIGNALS = {"SIGKILL": -9, "SIGTERM": -15}  # {name: exit status of a process that it ends}
COUNTS = (
    "kills",
    "in the middle of a file",
    "shards found committed",
    "indexes compared",
)


def kill(setting: Setting, name: str, signal_name: str, count: int) -> list[dict[str, Any]]:
    """Stop a command so often by a signal, each time at a random instant.

    Every other index is hit again before it is whole.

    Args:
        name: of a command. signal_name: a key of SIGNALS.

    Returns:
        One row that counts, and says what was wrong.
    """
    random = np.random.default_rng([SEED, -SIGNALS[signal_name]])
    command = setting.commands[name]
    folder, stderr = setting.folder / "place", setting.folder / "stderr"
    stopped = setting.folder / "stopped"
    counts = Counter[str](dict.fromkeys(COUNTS, 0))
    wrong: list[str] = []
    seconds = measure_duration(command, folder, stderr)
    while counts["kills"] < count:
        command.lay_out(folder)
        while counts["kills"] < count:
            drafts = count_drafts(folder)
            status = stop_at_random(command, folder, seconds, random, stopped, signal_name)
            if status == 0:  # done before
                break
            counts["kills"] += 1
            counts["in the middle of a file"] += count_drafts(folder) > drafts
            counts["shards found committed"] += len(committed_shards(folder))
            wrong += check_end(status, signal_name, stopped)
            wrong += setting.check_stopped(folder, command)
            if random.random() < 0.5:
                break
        counts["indexes compared"] += 1
        wrong += finish_and_compare(command, folder, stderr)
    row = {"command": name, "signal": signal_name, **counts}
    return [{**row, "failures": len(wrong), "what": wrong}]


def check_end(status: int | None, signal_name: str, stderr: Path) -> list[str]:
    """Return what is wrong unless a signal ended a command, or let it end itself in one line.

    Args:
        status: its exit status; None where it went on.
    """
    if status is None:
        return [f"goes on {STOP_SECONDS} s after {signal_name}"]
    message = stderr.read_text().splitlines()
    silent = status == SIGNALS[signal_name] and "Traceback" not in " ".join(message)
    in_one_line = signal_name == "SIGTERM" and tells_reason(status, message)
    return [] if silent or in_one_line else [f"status {status}: {message}"]
