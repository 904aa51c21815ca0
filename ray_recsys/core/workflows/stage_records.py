"""Inputs of pipeline stages: the digests that name their outputs, and the records of their results.

A log's files are identified by name, size and content where reading them is cheap (local files of up to 64 MiB), and
otherwise by name, size and time of modification. A rewritten file of the same content then needs no rerun.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_recsys import __version__
from ray_recsys.core.artifact import digest_file
from ray_recsys.core.preparing.log_files import LogFile
from ray_recsys.progress import Reporter
from ray_recsys.storage.files import read_text, write_bytes
from ray_recsys.storage.location import Location

Stage = Literal["prepare", "train", "evaluate", "refit", "publish"]
Status = Literal["ran", "resumed", "skipped", "refused"]
CHEAP_BYTES = 64 << 20
_FOLDER = "stages"
_REMARKS: dict[Status, str] = {
    "ran": "running",
    "resumed": "resuming",
    "skipped": "its inputs have not changed",
    "refused": "the model is worse than the live one",
}


class StageRecord(BaseModel):
    """One stage of one pipeline run; kept in the output directory, so that the next run can skip the stage."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    digest: str
    """Of `inputs`: if equal, the stage would give the same result."""
    inputs: dict[str, Any]
    """Files, digests of earlier stages, recipe sections, and versions of the package and of what it writes."""
    status: Status
    seconds: float
    """Of the last time that the stage ran."""
    result: dict[str, Any]

    @classmethod
    def read(cls, output: Location, stage: Stage, digest: str) -> Self | None:
        """Returns the record of a stage with these inputs; None if there is none that can be read."""
        try:
            record = cls.model_validate_json(read_text(output / _FOLDER / f"{stage}.json"))
        except (OSError, UnicodeDecodeError, ValidationError):  # the stage then runs
            return None
        return record if record.digest == digest else None

    def write(self, output: Location) -> None:
        """Writes the record, replacing that of an earlier run."""
        write_bytes(output / _FOLDER / f"{self.stage}.json", f"{self.model_dump_json(indent=2)}\n".encode())


class Stages:
    """Runs stages in order, skips completed ones, and keeps their records."""

    def __init__(self, output: Location, report: Reporter) -> None:
        self.records: list[StageRecord] = []
        self._output = output
        self._report = report

    def after(self, stage: Stage, given: Mapping[str, Any], schema_version: int) -> dict[str, Any]:
        """Returns the inputs of a stage that depends on an earlier one of this run."""
        (before,) = (record.digest for record in self.records if record.stage == stage)
        return with_version({stage: before, **given}, schema_version)

    def go(
        self,
        stage: Stage,
        made_from: dict[str, Any],
        make: Callable[[], None],
        result: Callable[[], dict[str, Any]],
        *,
        status: Status,
    ) -> None:
        """Runs a stage unless its status is `skipped`, and records it with its result, JSON-ready values."""
        digest, start_s = digest_inputs(stage, made_from), time.monotonic()
        self._report(f"{stage}: {_REMARKS[status]}")
        before = StageRecord.read(self._output, stage, digest) if status == "skipped" else None
        if status != "skipped":
            make()
        seconds = before.seconds if before is not None else round(time.monotonic() - start_s, 3)
        record = StageRecord(
            stage=stage, digest=digest, inputs=made_from, status=status, seconds=seconds, result=result()
        )
        if status != "refused":  # otherwise the record of the live version would be lost
            record.write(self._output)
        self.records.append(record)


def digest_inputs(stage: Stage, inputs: Mapping[str, Any]) -> str:
    """Returns the digest of a stage's inputs, JSON-ready values: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps([stage, inputs], sort_keys=True).encode()).hexdigest()[:16]


def with_version(inputs: Mapping[str, Any], schema_version: int) -> dict[str, Any]:
    """Returns a stage's inputs with the versions of the package and of the artefact that the stage writes."""
    return {**inputs, "package": __version__, "schema_version": schema_version}


def identify_files(files: Sequence[LogFile]) -> list[dict[str, Any]]:
    """Returns the identity of each file; see the module."""
    return [{"file": file.uri, "format": file.format, "bytes": file.bytes, **_content(file)} for file in files]


def _content(file: LogFile) -> dict[str, str]:
    if "://" not in file.uri and file.bytes <= CHEAP_BYTES:
        return {"sha256": digest_file(Path(file.uri)).sha256}
    return {"modified_ns": file.version}
