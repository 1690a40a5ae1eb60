"""Groups of system calls: versioned data that policies name, and the baseline under all of them.

A group only allows. The baseline only refuses: calls that kill, calls that fail with a plain errno,
and argument values and flag bits that stay forbidden even where a group allows the call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from supervisor.policy.constants import CONSTANTS
from supervisor.policy.document import Document, Table, read_document
from supervisor.policy.errors import PolicyError

GROUP_SCHEMA, BASELINE_SCHEMA = "anchorhold.group/1", "anchorhold.baseline/1"
_CALL = r"[a-z][a-z0-9_]*|#[0-9]{3}"
_ERRNO = ("EPERM", "ENOSYS", "EAFNOSUPPORT", "EINVAL", "ENOTTY")


@dataclass(frozen=True, slots=True)
class CallSet:
    """System calls with the reason why they are named; `action` is "allow", "kill" or an errno."""

    id: str
    why: str
    calls: tuple[str, ...]
    action: str


@dataclass(frozen=True, slots=True)
class ArgumentSet:
    """One 32-bit argument of some calls. What `values` mean depends on where it stands:

    `only`: the values allowed, all others get `action`. In a group: allowed by it. In the baseline:
    what any group may allow.
    `never`: values (or sets of bits, if `bits`) that get `action`, save where the policy declares a
    just-in-time compiler and `unless_jit` stands.
    """

    id: str
    why: str
    calls: tuple[str, ...]
    argument: int
    values: tuple[int, ...]
    names: tuple[str, ...]
    action: str
    bits: bool = False
    unless_jit: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """One group file; `name` includes the version: "python-service/1"."""

    name: str
    why: str
    allow: tuple[CallSet, ...]
    only: tuple[ArgumentSet, ...]

    def parts(self) -> tuple[CallSet | ArgumentSet, ...]:
        """Both kinds of sets, in file order of each."""
        return (*self.allow, *self.only)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is refused everywhere. A call in `kill` is high-risk: attempts end the process.

    `sets` holds where no group names the call; `only` and `never` also where one does.
    """

    version: int
    sets: tuple[CallSet, ...]
    only: tuple[ArgumentSet, ...]
    never: tuple[ArgumentSet, ...]

    def high_risk(self) -> frozenset[str]:
        """The calls whose mere attempt kills."""
        return frozenset(c for s in self.sets if s.action == "kill" for c in s.calls)


def load_groups(
    directory: Path | str,
) -> tuple[dict[str, Group], Baseline | None, list[PolicyError]]:
    """Every group in `directory` by "name/version", and the baseline; broken files left out."""
    groups: dict[str, Group] = {}
    baseline: Baseline | None = None
    errors: list[PolicyError] = []
    folder = Path(directory)
    paths = sorted(folder.glob("*.toml"))
    if folder / "baseline.toml" not in paths:
        fix = "restore baseline.toml from the package"
        errors.append(PolicyError("unreadable", "baseline.toml", 1, "-", "no such file", fix))
    for path in paths:
        if path.name == "baseline.toml":
            arrays = ("kill", "refuse", "only", "never", "never_bits")
            document = read_document(path, (), arrays)
            baseline = None if document.errors else _baseline(document)
            baseline = None if document.errors else baseline
        else:
            document = read_document(path, (), ("allow", "only"))
            group = None if document.errors else _group(document)
            if group and not document.errors:
                groups[group.name] = group
        errors += document.errors
    return groups, baseline, errors


def _group(document: Document) -> Group:
    top = document.top()
    top.choice("schema", [GROUP_SCHEMA])
    name, version = top.string("name", r"[a-z][a-z0-9-]*"), top.integer("version", 1, 9999)
    why = top.string("why")
    top.finish()
    if name and document.file != f"{name}.toml":
        top.fail(
            "bad-file-name", "name", f"{name} stands in {document.file}", f"name it {name}.toml"
        )
    allow = tuple(_call_set(table, "allow") for table in document.many("allow"))
    return Group(f"{name}/{version}", why, allow, _only(document))


def _baseline(document: Document) -> Baseline:
    top = document.top()
    top.choice("schema", [BASELINE_SCHEMA])
    version = top.integer("version", 1, 9999)
    top.finish()
    kill = tuple(_call_set(table, "kill") for table in document.many("kill"))
    refuse = tuple(_call_set(t, t.choice("errno", _ERRNO)) for t in document.many("refuse"))
    actions = ("kill", *_ERRNO)
    never = [
        _argument_set(table, table.choice("action", actions), array == "never_bits")
        for array in ("never", "never_bits")
        for table in document.many(array)
    ]
    return Baseline(version, kill + refuse, _only(document), tuple(never))


def _only(document: Document) -> tuple[ArgumentSet, ...]:
    return tuple(
        _argument_set(table, table.choice("otherwise", _ERRNO), False)
        for table in document.many("only")
    )


def _call_set(table: Table, action: str) -> CallSet:
    table.rule = table.string("id", r"[a-z][a-z0-9-]*")
    calls = table.strings("calls", _CALL, what="a system call name or #number")
    found = CallSet(table.rule, table.string("why"), tuple(sorted(calls)), action)
    table.finish()
    return found


def _argument_set(table: Table, action: str, bits: bool) -> ArgumentSet:
    table.rule = table.string("id", r"[a-z][a-z0-9-]*")
    calls = table.strings("calls", _CALL, what="a system call name or #number")
    argument = table.integer("argument", 0, 5)
    names = table.words("values", CONSTANTS)
    unless_jit = bits and table.has("unless") and table.choice("unless", ("jit",)) == "jit"
    found = ArgumentSet(
        table.rule,
        table.string("why"),
        tuple(sorted(calls)),
        argument,
        tuple(sorted(CONSTANTS[name] for name in names)),
        names,
        action,
        bits,
        unless_jit,
    )
    table.finish()
    return found


def named_calls(groups: Iterable[Group]) -> frozenset[str]:
    """Every call that some group allows, argument tests or not."""
    return frozenset(call for group in groups for part in group.parts() for call in part.calls)
