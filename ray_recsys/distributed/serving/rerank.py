"""The rerank deployment: stage 2 in a process of its own, or both stages in one."""

from pathlib import Path

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serving.stages import (
    Answer,
    LoadedRecommenders,
    Recalled,
    run_both,
    run_rerank,
    use_one_thread,
)


class RerankStage:
    """Ranks candidates. Methods are plain functions: Serve runs them in threads, so that the event loop stays free."""

    def __init__(self, registry: str) -> None:
        use_one_thread()
        self._recommenders = LoadedRecommenders(Path(registry))
        self.load(Registry(Path(registry)).current())

    def rerank(self, version: str, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
        """Returns the answers from what recall made of the same queries by the same version."""
        return run_rerank(self._recommenders.of(version), queries, recalled)

    def recall_and_rerank(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers of both stages: one hop between processes less."""
        return run_both(self._recommenders.of(version), queries)

    def load(self, version: str) -> None:
        """Loads a version."""
        self._recommenders.of(version)
