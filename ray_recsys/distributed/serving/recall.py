"""The recall deployment: stage 1 in a process of its own."""

from pathlib import Path

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.distributed.serving.stages import LoadedRecommenders, Recalled, run_recall, use_one_thread


class RecallStage:
    """Finds candidates, on the replica's event loop: a thread, which Serve starts anew for a call, costs more."""

    def __init__(self, registry: str) -> None:
        use_one_thread()
        self._recommenders = LoadedRecommenders(Path(registry))
        self._recommenders.load_current()

    async def recall(self, version: str, queries: list[Query]) -> list[Recalled]:
        """Returns the candidates of each query by a bundle version."""
        return run_recall(await self._recommenders.of(version), queries)

    async def load(self, version: str) -> None:
        """Loads a version."""
        await self._recommenders.of(version)
