"""A folder of recommendations in parts that are written once each, by any process, also after a kill.

_job.json            what the parts are made from, written first; another job is refused
part-00000.parquet   appears complete; its footer names the job, and its pages have checksums
_SUCCESS             written last: size, sha256 and users of every part

Readers of Parquet folders pass over names that begin with `_`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ray_recsys.core.artifact import FileDigest, digest_file
from ray_recsys.errors import ArtifactError, ConflictError
from ray_recsys.storage.files import exists, is_file, list_folder, read_bytes, read_text, write_bytes, written_file
from ray_recsys.storage.location import Location
from ray_recsys.storage.pointers import create_file

JOB, SUCCESS = "_job.json", "_SUCCESS"
MIN_USERS, MAX_USERS = 1024, 32_768
"""Of a part; 100 M users are about 3,000 parts."""
_PARTS_WANTED = 64
_FOOTER_KEY = b"ray_recsys"
Content = TypeVar("Content", bound=BaseModel)


class ListsJob(BaseModel):
    """What determines the content of every part."""

    model_config = ConfigDict(frozen=True)

    package: str
    """Version."""
    bundle: str
    """Version."""
    k: int
    num_candidates: int
    users_sha256: str | None
    """Of the ids given; None: all users of the bundle."""
    num_users: int

    @property
    def digest(self) -> str:
        """Names the job in its parts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def users_per_part(self) -> int:
        """Users of a part but the last; it depends on no machine, so that any can resume the job."""
        return min(MAX_USERS, max(MIN_USERS, -(-self.num_users // _PARTS_WANTED)))

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num_users // self.users_per_part)

    def claim(self, folder: Location) -> None:
        """Makes a new folder this job's; does nothing if it is already.

        Raises:
            ArtifactError: The folder has another job, or something else.
        """
        if not is_file(folder / JOB):
            if exists(folder) and (is_file(folder) or list_folder(folder)):
                raise ArtifactError(f"{folder} exists already", remedy="give another one, or delete it first")
            with suppress(ConflictError):  # another process was quicker: perhaps with the same job
                create_file(folder / JOB, f"{self.model_dump_json(indent=2)}\n".encode())
        found = _read(ListsJob, folder / JOB)
        if changed := [name for name in type(self).model_fields if getattr(self, name) != getattr(found, name)]:
            text = ", ".join(f"{name}: {getattr(found, name)!r}, now {getattr(self, name)!r}" for name in changed)
            raise ArtifactError(
                f"{folder} holds the lists of another job ({text})",
                remedy="give another --output, or what that job was given, to finish it",
            )


class PartInfo(BaseModel):
    """One complete part."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str
    num_rows: int
    sources: dict[str, int]
    """Users by source."""


class ListsManifest(BaseModel):
    """Content of `_SUCCESS`."""

    model_config = ConfigDict(frozen=True)

    job: ListsJob
    parts: dict[str, PartInfo]
    """By file name, in order."""

    @classmethod
    def read(cls, folder: Location) -> Self | None:
        """Returns the manifest of a complete folder; None: it is not complete."""
        return _read(cls, folder / SUCCESS) if is_file(folder / SUCCESS) else None

    def write(self, folder: Location) -> None:
        """Completes a folder."""
        write_bytes(folder / SUCCESS, f"{self.model_dump_json(indent=2)}\n".encode())

    @property
    def sources(self) -> Counter[str]:
        """Users by source."""
        return sum((Counter(part.sources) for part in self.parts.values()), Counter())

    @property
    def num_rows(self) -> int:
        """Of all parts."""
        return sum(part.num_rows for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class ListPart:
    """One part of a job."""

    folder: Location
    job: ListsJob
    number: int

    @property
    def name(self) -> str:
        """Its file's."""
        return f"part-{self.number:05d}.parquet"

    @property
    def users(self) -> range:
        """Rows of its users among the job's."""
        first = self.number * self.job.users_per_part
        return range(first, min(first + self.job.users_per_part, self.job.num_users))

    def find(self) -> PartInfo | None:
        """Returns the part if it is there, of this job, and every page of it as it was written; else None."""
        try:
            content = read_bytes(self.folder / self.name)
            with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
                footer = json.loads((file.metadata.metadata or {})[_FOOTER_KEY])
                if footer["job"] != self.job.digest or footer["part"] != self.number:
                    return None
                num_rows = sum(batch.num_rows for batch in file.iter_batches())
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            return None
        digest = FileDigest(len(content), hashlib.sha256(content).hexdigest())
        return _info(digest, num_rows, footer["sources"])

    def write(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], sources: Counter[str]) -> PartInfo:
        """Writes the part, a row group for each batch; strings may come as dictionaries.

        Args:
            schema: Of each batch.
            batches: Consumed one at a time.
            sources: Users by source, complete once the batches are consumed.
        """
        num_rows = 0
        with written_file(self.folder / self.name) as path:
            # the Arrow schema would make readers return dictionaries
            with pq.ParquetWriter(
                path, schema, compression="zstd", write_page_checksum=True, store_schema=False
            ) as writer:
                for batch in batches:
                    writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
                    num_rows += batch.num_rows
                footer = {"job": self.job.digest, "part": self.number, "sources": dict(sources)}
                writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer)})
            return _info(digest_file(path), num_rows, sources)


def _info(digest: FileDigest, num_rows: int, sources: Mapping[str, int]) -> PartInfo:
    return PartInfo(bytes=digest.bytes, sha256=digest.sha256, num_rows=num_rows, sources=dict(sources))


def _read(model: type[Content], location: Location) -> Content:
    try:
        return model.model_validate_json(read_text(location))
    except (UnicodeDecodeError, ValidationError):
        raise ArtifactError(
            f"{location} was changed, or written by another version of ray_recsys",
            remedy="give another --output, or delete this one first",
        ) from None
