"""The pipeline from a log to a live bundle: prepare → train → evaluate → (refit →) publish, from one recipe.

    prepared-<digest>/  run-<digest>/  refit-<digest>/    outputs of the stages, named by the digest of their inputs
    stages/<stage>.json                                   inputs, digest, result and time of each stage
    recipe.toml                                           the recipe, as `--recipe` reads it

A stage whose output exists is skipped, unfinished training is resumed. Outputs of earlier inputs are removed at the end
of a run, unless the gate rejected its model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.config.files import dump_recipe
from ray_recsys.core import prepared as prepared_set
from ray_recsys.core.artifact import MANIFEST
from ray_recsys.core.evaluation.result import EvaluationResult
from ray_recsys.core.executor import Executor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing import pipeline as preparing
from ray_recsys.core.preparing.log_files import list_log_files
from ray_recsys.core.recommending import bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.training import run as runs
from ray_recsys.core.training.lease import leased
from ray_recsys.core.training.run import Run, TrainResult, is_unfinished
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.core.workflows.publish import GateResult, compare_with_live, publish
from ray_recsys.core.workflows.stage_records import (
    Stage,
    StageRecord,
    Stages,
    Status,
    digest_inputs,
    identify_files,
    with_version,
)
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.files import delete_tree, is_file, list_folder, write_bytes
from ray_recsys.storage.location import Location

RECIPE = "recipe.toml"
_EVALUATION_VERSION = 1
_OUTPUT = re.compile(r"(prepared|run|refit)-[0-9a-f]{16}")


class Trainer(Protocol):
    """Trains models; `ray_recsys.distributed.training` is one."""

    def train(
        self, data: Location, output: Location, recipe: Recipe, executor: Executor, *, resume: bool, report: Reporter
    ) -> TrainResult:
        """Trains the recipe's model and writes a finished run."""
        ...

    def refit(
        self,
        finished: Location,
        data: Location,
        output: Location,
        cluster: ClusterRecipe,
        executor: Executor,
        *,
        resume: bool,
        report: Reporter,
    ) -> TrainResult:
        """Retrains a finished run's model on all interactions."""
        ...


class PipelineResult(BaseModel):
    """The stages of a pipeline run, and the live version."""

    model_config = ConfigDict(frozen=True)

    output: Location
    registry: Location
    prepared: Location
    run: Location
    """The run that is published, or would be."""
    stages: tuple[StageRecord, ...]
    """In the order in which they ran."""
    evaluation: EvaluationResult
    gate: GateResult | None
    """None: publishing was skipped, as nothing had changed."""
    live: str | None
    """The version that is live in the registry."""
    refusal: str | None = None
    """Why the gate kept the live version; None: it did not."""


