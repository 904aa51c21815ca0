"""Batches the queries that wait for the stages into one call: a hop between processes costs more than a query.

A query that finds a free call slot is sent immediately, alone; queries that arrive while all slots are busy share the
next call. No query waits for a batch to fill.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.serving.problems import overloaded
from ray_recsys.serving.stages import Answer, Stages


@dataclass(slots=True)
class _Waiting:
    version: str
    query: Query
    answer: "asyncio.Future[Answer]"


class Coalescer:
    """Takes single queries and calls the stages with up to `max_batch` queries of one version.

    Args:
        stages: Both stages.
        max_calls: Maximum number of concurrent calls.
        max_waiting: Maximum number of waiting queries; more are refused.
        max_batch: Maximum number of queries per call.
    """

    def __init__(self, stages: Stages, *, max_calls: int, max_waiting: int, max_batch: int = 16) -> None:
        self._stages = stages
        self._max_calls, self._max_batch, self._max_waiting = max_calls, max_batch, max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._one_batch = asyncio.Semaphore(1)

    async def answer(self, version: str, query: Query) -> Answer:
        """Returns the answer to one query.

        Raises:
            Problem: Too many queries are waiting, or the stages refused.
        """
        if len(self._waiting) >= self._max_waiting:
            raise overloaded()
        waiting = _Waiting(version, query, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._send()
        return await waiting.answer

    async def answer_all(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to many queries of one request, a call at a time, so that single queries pass between.

        Raises:
            Problem: Too many queries are waiting, or the stages refused.
        """
        if len(self._waiting) >= self._max_waiting:
            raise overloaded()
        answers: list[Answer] = []
        async with self._one_batch:
            for first in range(0, len(queries), self._max_batch):
                answers += await self._stages.answer(version, queries[first : first + self._max_batch])
                await asyncio.sleep(0)
        return answers

    def _send(self) -> None:
        while self._waiting and len(self._calls) < self._max_calls:
            task = asyncio.create_task(self._call(self._next_batch()))
            self._calls.add(task)
            task.add_done_callback(self._finish)

    def _finish(self, task: "asyncio.Task[None]") -> None:
        self._calls.discard(task)
        self._send()

    def _next_batch(self) -> list[_Waiting]:
        batch = [self._waiting.popleft()]
        while self._waiting and len(batch) < self._max_batch and self._waiting[0].version == batch[0].version:
            batch.append(self._waiting.popleft())
        return batch

    async def _call(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._stages.answer(batch[0].version, [waiting.query for waiting in batch])
        except Exception as error:  # noqa: BLE001  (passed on to every request of this call)
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():  # done: the client has disconnected
                waiting.answer.set_result(answer)
