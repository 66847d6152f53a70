"""Chromium, by Playwright, for tests of pages."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import required

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without it a test is skipped, or in CI fails."""
    playwright = required("playwright.sync_api")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None and not os.environ.get("GRADINDEX_REQUIRE_ALL"):
        pytest.skip("no Chromium")
    assert program, f"none of {', '.join(NAMES)} is installed"
    with playwright.sync_playwright() as started:
        # Its sandbox does not start for root, as whom a container runs.
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
