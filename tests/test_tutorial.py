"""docs/tutorial.md runs as it stands, here with fewer pictures and steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.md"
SMALLER = {
    "2400": "20",
    "1200": "10",
    "load_digits().images": "load_digits().images[:200]",
    "diagnose idx": "diagnose idx --compared 10 --queries 4",
}


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    text = TUTORIAL.read_text()
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    blocks = re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL)
    (tmp_path / "train.py").write_text(blocks[0][1])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, code in blocks[1:]:
        command = (
            [sys.executable, "-c", code]
            if language == "python"
            else ["bash", "-euo", "pipefail", "-c", code]
        )
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "answer.html").read_text().count('<li class="hit') == 2 * (3 + 2) * 10
    assert (tmp_path / "diagnose-out/norms.png").exists()
