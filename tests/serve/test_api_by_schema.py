"""The JSON over HTTP is what its OpenAPI description says, whatever is asked: schemathesis."""

from typing import Any

import pytest
from conftest import required

import gradindex

schemathesis = required("schemathesis")

pytest_plugins = ["served_fixtures"]


@pytest.fixture
def description(opened: list[gradindex.Index]) -> Any:
    app = required("gradindex.serve.app").make_app(opened, ["digits", "plain"])
    return schemathesis.openapi.from_asgi("/api/openapi.json", app, headers={"host": "localhost"})


schema = schemathesis.pytest.from_fixture("description")


@pytest.mark.slow
@schema.parametrize()
def test_it_is_as_described(case: Any) -> None:
    case.call_and_validate(headers={"host": "localhost"})
