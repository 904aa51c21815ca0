"""Rows that were dropped: counted by reason, with a few examples of each."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

MAX_EXAMPLES = 100
Example = dict[str, Any]


class DropLog:
    """Counts by reason and up to `MAX_EXAMPLES` examples of each; logs of several tasks merge into one."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[Example]] = {}

    def add(self, reason: str, count: int, examples: Iterable[Example] = ()) -> None:
        """Counts `count` more rows under a reason."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept.extend(example for example, _ in zip(examples, range(MAX_EXAMPLES - len(kept)), strict=False))

    def merge(self, other: "DropLog") -> None:
        """Adds another log's counts and examples."""
        for reason, count in other.counts.items():
            self.add(reason, count, other.examples[reason])

    @property
    def total(self) -> int:
        """Rows dropped for any reason."""
        return sum(self.counts.values())

    def describe(self, reasons: Sequence[str] | None = None) -> str:
        """Returns `12 rare_item, 3 rare_user`, by descending count."""
        ordered = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return ", ".join(f"{count:,} {reason}" for reason, count in ordered if reasons is None or reason in reasons)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready form that `from_json` reads."""
        return {"counts": self.counts, "examples": self.examples}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Returns the log that `to_json` wrote."""
        log = cls()
        log.counts, log.examples = dict(data["counts"]), dict(data["examples"])
        return log

    def write_examples(self, directory: Path) -> None:
        """Writes `<reason>.jsonl` for every reason."""
        directory.mkdir(exist_ok=True)
        for reason, examples in self.examples.items():
            lines = [json.dumps(example, ensure_ascii=False, default=str) + "\n" for example in examples]
            (directory / f"{reason}.jsonl").write_text("".join(lines), encoding="utf8")
