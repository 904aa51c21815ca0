"""The recall deployment: stage 1 in a process of its own."""

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.serving.stages import Recalled, StageHere, run_recall


class RecallStage(StageHere):
    """Finds candidates."""

    async def recall(self, version: str, queries: list[Query]) -> list[Recalled]:
        """Returns the candidates of each query by a bundle version."""
        return run_recall(await self._recommenders.of(version), queries)
