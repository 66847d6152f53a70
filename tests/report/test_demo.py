"""The demo does the whole job; here with a model that is hardly trained."""

from pathlib import Path

import pytest
from html_reading import Reading

from gradindex.report import demo


@pytest.mark.slow
def test_the_demo_runs_and_runs_again_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "STEPS", 20)
    lines: list[str] = []
    demo.run_demo(tmp_path / "out", lines.append)
    page = Reading((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    assert len(page.with_class("card")) == demo.QUERIES
    assert len(page.with_class("hit")) == demo.QUERIES * 3 * demo.K
    assert page.with_class("gone") == []
    assert [line.split(":")[0] for line in lines[:4]] == ["retrac", "tracin", "retrac", "tracin"]
    again: list[str] = []
    monkeypatch.setattr(demo, "_train", lambda *args: pytest.fail("trained again"))
    demo.run_demo(tmp_path / "out", again.append)
    assert again == lines
