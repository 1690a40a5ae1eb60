"""What can be wrong with a policy, group or host file, said so that one line can be fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PolicyError(Exception):
    """One mistake. `code` is stable; `field` is the dotted path; `rule` is the id of the block.

    Line 0 is a file of which no line was read.
    """

    code: str
    file: str
    line: int
    field: str
    message: str
    fix: str
    rule: str | None = None

    def __str__(self) -> str:
        rule = f" [rule {self.rule}]" if self.rule else ""
        where = f"{self.file}:{self.line}:{self.field}" if self.line else self.file
        return f"{where}: {self.message}{rule} ({self.code}) - {self.fix}"

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, for ``--json`` views."""
        return {
            "code": self.code,
            "file": self.file,
            "line": self.line,
            "field": self.field,
            "rule": self.rule,
            "message": self.message,
            "fix": self.fix,
        }


class PolicyErrors(Exception):
    """Several mistakes found together; `errors` keeps file order."""

    def __init__(self, errors: Sequence[PolicyError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))
