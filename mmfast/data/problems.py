"""What is wrong with a row, said once, by name: every reader and builder raises BadRow, every report lists Problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class BadRow(ValueError):
    """One row cannot become an example. `kind` groups the report; the message says what and, where it can, the fix."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:  # it travels to workers and back
        return BadRow, (self.kind, str(self))


def check_texts(value: Any) -> None:
    """Raises BadRow where a text holds half a character. JSON can write one ("\\ud83d"); UTF-8 and tokenizers
    cannot."""
    left = [("", value)]
    while left:
        place, item = left.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(item[error.start]):04x}"
                before = item[max(0, error.start - 20) : error.start].encode(errors="replace").decode()
                cut = f"{place or 'the text'} holds {half}, half of a character, after {before!r}"
                raise BadRow("text", f"{cut}: it was cut there, and cannot be written or tokenised") from None
        elif isinstance(item, dict):
            left += [(f"a name in {place or 'the row'}", key) for key in item if isinstance(key, str)]
            left += [(f"{place}.{key}" if place else str(key), v) for key, v in item.items() if _holds_text(v)]
        elif isinstance(item, list | tuple):
            left += [(f"{place}[{i}]", v) for i, v in enumerate(item) if _holds_text(v)]


def _holds_text(value: Any) -> bool:
    return not value.isascii() if isinstance(value, str) else isinstance(value, dict | list | tuple)


@dataclass(frozen=True, slots=True)
class Problem:
    source: str  # "file:row"
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message} [{self.kind}]"


def pass_over(source: str, error: BadRow, problems: list[Problem] | None) -> None:
    """A bad row is listed in `problems`; where there is no such list, it ends the work."""
    if problems is None:
        raise ValueError(f"{source}: {error}") from None
    problems.append(Problem(source, error.kind, str(error)))


@dataclass(slots=True)
class Report:
    """What became of every row of a build: nothing is dropped, cut or reinterpreted without a line here."""

    rows: int = 0
    examples: int = 0
    dropped: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)  # kept, but changed or noteworthy (truncated, ...)
    unused: dict[str, int] = field(default_factory=dict)  # columns that nothing was made of -> rows that have them

    def counts(self) -> dict[str, int]:
        return dict(Counter(p.kind for p in self.dropped) + Counter(p.kind for p in self.notes))

    def summary(self) -> str:
        parts = [f"{self.examples} examples from {self.rows} rows"]
        for title, problems in (("dropped", self.dropped), ("noted", self.notes)):
            if problems:
                kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(p.kind for p in problems).items()))
                parts.append(f"{title}: {kinds}")
        if self.unused:
            parts.append(unused_line(self.unused))
        return "; ".join(parts)

    def merge(self, other: Report) -> None:
        self.rows += other.rows
        self.examples += other.examples
        self.dropped += other.dropped
        self.notes += other.notes
        self.count_unused(other.unused)

    def count_unused(self, columns: Mapping[str, int]) -> None:
        for name, n in columns.items():
            self.unused[name] = self.unused.get(name, 0) + n

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Report:
        return Report(
            rows=value["rows"],
            examples=value["examples"],
            dropped=[Problem(**p) for p in value["dropped"]],
            notes=[Problem(**p) for p in value["notes"]],
            unused=value["unused"],
        )


def unused_line(columns: Mapping[str, int]) -> str:
    """One line: which columns of how many rows nothing was made of."""
    listed = ", ".join(f"{name} ({n} row{'s' * (n != 1)})" for name, n in sorted(columns.items()))
    return f"columns kept in meta and not used: {listed}"
