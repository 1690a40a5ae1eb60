"""Strict TOML with positions: the one reader of policy, group and host files.

The standard library parses; a line scanner beside it records where each key stands and refuses what
is legal TOML but easy to misread: keys joined to a table across a blank line, indented, quoted or
dotted keys, nested headers, multi-line strings, anything but plain ASCII with LF line ends.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from supervisor.policy.errors import PolicyError

SIZE_MAX = 65536
_HEADER = re.compile(r"(\[\[|\[)([a-z][a-z0-9_]*)(\]\]|\])\s*(?:#.*)?")
_KEY = re.compile(r"([a-z][a-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_TYPE_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "a list"}


@dataclass
class Block:
    """A table header and the keys under it, with line numbers; `name` is "" for the top."""

    name: str
    array: bool
    line: int
    keys: dict[str, int] = field(default_factory=dict)


@dataclass
class Document:
    """A parsed file: TOML data, the blocks in file order, and every mistake found so far."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    errors: list[PolicyError] = field(default_factory=list)

    def fail(
        self, code: str, line: int, where: str, message: str, fix: str, rule: str | None = None
    ) -> None:
        """Record one mistake and go on: a reader wants all of them at once."""
        self.errors.append(PolicyError(code, self.file, line, where, message, fix, rule))

    def top(self) -> Table:
        """The keys before the first header."""
        blocks = {block.name for block in self.blocks if block.name}
        values = {k: v for k, v in self.data.items() if k not in blocks}
        return Table(self, "", values, self.blocks[0].line, self.blocks[0].keys)

    def one(self, name: str) -> Table | None:
        """The table ``[name]``, or None if the file has none."""
        block = next((b for b in self.blocks if b.name == name), None)
        return Table(self, name, self.data[name], block.line, block.keys) if block else None

    def many(self, name: str) -> list[Table]:
        """Every ``[[name]]`` in file order."""
        blocks = [b for b in self.blocks if b.name == name]
        values = self.data.get(name, [])
        return [Table(self, name, v, b.line, b.keys) for v, b in zip(values, blocks, strict=True)]


