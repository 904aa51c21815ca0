"""Calls to a stage's replica: retried if it dies, refused if it times out or is overloaded."""

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.distributed.serve.deployments import HandleStages
from ray_recsys.serving.problems import Problem


@dataclass(frozen=True)
class FakeResponse:
    """The outcome of a call: a value, an exception, or None for no response."""

    outcome: Any

    def __await__(self) -> Generator[Any, None, Any]:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            yield from asyncio.sleep(60).__await__()
        return self.outcome


class FakeHandle:
    """A handle whose calls, of any method, have the given outcomes in turn."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = list(outcomes)

    def options(self, **_: str) -> "FakeHandle":
        return self

    def __getattr__(self, name: str) -> "FakeHandle":
        return self

    def remote(self, *_: Any) -> FakeResponse:
        return FakeResponse(self._outcomes.pop(0))


def _answer(*outcomes: Any) -> Any:
    async def run() -> Any:
        recall: Any = FakeHandle(*(["candidates"] * len(outcomes)))
        rerank: Any = FakeHandle(*outcomes)
        return await HandleStages(recall, rerank, timeout_s=0.1).answer("v1", [Query()])

    return asyncio.run(run())


def test_a_replica_that_died_is_asked_once_more() -> None:
    assert _answer(RayActorError(), ["answer"]) == ["answer"]


@pytest.mark.parametrize(
    ("outcomes", "kind"),
    [
        ([RayActorError(), RayActorError()], "unavailable"),
        ([None], "timed-out"),
        ([BackPressureError(num_queued_requests=1, max_queued_requests=1)], "overloaded"),
    ],
)
def test_a_stage_that_cannot_answer_is_a_problem_to_retry(outcomes: list[Any], kind: str) -> None:
    with pytest.raises(Problem) as refused:
        _answer(*outcomes)
    assert refused.value.body["type"] == f"urn:ray-recsys:problem:{kind}"
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
    assert ("serve.timeout_s = 0.1 s" in refused.value.body["detail"]) == (kind == "timed-out")
