"""The rerank deployment: stage 2 in a process of its own."""

from pathlib import Path

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.distributed.serving.stages import Answer, LoadedRecommenders, Recalled, run_rerank, use_one_thread


class RerankStage:
    """Ranks candidates, on the replica's event loop: a thread, which Serve starts anew for a call, costs more."""

    def __init__(self, registry: str) -> None:
        use_one_thread()
        self._recommenders = LoadedRecommenders(Path(registry))
        self._recommenders.load_current()

    async def rerank(self, version: str, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
        """Returns the answers from what recall made of the same queries by the same version."""
        return run_rerank(await self._recommenders.of(version), queries, recalled)

    async def load(self, version: str) -> None:
        """Loads a version."""
        await self._recommenders.of(version)
