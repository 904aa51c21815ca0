"""Waiting queries share a call, a full queue refuses, and a failed call fails only its own queries."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from ray_recsys.core.recommending.recommender import Query, Recommendations
from ray_recsys.serving.coalescer import Coalescer
from ray_recsys.serving.problems import Problem
from ray_recsys.serving.stages import Answer


class SlowStages:
    """Answers once `go` is set; an answer's only item is its query's user."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int | None]]] = []
        self.go = asyncio.Event()

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        self.calls.append((version, [query.user_idx for query in queries]))
        await self.go.wait()
        if version == "damaged":
            raise RuntimeError("damaged")
        return [_answer(query.user_idx or 0) for query in queries]

    async def load(self, version: str) -> None:
        raise NotImplementedError


def _answer(item: int) -> Answer:
    return Answer(Recommendations(np.array([item], np.int32), np.zeros(1, np.float32), "popular"), 0.0, 0.0)


def _run(body: Callable[[SlowStages], Awaitable[None]]) -> None:
    async def run() -> None:
        await body(SlowStages())

    asyncio.run(run())


def _ask(coalescer: Coalescer, user: int, version: str = "v1") -> "asyncio.Task[Answer]":
    return asyncio.get_running_loop().create_task(coalescer.answer(version, Query(user_idx=user)))


def _items(answers: list[Answer]) -> list[int]:
    return [int(answer.recommendations.item_idx[0]) for answer in answers]


def test_the_first_goes_alone_and_those_that_wait_go_together_by_version() -> None:
    async def body(stages: SlowStages) -> None:
        coalescer = Coalescer(stages, max_calls=1, max_waiting=10, max_batch=2)
        asked = [_ask(coalescer, user, "v2" if user == 4 else "v1") for user in range(5)]
        await asyncio.sleep(0)
        stages.go.set()
        assert _items(await asyncio.gather(*asked)) == [0, 1, 2, 3, 4]
        assert stages.calls == [("v1", [0]), ("v1", [1, 2]), ("v1", [3]), ("v2", [4])]

    _run(body)


def test_more_than_may_wait_are_refused_at_once() -> None:
    async def body(stages: SlowStages) -> None:
        coalescer = Coalescer(stages, max_calls=1, max_waiting=2)
        asked = [_ask(coalescer, user) for user in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await coalescer.answer("v1", Query(user_idx=3))
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
        stages.go.set()
        assert _items(await asyncio.gather(*asked)) == [0, 1, 2]

    _run(body)


def test_a_failed_call_fails_its_own_queries_alone() -> None:
    async def body(stages: SlowStages) -> None:
        stages.go.set()
        coalescer = Coalescer(stages, max_calls=1, max_waiting=10)
        asked = [_ask(coalescer, 1), _ask(coalescer, 2, "damaged"), _ask(coalescer, 3, "damaged"), _ask(coalescer, 4)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(result, RuntimeError) for result in results] == [False, True, True, False]

    _run(body)


def test_a_client_that_goes_leaves_the_others_their_answers() -> None:
    async def body(stages: SlowStages) -> None:
        coalescer = Coalescer(stages, max_calls=1, max_waiting=10)
        asked = [_ask(coalescer, user) for user in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        stages.go.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert _items([result for result in results if isinstance(result, Answer)]) == [0, 2]

    _run(body)
