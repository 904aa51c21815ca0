"""Cost of a request for one user with a trained model: milliseconds of both stages and of folding in, on one thread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ray_recsys.core.arrays import Int32s
from ray_recsys.core.models.contract import Model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.candidate_index import CandidateIndex, RankedCatalogue, Recall
from ray_recsys.core.workflows.trained_model import TrainedModel

NUM_CANDIDATES = 200
_NUM_USERS = 50
_NUM_FOLD_INS = 20


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Medians over some users: of recall and rerank, and of folding in (None: the model cannot)."""

    request_ms: float
    fold_in_ms: float | None


@dataclass(frozen=True, slots=True)
class MeasureRequests:
    """A task that measures a model, on users of one partition.

    Attributes:
        model: Of a run.
        prepared: The set that it was trained on.
    """

    model: TrainedModel
    prepared: PreparedSet

    def __call__(self, _: int) -> RequestCost:
        """Returns the cost; the model's first answers, which load and warm it, do not count."""
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._measure(self.model.load())
        finally:
            torch.set_num_threads(num_threads)

    def _measure(self, model: Model) -> RequestCost:
        space = model.recall_space()
        recall: Recall = RankedCatalogue(model) if space is None else CandidateIndex(space.item_vectors)
        users = self._users()

        def answer(user: tuple[int, Int32s]) -> None:
            user_idx, seen = user
            factors = model.users(np.array([user_idx]))
            candidates = recall.search(factors, NUM_CANDIDATES, np.unique(seen))
            model.scores(factors, candidates[np.newaxis])

        request_ms = _median_ms(answer, users)
        histories = [user for user in users if len(user[1])][:_NUM_FOLD_INS]
        if not histories or model.fold_in(histories[0][1]) is None:
            return RequestCost(request_ms, None)
        return RequestCost(request_ms, _median_ms(lambda user: model.fold_in(user[1]), histories))

    def _users(self) -> list[tuple[int, Int32s]]:
        """Returns (user_idx, training items) of users spread over the largest partition."""
        sizes = [info.num_users for info in self.prepared.manifest.partitions]
        histories = self.prepared.read_partition(int(np.argmax(sizes)))
        training = histories.training
        rows = np.unique(np.linspace(0, training.num_users - 1, _NUM_USERS).astype(np.int64)).tolist()
        return [
            (histories.first_user_idx + row, training.item_idx[training.offsets[row] : training.offsets[row + 1]])
            for row in rows
        ]


def _median_ms(function: Callable[[tuple[int, Int32s]], object], users: list[tuple[int, Int32s]]) -> float:
    times_ms = []
    for user in [*users[:3], *users]:
        start_s = time.perf_counter()
        function(user)
        times_ms.append((time.perf_counter() - start_s) * 1000)
    return statistics.median(times_ms[3:] or times_ms)
