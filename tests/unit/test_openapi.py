"""The OpenAPI description is true: what it allows is accepted, and every answer is one that it describes."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

from ray_recsys.config import ServeRecipe
from ray_recsys.serving.app import make_app
from tests.app_client import local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

HEADERS = {"Host": "127.0.0.1"}
NUM_CASES = 6  # of each operation; 20,000 in all were run once


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    home: Path = tmp_path_factory.mktemp("openapi")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    app = make_app(local_api(home / "registry", ServeRecipe()))
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)


def test_what_the_description_allows_is_answered_as_it_says(schema: BaseSchema) -> None:
    labels = set()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        labels.add(operation.label)

        @settings(
            max_examples=NUM_CASES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answers(case: Case[Any]) -> None:
            case.call_and_validate(headers=HEADERS)

        answers()
    assert {"POST /v1/recommend", "PUT /v1/lists/{name}", "GET /readyz"} <= labels
    assert len(labels) == 15


def test_every_operation_describes_its_problems_with_an_example(schema: BaseSchema) -> None:
    raw = schema.raw_schema
    for path, operations in raw["paths"].items():
        for operation in operations.values():
            statuses = set(operation["responses"])
            if path != "/healthz":
                assert {"401", "403", "421", "429", "503"} <= statuses, path
    properties = raw["components"]["schemas"]["ProblemBody"]["properties"]
    assert all(properties[name].get("examples") for name in ("type", "title", "status", "detail"))
