"""The JSON over HTTP is what its OpenAPI description says, whatever is asked: schemathesis."""

from typing import Any

import hypothesis
import pytest
from conftest import required

import gradindex

pytest_plugins = ["served_fixtures"]

OPERATIONS = [
    *("GET /api/indexes", "GET /api/info", "POST /api/query", "GET /api/training"),
    *("GET /api/training/picture", "POST /api/verify"),
]
EXAMPLES = 40  # of each operation and kind
TRIED = [(operation, kind) for operation in OPERATIONS for kind in ("POSITIVE", "NEGATIVE")]
TRIED.remove(("GET /api/indexes", "NEGATIVE"))  # it has no parameter that could be wrong


@pytest.fixture(scope="module")
def description(opened: list[gradindex.Index]) -> Any:
    """Of a server with two indexes."""
    schemathesis = required("schemathesis")
    app = required("gradindex.serve.app").make_app(opened, ["digits", "plain"])
    headers = {"host": "localhost"}
    return schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=headers)


def test_every_address_is_tried(description: Any) -> None:
    assert sorted(one.ok().label for one in description.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "kind"), TRIED)
def test_it_is_as_described(description: Any, operation: str, kind: str) -> None:
    """For what fits the description, and for what does not: never a fault of the server."""
    method, path = operation.split()
    schemathesis = required("schemathesis")
    mode = schemathesis.GenerationMode[kind]
    cases = description[path][method].as_strategy(generation_mode=mode)
    # No schema says that bytes are a picture, or that one of two fields is needed.
    checks = required("schemathesis.specs.openapi.checks")
    unsaid = [checks.positive_data_acceptance] if operation == "POST /api/query" else []

    @hypothesis.given(case=cases)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[*hypothesis.HealthCheck]
    )
    def check(case: Any) -> None:
        case.call_and_validate(headers={"host": "localhost"}, excluded_checks=unsaid)

    check()
