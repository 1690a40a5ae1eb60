"""What a machine under load.py acknowledged before a power cut, and what it must have after it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

# A line that the cut left without its end does not count: nobody has seen it.
_LINE = re.compile(r"^load: (\w+) (\S+) (\d+\.\d+);$", re.M)


@dataclass
class Acknowledged:
    """Requests answered, with the time of the answer; keys that must and must not be there."""

    answered: dict[str, float] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    commits: int = 0
    last: float = 0.0

    @classmethod
    def read(cls, console: str) -> Acknowledged:
        """From everything the console has seen."""
        found = cls()
        for what, name, seconds in _LINE.findall(console):
            found.last = max(found.last, float(seconds))
            if what == "answered":
                found.answered[name] = float(seconds)
            elif what == "added":
                found.stored.add(name)
            elif what == "removing":  # from now on either is right
                found.stored.discard(name)
            elif what == "removed":
                found.gone.add(name)
            found.commits += what in ("added", "removed")
        return found


@dataclass(frozen=True)
class Records:
    """The lines of one audit file: the records, and the lines that are none."""

    whole: list[dict[str, object]]
    torn: list[str]

    @classmethod
    def read(cls, data: bytes) -> Records:
        """From the file's bytes. A last line without its end is torn, too."""
        whole: list[dict[str, object]] = []
        torn = []
        lines = data.decode("ascii", "replace").split("\n")
        for line in filter(None, lines):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                whole.append(record)
            else:
                torn.append(line)
        return cls(whole, torn)

    def requests(self) -> set[str]:
        """The request ids that are in it."""
        return {str(record["request"]) for record in self.whole if "request" in record}

    def swallowed(self) -> list[str]:
        """Torn lines that took a whole record with them: what must not happen."""
        return [line for line in self.torn if any(map(_is_record, _tails(line)))]


def _tails(line: str) -> list[str]:
    return [line[found.start() :] for found in re.finditer(r'\{"time"', line)]


def _is_record(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
