"""The recall deployment: stage 1 in a process of its own."""

from pathlib import Path

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serving.stages import LoadedRecommenders, Recalled, run_recall, use_one_thread


class RecallStage:
    """Finds candidates. Methods are plain functions: Serve runs them in threads, so that the event loop stays free."""

    def __init__(self, registry: str) -> None:
        use_one_thread()
        self._recommenders = LoadedRecommenders(Path(registry))
        self.load(Registry(Path(registry)).current())

    def recall(self, version: str, queries: list[Query]) -> list[Recalled]:
        """Returns the candidates of each query by a bundle version."""
        return run_recall(self._recommenders.of(version), queries)

    def load(self, version: str) -> None:
        """Loads a version."""
        self._recommenders.of(version)