class Table:
    """Typed access to one table. Each getter takes its key; `finish` refuses the keys not taken.

    A getter that finds a mistake records it and returns an empty value of the right type; the
    caller drops the whole file when the document has errors.
    """

    def __init__(
        self,
        document: Document,
        path: str,
        values: dict[str, Any],
        line: int,
        lines: dict[str, int],
    ) -> None:
        self.document = document
        self.path = path
        self.values = dict(values)
        self.line = line
        self.lines = lines
        self.rule: str | None = None
        self._taken: set[str] = set()

    def at(self, key: str) -> int:
        """The line of `key`, or of the table if the key is missing."""
        return self.lines.get(key, self.line)

    def fail(self, code: str, key: str, message: str, fix: str) -> None:
        """Record a mistake at `key` of this table."""
        where = f"{self.path}.{key}" if self.path else key
        self.document.fail(code, self.at(key), where, message, fix, self.rule)

    def has(self, key: str) -> bool:
        """Whether the file gives `key` here."""
        return key in self.values

    def _take(self, key: str, kind: type, required: bool) -> Any:
        self._taken.add(key)
        if key not in self.values:
            if required:
                self.fail("missing-key", key, f"{key} is missing", f"add {key} = ...")
            return None
        value = self.values[key]
        if type(value) is not kind:
            wanted = _TYPE_NAMES.get(kind, "an inline table { ... }")
            self.fail("wrong-type", key, f"{key} must be {wanted}", f"write {key} as {wanted}")
            return None
        return value

    def string(
        self, key: str, pattern: str = r".+", default: str | None = None, what: str = ""
    ) -> str:
        """A string matching `pattern` in full; `default` makes it optional."""
        value = self._take(key, str, default is None)
        if value is None:
            return default or ""
        if not re.fullmatch(pattern, value):
            self.fail(
                "bad-value",
                key,
                f"{value!r} is not {what or 'allowed here'}",
                f"use {what or pattern}",
            )
            return ""
        return str(value)

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        """One of the words in `choices`."""
        value = self._take(key, str, default is None)
        if value is None:
            return default or ""
        if value not in (allowed := list(choices)):
            self.fail(
                "bad-value", key, f"{value!r} is not known", "use one of " + ", ".join(allowed)
            )
            return ""
        return str(value)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(key, int, default is None)
        if value is None:
            return default or 0
        if not low <= value <= high:
            self.fail("out-of-range", key, f"{value} is out of range", f"use {low} to {high}")
            return 0
        return int(value)

    def integers(self, key: str, low: int, high: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of different whole numbers from `low` to `high`, sorted."""
        value = self._take(key, list, False)
        if value is None:
            return default
        good = bool(value) and len(set(map(repr, value))) == len(value)
        if not good or any(type(item) is not int or not low <= item <= high for item in value):
            fix = f"list different numbers from {low} to {high}, such as [7, 11]"
            self.fail("bad-value", key, f"{key} is no list of numbers", fix)
            return default
        return tuple(sorted(value))

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, bool, False)
        return default if value is None else bool(value)

    def day(self, key: str, required: bool = True) -> date | None:
        """A TOML local date such as 2027-03-01 (without quotes or time)."""
        self._taken.add(key)
        value = self.values.get(key)
        if value is None:
            if required:
                self.fail("missing-key", key, f"{key} is missing", f"add {key} = 2027-03-01")
            return None
        if not isinstance(value, date) or isinstance(value, datetime):
            self.fail("wrong-type", key, f"{key} must be a date", "write 2027-03-01 without quotes")
            return None
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Bytes, written as "64KiB", "256MiB" or "1GiB"."""
        text = self.string(
            key, r"[1-9][0-9]{0,6}(KiB|MiB|GiB)", None if default is None else "", 'such as "64MiB"'
        )
        return int(text[:-3]) * _UNITS[text[-3:]] if text else default or 0

    def rate(self, key: str) -> int:
        """Bytes a second, written as "20MiB/s"; 0 if the file gives none."""
        text = self.string(key, r"[1-9][0-9]{0,6}(KiB|MiB|GiB)/s", "", 'such as "20MiB/s"')
        return int(text[:-5]) * _UNITS[text[-5:-2]] if text else 0

    def percent(self, key: str, default: float | None = None) -> float | None:
        """A share of one core, written as "50%"; more than "100%" is several cores."""
        text = self.string(key, r"[1-9][0-9]{0,4}%", "", 'such as "50%"')
        return int(text[:-1]) / 100 if text else default

    def strings(
        self, key: str, pattern: str = r".+", required: bool = True, what: str = ""
    ) -> tuple[str, ...]:
        """A list of different strings, each matching `pattern` in full."""
        value = self._take(key, list, required)
        if value is None:
            return ()
        for item in value:
            if type(item) is not str:
                self.fail(
                    "wrong-type", key, f"{key} holds {item!r}", f"make {key} a list of strings"
                )
                return ()
            if not re.fullmatch(pattern, item):
                self.fail(
                    "bad-value",
                    key,
                    f"{item!r} is not {what or 'allowed'}",
                    f"use {what or pattern}",
                )
                return ()
        if len(set(value)) != len(value):
            self.fail("duplicate-value", key, f"{key} lists a value twice", "list each value once")
        if required and not value:
            self.fail("bad-value", key, f"{key} is empty", f"name at least one, or leave {key} out")
        return tuple(value)

    def strings_in_order(self, key: str) -> tuple[str, ...]:
        """A list of strings in which order and repetition mean something: a command line."""
        value = self._take(key, list, True)
        if value is None:
            return ()
        if not value or any(type(item) is not str or not item for item in value):
            self.fail("wrong-type", key, f"{key} is not a command line", "list non-empty strings")
            return ()
        return tuple(value)

    def words(self, key: str, choices: Iterable[str], required: bool = True) -> tuple[str, ...]:
        """A list of different words out of `choices`."""
        allowed = list(choices)
        pattern = "|".join(map(re.escape, allowed))
        return self.strings(key, pattern, required, "one of " + ", ".join(allowed))

    def table(self, key: str, required: bool = True) -> Table | None:
        """The inline table at `key`."""
        value = self._take(key, dict, required)
        if value is None:
            return None
        line = self.at(key)
        path = f"{self.path}.{key}" if self.path else key
        inner = Table(self.document, path, value, line, dict.fromkeys(value, line))
        inner.rule = self.rule
        return inner

    def finish(self, known: str = "") -> None:
        """Refuse every key that nobody asked for."""
        asked = known or ", ".join(sorted(self._taken))
        for key in self.values:
            if key not in self._taken:
                self.fail("unknown-key", key, f"unknown key {key}", f"known here: {asked}")


def parse_document(
    text: bytes, file: str, tables: Iterable[str] = (), arrays: Iterable[str] = ()
) -> Document:
    """Read `text`; `tables` may appear as ``[name]``, `arrays` as ``[[name]]``, nothing else.

    Never raises: mistakes stand in `errors`, and then `data` may be empty.
    """
    document = Document(file, blocks=[Block("", False, 1)])
    if not _plain(document, text):
        return document
    content = text.decode("ascii")
    try:
        document.data = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else content.count("\n") + 1
        document.fail("not-toml", line, "-", f"not valid TOML: {error}", "correct this line")
        return document
    _scan(document, content, set(tables), set(arrays))
    return document


def read_document(path: Path, tables: Iterable[str] = (), arrays: Iterable[str] = ()) -> Document:
    """`parse_document` of a regular file that is not a symbolic link; `file` is the base name."""
    document = Document(path.name, blocks=[Block("", False, 1)])
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        message = f"cannot open {path}: {error.strerror}"
        document.fail("unreadable", 0, "-", message, "make it a readable file")
        return document
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        message = f"{path} is not a regular file"
        document.fail("unreadable", 0, "-", message, "make it a regular file")
        return document
    with os.fdopen(handle, "rb") as stream:
        return parse_document(stream.read(SIZE_MAX + 1), path.name, tables, arrays)


def _plain(document: Document, text: bytes) -> bool:
    """Size and character checks; homoglyphs and hidden line ends are how reviews are fooled."""
    if len(text) > SIZE_MAX:
        document.fail("too-long", 1, "-", f"longer than {SIZE_MAX} bytes", "split or shorten it")
    elif wrong := re.search(rb"[^\x20-\x7e\n]", text):
        line = text.count(b"\n", 0, wrong.start()) + 1
        byte = wrong[0][0]
        name = {0x0D: "a carriage return", 0x09: "a tab"}.get(byte, f"byte 0x{byte:02x}")
        document.fail(
            "not-ascii",
            line,
            "-",
            f"{name} in the file",
            "use plain ASCII, spaces and LF line ends",
        )
    return not document.errors


def _scan(document: Document, content: str, tables: set[str], arrays: set[str]) -> None:
    """Record where headers and keys stand. The text is valid TOML, so line shapes suffice."""
    block = document.blocks[0]
    depth, gap = 0, False
    for number, line in enumerate(content.split("\n"), 1):
        if depth:
            depth += _depth(document, number, line)
        elif not line.strip():
            gap = True
        elif line.lstrip().startswith("#"):
            continue
        elif header := _HEADER.fullmatch(line):
            block = Block(header[2], header[1] == "[[", number)
            known = arrays if block.array else tables
            if block.name not in known or (header[1] == "[[") != (header[3] == "]]"):
                legal = [f"[{name}]" for name in sorted(tables)]
                legal += [f"[[{name}]]" for name in sorted(arrays)]
                document.fail(
                    "unknown-table", number, block.name, f"unknown table {line.strip()}",
                    "known: " + (", ".join(legal) or "none"),
                )  # fmt: skip
            document.blocks.append(block)
            gap = False
        elif key := _KEY.fullmatch(line):
            if gap and block.name:
                document.fail(
                    "stray-key", number, f"{block.name}.{key[1]}",
                    f"{key[1]} after a blank line would join the table of line {block.line}",
                    "move it up to its table, or above the first [header]",
                )  # fmt: skip
            block.keys[key[1]] = number
            depth = _depth(document, number, key[2])
        else:
            document.fail(
                "not-plain", number, "-", f"not a plain line: {line.strip()!r}",
                "write  key = value  or [table] from the first column, keys in a-z, 0-9 and _",
            )  # fmt: skip


def _depth(document: Document, number: int, text: str) -> int:
    """How many brackets the text leaves open, outside strings and comments."""
    depth, quote, index = 0, "", 0
    while index < len(text):
        char = text[index]
        if quote:
            if char == "\\" and quote == '"':
                index += 1
            elif char == quote:
                quote = ""
        elif text[index : index + 3] in ('"""', "'''"):
            document.fail(
                "not-plain", number, "-", "multi-line string", "write the text on one line"
            )
            return 0
        elif char in "\"'":
            quote = char
        elif char == "#":
            break
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        index += 1
    return depth
