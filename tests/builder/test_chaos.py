"""A little of `tools/bench chaos`: kills, damaged files and failing disks harm no index."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools" / "benchmarks"))
import chaos
from digit_indexes import Setting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*the store is scanned"),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("chaos") / "setting")


@pytest.mark.parametrize("name", chaos.KILLS)
def test_no_kill_costs_what_was_committed(setting: Setting, name: str) -> None:
    (found,) = chaos.kill(setting, name, 2)
    assert found["what"] == []
    assert found["kills"] == 2


def test_no_damage_is_believed_or_stays(setting: Setting) -> None:
    found = chaos.damage(setting, 15)
    assert [what for row in found for what in row["what"]] == []
    assert sum(row["damages"] for row in found) == 15


def test_no_failing_disk_costs_what_was_committed(setting: Setting) -> None:
    may_mount = chaos.may_mount(setting.folder / "disk")
    kinds = [kind for kind in chaos.FAILURES if may_mount or kind not in chaos.MOUNTED]
    found = chaos.fail(setting, kinds, ("build, more pictures", "remove"), 1)
    assert [what for row in found for what in row["what"]] == []
    assert [row["failed commands"] for row in found] == [
        1 if row["disk"] in (chaos.VANISHED, chaos.LIMITED) else 2 for row in found
    ]
