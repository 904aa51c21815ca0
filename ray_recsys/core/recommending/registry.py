"""The registry: bundles by version, and a file CURRENT that names the live one; a directory, or in an object store.

    CURRENT                          20261124T050102Z-1f0c9a3e
    LAST_GOOD                        versions that passed the guard and went live, latest first: what a server starts
                                     with if CURRENT cannot be served
    20261124T050102Z-1f0c9a3e/       a bundle, never changed after it is there

Readers see the old version or the new one, never a partial one. Of two concurrent publishers, the second gets a
conflict error.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_recsys.core.artifact import MANIFEST, parse_manifest, read_manifest
from ray_recsys.core.artifact_writer import locked_directory, publish_tree, remove_abandoned
from ray_recsys.core.recommending.arms import read_arms
from ray_recsys.core.recommending.bundle import KIND, SCHEMA_VERSION, Bundle, BundleManifest
from ray_recsys.core.recommending.guard import check_bundle
from ray_recsys.errors import ArtifactError, ConflictError, RegistryError
from ray_recsys.storage.files import delete_file, delete_tree, is_file, list_folder, list_tree, scratch_directory
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.storage.locks import Hold, NoHold
from ray_recsys.storage.pointers import Pointer, read_pointer, replace_pointer

CURRENT = "CURRENT"
LAST_GOOD = "LAST_GOOD"
NUM_GOOD = 5
_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


class Registry:
    """Bundles by version; the directory is created by the first publish."""

    def __init__(self, path: LocationLike) -> None:
        self.location = Location.of(path)

    @property
    def path(self) -> Path:
        """The directory of a local registry."""
        return Path(self.location)

    def versions(self) -> list[str]:
        """Returns the versions, oldest first."""
        if self.location.is_local:
            names = [name for name in list_folder(self.location) if (self.path / name).is_dir()]
        else:
            names = [name.removesuffix(f"/{MANIFEST}") for name in list_tree(self.location)]
        return [name for name in names if _VERSION.fullmatch(name)]

    def current(self) -> str:
        """Returns the live version.

        Raises:
            RegistryError: No bundle is live.
        """
        text = self.pointer().text
        if text is None:
            raise RegistryError(
                f"registry {self.location} has no live bundle; "
                f"make one with `ray-recsys publish --registry {self.location}`"
            )
        version = text.strip()
        self._check_exists(version, requested_by=f"{self.location / CURRENT} names")
        return version

    def pointer(self) -> Pointer:
        """Returns CURRENT as it is now, for `publish` to replace."""
        return read_pointer(self.location / CURRENT)

    def live(self) -> str | None:
        """Returns the live version; None where nothing was published yet, or CURRENT names a version that is gone."""
        with suppress(RegistryError, OSError):
            return self.current()
        return None

    def good(self) -> list[str]:
        """Returns the versions that went live after a check and were not rolled back, latest first."""
        with suppress(OSError):
            names = (read_pointer(self.location / LAST_GOOD).text or "").split()
            return [name for name in names if self._has(name)]
        return []

    def manifest(self, version: str) -> BundleManifest:
        """Returns the manifest of a version; its other files are not read.

        Raises:
            RegistryError: There is no such version.
            ArtifactError: The manifest is damaged.
        """
        path = self.locate(version)
        body = read_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION)
        body.pop("files")
        return parse_manifest(BundleManifest, body, path)

    def locate(self, version: str) -> Location:
        """Returns the location of a version.

        Raises:
            RegistryError: There is no such version.
        """
        self._check_exists(version, requested_by="requested")
        return self.location / version

    def open(self, version: str | None = None) -> Bundle:
        """Returns the bundle of a version, or the live one, after checking it.

        Raises:
            RegistryError: It is not here.
            ArtifactError: It is damaged.
        """
        return Bundle.open(self.locate(version or self.current()))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yields a new directory to make a bundle in, on the file system of a local registry; it is deleted afterwards.

        Leftovers of killed publishers in a local registry are removed.
        """
        if not self.location.is_local:
            with scratch_directory() as scratch:
                yield scratch
            return
        self.path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path / "staging")
        directory, lock = locked_directory(self.path / "staging")
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)

    def publish(self, bundle: Path, replaces: Pointer | None = None, *, live: bool = True) -> str:
        """Checks a bundle and its answers, moves it into the registry and makes it live; returns its version.

        Args:
            bundle: On the registry's file system, if it is local; see `staging`.
            replaces: The live version that the bundle was compared with; None: the current one.
            live: False: CURRENT stays, as for an arm.

        Raises:
            ArtifactError: It is damaged or refused, or its version is here already; CURRENT stays as it was.
            ConflictError: Another version went live meanwhile; this one is in the registry, but not live.
        """
        before = replaces or self.pointer()
        opened = Bundle.open(bundle)
        check_bundle(opened)
        version = opened.version
        assert _VERSION.fullmatch(version), version
        target = self.location / version
        if self._has(version):
            raise ArtifactError(f"{target} exists already; a version is never replaced")
        if target.is_local:
            bundle.rename(target)
        else:
            publish_tree(bundle, target)
        if live:
            self._go_live(version, before)
        return version

    def set_current(self, version: str) -> None:
        """Makes an existing version live, after checking it and its answers.

        Raises:
            RegistryError: It is not here.
            ArtifactError: It is damaged or refused; CURRENT stays as it was.
        """
        before = self.pointer()
        check_bundle(self.open(version))
        self._go_live(version, before)

    def rollback(self, version: str | None = None) -> str:
        """Makes an older version live; returns it. The version that was live is no longer a good one.

        Args:
            version: None: the last good version before the live one.

        Raises:
            RegistryError: There is none, or it is live already.
            ArtifactError: It is damaged or refused; CURRENT stays as it was.
        """
        before, live = self.pointer(), self.live()
        older = [name for name in self.good() if name != live]
        target = version or (older[0] if older else None)
        if target is None:
            raise RegistryError(
                f"registry {self.location} has no good version but the live one", remedy="name one of `registry list`"
            )
        if target == live:
            raise RegistryError(f"{target} is live already")
        check_bundle(self.open(target))
        self._go_live(target, before, bad=live)
        return target

    def prune(self, num_kept: int) -> tuple[list[str], list[str]]:
        """Removes old versions; returns those removed, and those that are in use and were kept for it.

        The live version, the last good one before it and the arms always stay, and so do versions that processes on the
        file system of a local registry serve (see `hold`).

        Args:
            num_kept: The newest versions that stay.
        """
        live = self.live()
        previous = [name for name in self.good() if name != live][:1]
        arms = [arm.version for arm in read_arms(self.location)]
        kept = {live, *previous, *arms, *self.versions()[-num_kept:]}
        removed, in_use = [], []
        for version in self.versions():
            if version in kept:
                continue
            if self._is_held(version):
                in_use.append(version)
                continue
            self._remove(version)
            removed.append(version)
        return removed, in_use

    def hold(self, version: str) -> Hold | NoHold:
        """Returns a hold on a version: `prune` keeps the version until the hold is released or its process dies.

        In an object store nothing is held: a server has the whole bundle on its own disk.

        Raises:
            RegistryError: There is no such version.
        """
        location = self.locate(version)
        return Hold(Path(location / MANIFEST)) if location.is_local else NoHold()

    def _is_held(self, version: str) -> bool:
        if not self.location.is_local:
            return False
        try:
            Hold(self.path / version / MANIFEST, fcntl.LOCK_EX).release()
        except BlockingIOError:
            return True
        except FileNotFoundError:  # a bundle without its manifest is no bundle
            return False
        return False

    def _remove(self, version: str) -> None:
        if self.location.is_local:
            doomed = self.path / f".pruned-{version}"
            (self.path / version).rename(doomed)  # deletion is atomic
            shutil.rmtree(doomed)
        else:
            delete_file(self.location / version / MANIFEST)
            delete_tree(self.location / version)

    def _go_live(self, version: str, before: Pointer, *, bad: str | None = None) -> None:
        try:
            replace_pointer(self.location / CURRENT, f"{version}\n", before)
        except ConflictError as error:
            raise ConflictError(
                f"{self.location}: {self.live()} went live meanwhile, {version} did not",
                remedy=f"publish again, or make it live with `ray-recsys registry rollback --to {version}`",
            ) from error
        self._remember_good(version, bad)

    def _remember_good(self, version: str, bad: str | None) -> None:
        """Puts a version first in LAST_GOOD and takes a bad one out; retries on a conflict."""
        location = self.location / LAST_GOOD
        while True:
            before = read_pointer(location)
            good = dict.fromkeys([version, *(name for name in self.good() if name != bad)])
            try:
                replace_pointer(location, "".join(f"{name}\n" for name in list(good)[:NUM_GOOD]), before)
            except ConflictError:
                continue
            return

    def _has(self, version: str) -> bool:
        if not _VERSION.fullmatch(version):
            return False
        if self.location.is_local:
            return (self.path / version).is_dir()
        return is_file(self.location / version / MANIFEST)

    def _check_exists(self, version: str, *, requested_by: str) -> None:
        if not self._has(version):
            here = ", ".join(self.versions()) or "none"
            raise RegistryError(
                f"{requested_by} version {version!r}, which registry {self.location} does not have; it has {here}"
            )
