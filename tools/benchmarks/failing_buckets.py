"""Commands on an index in a bucket whose requests fail."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from command_processes import Command, Prepare, exit_status, tells_reason
from digit_indexes import SEED, Setting
from faulty_bucket import FAULTS, FaultyBucket, Trouble, use_bucket
from index_files import differences_from_undisturbed

from gradindex.builder.verify import damages

AT_TIMES, OUTAGE = "at times", "from an instant on"
EXTENTS = {AT_TIMES: 0.02, OUTAGE: 1.0}  # {when requests fail: the share of them}
COUNTS = ("commands", "done all the same", "failed")
INDEX = "index"  # its folder in the bucket
REASON = "what was committed stays, run it again"

Random = np.random.Generator


def fail_in_bucket(
    setting: Setting, faults: Sequence[str], names: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Run each of some commands so often on an index in a bucket, for each way requests fail.

    A command goes on, or fails with one line that says why. Nothing is lost then, and once requests
    are answered again, it makes, byte for byte, the index that an undisturbed one makes on a disk.

    Args:
        faults: keys of FAULTS. names: of commands.

    Returns:
        A row for each fault and extent, which counts, and says what was wrong.
    """
    random = np.random.default_rng(SEED)
    bucket = FaultyBucket()
    prepare = partial(use_bucket, bucket.endpoint, setting.folder / "cache")
    rows = []
    try:
        requests = {name: _count_requests(setting, bucket, name, prepare) for name in names}
        for fault in faults:
            for extent, share in EXTENTS.items():
                counts = dict.fromkeys(COUNTS, 0)
                wrong: list[str] = []
                for name in names:
                    for _ in range(count):
                        after = int(random.integers(requests[name])) if extent == OUTAGE else 0
                        trouble = Trouble(fault, share, after, random)
                        lines = _run_once(
                            setting, bucket, setting.commands[name], trouble, counts, prepare
                        )
                        wrong += [f"{name}: {line}" for line in lines]
                row = {"requests get": fault, "when": extent, **counts}
                rows.append({**row, "failures": len(wrong), "what": wrong})
    finally:
        bucket.close()
    return rows


def _count_requests(setting: Setting, bucket: FaultyBucket, name: str, prepare: Prepare) -> int:
    """How many requests a command makes that nobody disturbs."""
    command = setting.commands[name]
    trouble = Trouble(next(iter(FAULTS)), 0, 0, np.random.default_rng(SEED))
    bucket.upload(command.before, INDEX)
    with bucket.failing(trouble):
        wrong = _finish(setting, bucket, command, prepare)
        requests = bucket.requests
    if wrong:
        raise RuntimeError(f"{name}: {wrong}")
    return requests


def _run_once(
    setting: Setting,
    bucket: FaultyBucket,
    command: Command,
    trouble: Trouble,
    counts: dict[str, int],
    prepare: Prepare,
) -> list[str]:
    """Run a command while requests fail, and again; what was wrong. What happened is counted."""
    stderr = setting.folder / "failed"
    bucket.upload(command.before, INDEX)
    counts["commands"] += 1
    with bucket.failing(trouble):
        status = exit_status(command.words(bucket.url(INDEX)), stderr, prepare)
    wrong = []
    counts["failed" if status else "done all the same"] += 1
    message = stderr.read_text().splitlines()
    if status and not tells_reason(status, message, REASON):
        wrong.append(f"status {status}: {message}")
    wrong += setting.check_stopped(_download(setting, bucket), command)
    return wrong + _finish(setting, bucket, command, prepare)


def _finish(
    setting: Setting, bucket: FaultyBucket, command: Command, prepare: Prepare
) -> list[str]:
    """Run a command to its end; what is wrong unless it makes an undisturbed one's index."""
    stderr = setting.folder / "stderr"
    if exit_status(command.words(bucket.url(INDEX)), stderr, prepare):
        return [f"run again it fails: {stderr.read_text()}"]
    folder = _download(setting, bucket)
    return [*differences_from_undisturbed(folder, command), *damages(folder)]


def _download(setting: Setting, bucket: FaultyBucket) -> Path:
    """A folder with what lies in the bucket."""
    folder = setting.folder / "place"
    shutil.rmtree(folder, ignore_errors=True)
    bucket.download(INDEX, folder)
    return folder
