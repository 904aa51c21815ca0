"""The registry: a directory of bundles by version, and a file CURRENT that names the live one.

    CURRENT                          20261124T050102Z-1f0c9a3e
    LAST_GOOD                        versions that passed the guard and went live, latest first: what a server starts
                                     with if CURRENT cannot be served
    20261124T050102Z-1f0c9a3e/       a bundle, never changed after it is there

All come into being by a rename, so that a reader sees the old or the new, never a half.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_recsys.core.artifact import parse_manifest, read_manifest
from ray_recsys.core.artifact_writer import locked_directory, remove_abandoned
from ray_recsys.core.recommending.arms import read_arms
from ray_recsys.core.recommending.bundle import KIND, SCHEMA_VERSION, Bundle, BundleManifest
from ray_recsys.core.recommending.guard import check_bundle
from ray_recsys.errors import ArtifactError, RegistryError
from ray_recsys.storage.files import atomic_file
from ray_recsys.storage.locks import Hold

CURRENT = "CURRENT"
LAST_GOOD = "LAST_GOOD"
NUM_GOOD = 5
_IN_USE = "manifest.json"  # whoever serves a version holds a shared lock on this file
_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


class Registry:
    """Bundles by version; the directory is made when the first one is published."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def versions(self) -> list[str]:
        """Returns the versions that are here, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir())

    def current(self) -> str:
        """Returns the live version.

        Raises:
            RegistryError: No bundle is live.
        """
        try:
            version = (self.path / CURRENT).read_text(encoding="utf8").strip()
        except (FileNotFoundError, NotADirectoryError):
            raise RegistryError(
                f"registry {self.path} has no live bundle; make one with `ray-recsys publish --registry {self.path}`"
            ) from None
        self._check_there(version, place=f"{self.path / CURRENT} names")
        return version

    def live(self) -> str | None:
        """Returns the live version; None where nothing was published yet, or CURRENT names a version that is gone."""
        with suppress(RegistryError, OSError, UnicodeDecodeError):
            return self.current()
        return None

    def good(self) -> list[str]:
        """Returns the versions that went live after a check and were not rolled back, latest first."""
        try:
            names = (self.path / LAST_GOOD).read_text(encoding="utf8").split()
        except (OSError, UnicodeDecodeError):
            return []
        return [name for name in names if _VERSION.fullmatch(name) and (self.path / name).is_dir()]

    def manifest(self, version: str) -> BundleManifest:
        """Returns the manifest of a version; its other files are not read.

        Raises:
            RegistryError: The version is not here.
            ArtifactError: The manifest is damaged.
        """
        path = self.bundle_path(version)
        body = read_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION)
        body.pop("files")
        return parse_manifest(BundleManifest, body, path)

    def bundle_path(self, version: str) -> Path:
        """Returns the directory of a version.

        Raises:
            RegistryError: The version is not here.
        """
        self._check_there(version, place="asked for")
        return self.path / version

    def open(self, version: str | None = None) -> Bundle:
        """Returns the bundle of a version, or the live one, after checking it.

        Raises:
            RegistryError: It is not here.
            ArtifactError: It is damaged.
        """
        return Bundle.open(self.bundle_path(version or self.current()))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yields a new directory, on the registry's file system, to make a bundle in; it is gone afterwards.

        What a killed publisher left is removed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path / "staging")
        directory, lock = locked_directory(self.path / "staging")
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)

    def publish(self, bundle: Path, *, live: bool = True) -> str:
        """Checks a bundle and its answers, moves it to its place and makes it live; returns its version.

        Args:
            bundle: On the registry's file system; see `staging`.
            live: False: CURRENT stays as it is, as for an arm.

        Raises:
            ArtifactError: It is damaged or refused, or its version is here already; CURRENT stays as it was.
        """
        opened = Bundle.open(bundle)
        check_bundle(opened)
        version = opened.version
        assert _VERSION.fullmatch(version), version
        target = self.path / version
        if target.exists():
            raise ArtifactError(f"{target} exists already; a version is never replaced")
        bundle.rename(target)
        if live:
            self._go_live(version, [version, *self.good()])
        return version

    def set_current(self, version: str) -> None:
        """Makes a version live that is here already; checks it and its answers first.

        Raises:
            RegistryError: It is not here.
            ArtifactError: It is damaged or refused; CURRENT stays as it was.
        """
        check_bundle(self.open(version))
        self._go_live(version, [version, *self.good()])

    def rollback(self, version: str | None = None) -> str:
        """Makes an older version live; returns it. The version that was live is no longer a good one.

        Args:
            version: None: the last good version before the live one.

        Raises:
            RegistryError: There is none, or it is live already.
            ArtifactError: It is damaged or refused; CURRENT stays as it was.
        """
        live = self.live()
        older = [name for name in self.good() if name != live]
        target = version or (older[0] if older else None)
        if target is None:
            raise RegistryError(
                f"registry {self.path} has no good version but the live one", remedy="name one of `registry list`"
            )
        if target == live:
            raise RegistryError(f"{target} is live already")
        check_bundle(self.open(target))
        self._go_live(target, [target, *older])
        return target

    def prune(self, num_kept: int) -> tuple[list[str], list[str]]:
        """Removes old versions; returns those removed, and those that are in use and were kept for it.

        The live version, the last good one before it and the arms always stay, and so does what a process on this file
        system serves (see `hold`).

        Args:
            num_kept: The newest versions that stay.
        """
        live = self.live()
        previous = [name for name in self.good() if name != live][:1]
        arms = [arm.version for arm in read_arms(self.path)]
        kept = {live, *previous, *arms, *self.versions()[-num_kept:]}
        removed, in_use = [], []
        for version in self.versions():
            if version in kept:
                continue
            if self._is_held(version):
                in_use.append(version)
                continue
            doomed = self.path / f".pruned-{version}"
            (self.path / version).rename(doomed)  # it disappears at once, not file by file
            shutil.rmtree(doomed)
            removed.append(version)
        return removed, in_use

    def hold(self, version: str) -> Hold:
        """Returns a hold on a version: until it is released, or its process dies, `prune` leaves the version alone.

        Raises:
            RegistryError: The version is not here.
        """
        return Hold(self.bundle_path(version) / _IN_USE)

    def _is_held(self, version: str) -> bool:
        try:
            Hold(self.path / version / _IN_USE, fcntl.LOCK_EX).release()
        except BlockingIOError:
            return True
        except FileNotFoundError:  # a bundle without its manifest is no bundle
            return False
        return False

    def _go_live(self, version: str, good: list[str]) -> None:
        self._write(LAST_GOOD, list(dict.fromkeys(good))[:NUM_GOOD])
        self._write(CURRENT, [version])

    def _write(self, name: str, lines: list[str]) -> None:
        with atomic_file(self.path / name) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf8")

    def _check_there(self, version: str, *, place: str) -> None:
        if not _VERSION.fullmatch(version) or not (self.path / version).is_dir():
            here = ", ".join(self.versions()) or "none"
            raise RegistryError(f"{place} version {version!r}, which registry {self.path} does not have; it has {here}")