@dataclass(slots=True)
class Pipeline:
    """One run of the pipeline: its parameters, and the results of its stages so far."""

    output: Location
    registry: Location
    recipe: Recipe
    executor: Executor
    trainer: Trainer
    report: Reporter = silent
    stages: Stages = field(init=False)

    def __post_init__(self) -> None:
        self.stages = Stages(self.output, self.report)

    def run(
        self, inputs: Sequence[str], *, items: str | None = None, test: Sequence[str] = (), force: bool = False
    ) -> PipelineResult:
        """Runs the stages whose inputs changed; returns their results, even if the gate rejects the model.

        Args:
            inputs: Files, folders or URIs of the log.
            items: Side file of titles and categories.
            test: Files of the test interactions, for split.method = "given" alone.
            force: Publish even a model that is worse than the live one.

        Raises:
            ArtifactError: Another run writes to the output, or the output is damaged.
            RecsysError: A stage failed; the stages before it are skipped next time.
        """
        with leased(self.output):
            write_bytes(self.output / RECIPE, dump_recipe(self.recipe).encode())
            data = self._prepare(inputs, items, test)
            run = self._train(data)
            evaluation = self._evaluate(data, run)
            if self.recipe.train.refit:
                run = self._refit(data, run)
            gate, refusal = self._publish(data, run, force=force)
            if refusal is None:
                self._remove_superseded()
        return PipelineResult(
            output=self.output,
            registry=self.registry,
            prepared=data,
            run=run,
            stages=tuple(self.stages.records),
            evaluation=evaluation,
            gate=gate,
            live=Registry(self.registry).live(),
            refusal=refusal,
        )

    def _prepare(self, inputs: Sequence[str], items: str | None, test: Sequence[str]) -> Location:
        recipe = self.recipe
        files = {
            "log": identify_files(list_log_files(inputs, recipe.input.format)),
            "items": identify_files(list_log_files([items], recipe.items.format)) if items else [],
            "test": identify_files(list_log_files(test, recipe.input.format)) if test else [],
        }
        made_from = with_version({**files, "recipe": preparing.relevant_sections(recipe)}, prepared_set.SCHEMA_VERSION)
        data = self.output / f"prepared-{digest_inputs('prepare', made_from)}"

        def make() -> None:
            if not is_file(data / MANIFEST):
                preparing.prepare(inputs, data, recipe, self.executor, items=items, test=test, report=self.report)

        def result() -> dict[str, Any]:
            return PreparedSet.open(data).manifest.model_dump(mode="json", exclude={"recipe", "partitions"})

        self.stages.go("prepare", made_from, make, result, status="skipped" if is_file(data / MANIFEST) else "ran")
        return data

    def _train(self, data: Location) -> Location:
        # a refit is a separate stage: its model was trained on the items of the evaluation
        recipe = self.recipe.model_copy(update={"train": self.recipe.train.model_copy(update={"refit": False})})
        made_from = self.stages.after("prepare", {"recipe": runs.relevant_sections(recipe)}, runs.SCHEMA_VERSION)
        run = self.output / f"run-{digest_inputs('train', made_from)}"
        status = _state_of(run)

        def make() -> None:
            if status == "ran":
                delete_tree(run)  # killed before it was a run that can be resumed
            self.trainer.train(data, run, recipe, self.executor, resume=status == "resumed", report=self.report)

        self.stages.go("train", made_from, make, lambda: _describe(run), status=status)
        return run

    def _evaluate(self, data: Location, run: Location) -> EvaluationResult:
        recipe = self.recipe.evaluate
        given = {"seed": self.recipe.seed, "recipe": recipe.model_dump(mode="json")}
        made_from = self.stages.after("train", given, _EVALUATION_VERSION)
        found = StageRecord.read(self.output, "evaluate", digest_inputs("evaluate", made_from))
        results = [] if found is None else [found.result]

        def make() -> None:
            opened = PreparedSet.open(data)
            measured = evaluate([run], opened, recipe, self.executor, seed=self.recipe.seed, report=self.report)
            results.append(measured.model_dump(mode="json"))

        self.stages.go("evaluate", made_from, make, lambda: results[-1], status="skipped" if results else "ran")
        return EvaluationResult.model_validate(results[-1])

    def _refit(self, data: Location, finished: Location) -> Location:
        made_from = self.stages.after("train", {}, runs.SCHEMA_VERSION)
        run = self.output / f"refit-{digest_inputs('refit', made_from)}"
        status, cluster = _state_of(run), self.recipe.cluster

        def make() -> None:
            if status == "ran":
                delete_tree(run)  # killed before it was a run that can be resumed
            resume = status == "resumed"
            self.trainer.refit(finished, data, run, cluster, self.executor, resume=resume, report=self.report)

        self.stages.go("refit", made_from, make, lambda: _describe(run), status=status)
        return run

    def _publish(self, data: Location, run: Location, *, force: bool) -> tuple[GateResult | None, str | None]:
        """Returns the gate's comparison (None: skipped), and why the model was refused (None: it was not)."""
        recipe, home = self.recipe.bundle, Registry(self.registry)
        given = {"registry": str(self.registry), "recipe": recipe.model_dump(mode="json")}
        trained: Stage = "refit" if self.recipe.train.refit else "train"
        made_from = self.stages.after(trained, given, bundle.SCHEMA_VERSION)
        found = StageRecord.read(self.output, "publish", digest_inputs("publish", made_from))
        # The registry may have been rolled back since then: the version is not published again.
        if found is not None and found.result["version"] in home.versions():
            self.stages.go("publish", made_from, lambda: None, lambda: found.result, status="skipped")
            return None, None
        manifest = Run.open(run).manifest
        gate = compare_with_live(home, manifest.metrics, manifest.input_fingerprint, recipe)
        if gate.is_worse and not force:
            refused = {"gate": gate.model_dump(mode="json"), "live": home.live()}
            self.stages.go("publish", made_from, lambda: None, lambda: refused, status="refused")
            return gate, f"{run}: {gate.describe()}; {home.location} keeps {home.live()}"
        results: list[dict[str, Any]] = []

        def make() -> None:
            published = publish(run, data, self.registry, recipe, self.executor, force=force, report=self.report)
            results.append(published.model_dump(mode="json"))

        self.stages.go("publish", made_from, make, lambda: results[-1], status="ran")
        return gate, None

    def _remove_superseded(self) -> None:
        """Removes the outputs of earlier runs with other inputs."""
        kept = {record.digest for record in self.stages.records}
        for name in list_folder(self.output):
            if _OUTPUT.fullmatch(name) and name.rpartition("-")[2] not in kept:
                self.report(f"removing {name}: its inputs have changed")
                delete_tree(self.output / name)


def _state_of(run: Location) -> Status:
    """Returns the action for a run: none, resume it, or start it."""
    return "skipped" if is_file(run / MANIFEST) else "resumed" if is_unfinished(run) else "ran"


def _describe(run: Location) -> dict[str, Any]:
    return Run.open(run).manifest.model_dump(mode="json", exclude={"recipe"})
