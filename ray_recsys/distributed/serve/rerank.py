"""The rerank deployment: stage 2 in a process of its own."""

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.serving.stages import Answer, Recalled, StageHere, run_rerank


class RerankStage(StageHere):
    """Ranks candidates."""

    async def rerank(self, version: str, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
        """Returns the answers from what recall made of the same queries by the same version."""
        return run_rerank(await self._recommenders.of(version), queries, recalled)
