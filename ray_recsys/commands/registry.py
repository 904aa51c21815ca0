"""Commands on a registry: list, show, publish, rollback, prune."""

from typing import TYPE_CHECKING

import click
from pydantic import BaseModel

from ray_recsys.commands.invocation import INPUT, Invocation, takes_invocation
from ray_recsys.commands.output import Table, facts
from ray_recsys.commands.serving import publish
from ray_recsys.config.serving import BundleRecipe
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.core.recommending.bundle import BundleManifest
    from ray_recsys.core.recommending.registry import Registry

_registry_option = click.option(
    "--registry", "path", type=INPUT, required=True, metavar="DIR", help="Where bundles are."
)
_LIVE, _GOOD, _UNREADABLE = "live", "good", "unreadable"


class Version(BaseModel):
    """A version of a registry."""

    version: str
    state: str
    """live; good: went live before and was not rolled back; unreadable: damaged; empty: anything else."""
    model: str | None = None
    parent: str | None = None
    metric: float | None = None
    """Validation NDCG@10."""


class Versions(BaseModel):
    """The versions of a registry, newest first."""

    versions: list[Version]


class Rollback(BaseModel):
    """What is live after a rollback."""

    version: str
    replaced: str | None


class Pruned(BaseModel):
    """What prune removed, and what it kept because a process serves it."""

    removed: list[str]
    in_use: list[str]


@click.group()
def registry() -> None:
    """Looks after published bundles."""


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


def _describe(home: "Registry", version: str) -> Version:
    from ray_recsys.errors import InputError

    try:
        manifest: BundleManifest = home.manifest(version)
    except InputError:
        return Version(version=version, state=_UNREADABLE)
    state = _LIVE if version == home.live() else _GOOD if version in home.good() else ""
    metric = manifest.metrics.get("validation", {}).get(BundleRecipe().gate_metric)
    return Version(version=version, state=state, model=manifest.model, parent=manifest.parent, metric=metric)
