"""Commands on a registry (list, show, publish, rollback, prune, end), and `ab`, which compares its arms."""

from typing import TYPE_CHECKING

import click
from pydantic import BaseModel

from ray_recsys.commands.invocation import INPUT, Invocation, takes_invocation
from ray_recsys.commands.output import Table, facts
from ray_recsys.commands.serving import publish
from ray_recsys.config.serving import BundleRecipe
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.core.evaluation.bootstrap import Interval
    from ray_recsys.core.recommending.bundle import BundleManifest
    from ray_recsys.core.recommending.registry import Registry

_registry_option = click.option(
    "--registry", "path", type=INPUT, required=True, metavar="DIR", help="Registry of bundles."
)
_LIVE, _GOOD, _UNREADABLE = "live", "good", "unreadable"


class Version(BaseModel):
    """A version of a registry."""

    version: str
    state: str
    """live; arm B 10 %: answers a part of the users (`shadow`: unseen by them); good: went live before and was not
    rolled back; unreadable: damaged; empty: anything else."""
    model: str | None = None
    parent: str | None = None
    metric: float | None = None
    """Validation NDCG@10."""


class Versions(BaseModel):
    """The versions of a registry, newest first."""

    versions: list[Version]


class Rollback(BaseModel):
    """The live version after a rollback."""

    version: str
    replaced: str | None


class Pruned(BaseModel):
    """Removed versions, and old ones that were kept because a process serves them."""

    removed: list[str]
    in_use: list[str]


@click.group()
def registry() -> None:
    """Manages published bundles."""


registry.add_command(publish)


@registry.command("list")
@_registry_option
@takes_invocation
def list_versions(invocation: Invocation, *, path: Location) -> None:
    """Lists the versions, newest first."""
    from ray_recsys.core.recommending.registry import Registry

    home = Registry(path)
    versions = [_describe(home, version) for version in reversed(home.versions())]
    rows = [[one.version, one.state, one.model, one.metric, one.parent] for one in versions]
    invocation.answer(Versions(versions=versions), Table(("version", "state", "model", "NDCG@10", "parent"), rows))


@registry.command()
@_registry_option
@click.argument("version", required=False)
@takes_invocation
def show(invocation: Invocation, *, path: Location, version: str | None) -> None:
    """Shows the manifest of a version, by default the live one."""
    from ray_recsys.core.recommending.registry import Registry

    home = Registry(path)
    manifest = home.manifest(version or home.current())
    values = manifest.model_dump(mode="json", exclude={"recipe", "metrics"})
    tables = [facts(split, **metrics) for split, metrics in manifest.metrics.items()]
    invocation.answer(manifest, facts(**values), *tables)


@registry.command()
@_registry_option
@click.option("--to", metavar="VERSION", help="The version to go back to; default: the last good one.")
@takes_invocation
def rollback(invocation: Invocation, *, path: Location, to: str | None) -> None:
    """Makes an older version live, after checking it."""
    from ray_recsys.core.recommending.registry import Registry

    home = Registry(path)
    replaced = home.live()
    result = Rollback(version=home.rollback(to), replaced=replaced)
    invocation.answer(result, facts(**result.model_dump()))


@registry.command()
@_registry_option
@click.option("--keep", type=click.IntRange(min=1), default=5, help="Newest versions that stay.")
@takes_invocation
def prune(invocation: Invocation, *, path: Location, keep: int) -> None:
    """Removes old versions, but never the live one, the one before it, or one that is being served."""
    from ray_recsys.core.recommending.registry import Registry

    removed, in_use = Registry(path).prune(keep)
    result = Pruned(removed=removed, in_use=in_use)
    invocation.answer(result, facts(removed=" ".join(removed) or "none", in_use=" ".join(in_use) or "none"))


@registry.command()
@_registry_option
@click.argument("arm")
@takes_invocation
def end(invocation: Invocation, *, path: Location, arm: str) -> None:
    """Ends an arm: its users get the live version again."""
    from ray_recsys.core.recommending.arms import end_arm

    ended = end_arm(path, arm)
    invocation.answer(ended, facts(**ended.model_dump()))


@click.command()
@click.option(
    "--impressions", type=INPUT, required=True, metavar="DIR", help="Directory recorded by `serve.impressions`."
)
@click.option("--log", type=INPUT, required=True, multiple=True, metavar="FILE", help="Interactions; may be repeated.")
@click.option(
    "--window-days",
    type=click.FloatRange(0, min_open=True),
    default=7.0,
    help="Maximum time from impression to interaction.",
)
@takes_invocation
def ab(invocation: Invocation, *, impressions: Location, log: tuple[Location, ...], window_days: float) -> None:
    """Compares the arms of an experiment: how often their users chose recommended items."""
    from ray_recsys.core.workflows.ab import LogColumns, compare_arms
    from ray_recsys.errors import InputError

    source = invocation.recipe.input
    if source.timestamp_column is None:
        raise InputError("input.timestamp_column is not set: an interaction counts by its time")
    columns = LogColumns(source.user_column, source.item_column, source.timestamp_column)
    with invocation.connect() as executor:
        result = compare_arms(impressions, log, columns, executor, window_days=window_days, seed=invocation.recipe.seed)
    rows = [
        [one.arm, one.num_users, one.num_impressions, one.num_hits, *_bounds(one.hit_rate), *_bounds(one.difference)]
        for one in result.arms
    ]
    header = ("arm", "users", "impressions", "hits", "hit rate", "low", "high", "difference", "low", "high")
    left_out = facts(anonymous=result.num_anonymous, moved=result.num_moved)
    invocation.answer(result, Table(header, rows), left_out)


def _bounds(interval: "Interval | None") -> tuple[float | None, ...]:
    return (None, None, None) if interval is None else (interval.value, interval.low, interval.high)


def _describe(home: "Registry", version: str) -> Version:
    from ray_recsys.core.recommending.arms import read_arms
    from ray_recsys.errors import InputError

    try:
        manifest: BundleManifest = home.manifest(version)
    except InputError:
        return Version(version=version, state=_UNREADABLE)
    arms = [
        f"arm {arm.name} {arm.percent:g} %{' shadow' * arm.shadow}"
        for arm in read_arms(home.location)
        if arm.version == version
    ]
    state = _LIVE if version == home.live() else ", ".join(arms) or (_GOOD if version in home.good() else "")
    metric = manifest.metrics.get("validation", {}).get(BundleRecipe().gate_metric)
    return Version(version=version, state=state, model=manifest.model, parent=manifest.parent, metric=metric)
