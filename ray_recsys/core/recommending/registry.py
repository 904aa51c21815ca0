"""The registry: a directory of bundles by version, and a file CURRENT that names the live one.

    CURRENT                          20261124T050102Z-1f0c9a3e
    20261124T050102Z-1f0c9a3e/       a bundle, never changed after it is there

Both come into being by a rename, so that a reader sees the old or the new, never a half. This module does not know what
a bundle is made of.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_recsys.core.artifact import locked_directory, remove_abandoned
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.errors import ArtifactError, RegistryError

CURRENT = "CURRENT"
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
        """Returns the live version, or None where nothing was published yet.

        Raises:
            RegistryError: CURRENT names a version that is not there.
        """
        return self.current() if (self.path / CURRENT).exists() else None

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

    def publish(self, bundle: Path) -> str:
        """Checks a bundle, moves it to its place and makes it live; returns its version.

        Args:
            bundle: On the registry's file system; see `staging`.

        Raises:
            ArtifactError: It is damaged, or its version is here already; CURRENT stays as it was.
        """
        version = Bundle.open(bundle).version
        assert _VERSION.fullmatch(version), version
        place = self.path / version
        if place.exists():
            raise ArtifactError(f"{place} exists already; a version is never replaced")
        bundle.rename(place)
        self._write_current(version)
        return version

    def set_current(self, version: str) -> None:
        """Makes a version live that is here already, e.g. to go back to an older one; checks it first.

        Raises:
            RegistryError: It is not here.
            ArtifactError: It is damaged; CURRENT stays as it was.
        """
        self.open(version)
        self._write_current(version)

    def _write_current(self, version: str) -> None:
        temporary = self.path / f".{CURRENT}.tmp-{uuid.uuid4().hex[:12]}"
        with temporary.open("w", encoding="utf8") as file:
            file.write(version + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / CURRENT)

    def _check_there(self, version: str, *, place: str) -> None:
        if not _VERSION.fullmatch(version) or not (self.path / version).is_dir():
            here = ", ".join(self.versions()) or "none"
            raise RegistryError(f"{place} version {version!r}, which registry {self.path} does not have; it has {here}")
