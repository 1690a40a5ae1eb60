"""The tree keeps its shape: what may stand where, who may import whom, what root may load.

Every rule is a function from a tree to the list of its violations. Each has two tests: this tree
has none, and a planted violation is found, so that no rule can pass by seeing nothing.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TOP_LEVEL = {
    *(".ci", ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"),
    *("assistant", "docs", "packaging", "policies", "probes", "proxy"),
    *("pyproject.toml", "sandbox", "supervisor", "tests"),
}
# Made by tools and setup, ignored by git.
PRODUCED = {
    *(".git", ".venv", ".runtime", ".venv.new", ".runtime.new", ".cache", ".hypothesis"),
    *(".clients", ".bench", ".clients.new", ".bench.new"),
    *(".pytest_cache", ".mypy_cache", ".ruff_cache", "__pycache__", "build", "dist"),
}

# Imports run downwards only: what each package may import of the project besides itself.
BELOW = {
    "assistant": set[str](),
    "probes": set[str](),
    "proxy": set[str](),
    "sandbox": set[str](),
    "supervisor": {"probes", "proxy", "sandbox"},
}

# Third-party modules of the parts that are not root's wheels: import name -> Debian package.
DEBIAN = {
    "seccomp": "python3-seccomp",
    "prctl": "python3-prctl",
    "bcc": "python3-bpfcc",
    "cryptography": "python3-cryptography",
    "tpm2_pytss": "python3-tpm2-pytss",
    "rich": "python3-rich",
}
ROOT_MAY = {"seccomp", "prctl"}
# Modules outside the rule above: the helpers with a uid of their own, and the operator's commands.
BESIDES_ROOT = {
    "probes.load": {"bcc"},
    "supervisor.vault": {"cryptography", "tpm2_pytss"},
    "supervisor.cli": {"rich", "cryptography"},
    "supervisor.demo": {"rich"},
}
# These choose one program by its name: what they import inside functions or branches is judged by
# itself, and is not loaded by whoever imports them.
DISPATCHERS = {"probes.__main__", "supervisor.__main__", "supervisor.cli"}

# Import name -> name in packaging/locks/runtime.in, where they differ.
DISTRIBUTION = {"ruamel": "ruamel.yaml", "re2": "google-re2", "phonenumbers": "phonenumberslite"}

# Files over 400 lines, each with the reason why it is still one concept.
LONG_FILES = {
    "probes/watch.bpf.c": "one eBPF object: its programs share maps and inlined functions",
    "sandbox/broker/server.py": "the broker's whole authority, to be read in one sitting",
    "tests/unit/egress/harness.py": "the egress proxy's surroundings: broker, supervisor, upstream",
    "tests/unit/ingress/gateway_rig.py": "the gateway's surroundings: broker, adapters, clients",
}
LINES = 400

REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|(?:deb|security|snapshot|ftp)\.debian\.org"
)


@dataclass(frozen=True)
class Module:
    """One module: the project modules it imports, those it loads, and the foreign ones."""

    name: str
    ours: frozenset[str]
    loads: frozenset[str]
    foreign: frozenset[str]


def files(tree: Path) -> Iterator[Path]:
    """Every file of the tree that is not produced, relative to it."""
    for folder, folders, names in os.walk(tree):
        folders[:] = sorted(name for name in folders if name not in PRODUCED)
        for name in sorted(names):
            yield (Path(folder) / name).relative_to(tree)


def _imported(path: Path, package: str, top: bool) -> Iterator[str]:
    """Dotted names that a file imports, anywhere or at its top; `from a import b`: a and a.b."""
    text = ast.parse(path.read_text(), str(path))
    for node in text.body if top else ast.walk(text):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def modules(tree: Path) -> dict[str, Module]:
    """The project's modules by name; to import a module is to import the packages above it."""
    paths = {}
    for path in files(tree):
        if path.suffix == ".py" and path.parts[0] in BELOW:
            parts = path.with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported = set(_imported(tree / path, package, top=False))
        at_once = set(_imported(tree / path, package, top=name in DISPATCHERS))
        found[name] = Module(
            name,
            _with_parents(imported, paths) - {name},
            _with_parents(at_once, paths) - {name},
            frozenset({i.split(".")[0] for i in imported} - set(BELOW) - sys.stdlib_module_names),
        )
    return found


def _with_parents(imported: set[str], known: Container[str]) -> frozenset[str]:
    ours = {i for i in imported if i in known or i in BELOW}
    return frozenset(ours | {i.rsplit(".", n)[0] for i in ours for n in range(1, i.count(".") + 1)})


def unknown_top_level(tree: Path) -> list[str]:
    """Entries at the top that the architecture does not know."""
    return sorted(entry.name for entry in tree.iterdir() if entry.name not in TOP_LEVEL | PRODUCED)


def upward_imports(tree: Path) -> list[str]:
    """Imports that do not run downwards."""
    return [
        f"{module.name} imports {other}"
        for module in modules(tree).values()
        for other in sorted(module.ours)
        if (there := other.split(".")[0]) != (here := module.name.split(".")[0])
        and there not in BELOW[here]
    ]


def _exception(name: str) -> set[str] | None:
    for prefix, allowed in BESIDES_ROOT.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return allowed
    return None


def foreign_code_in_root(tree: Path) -> list[str]:
    """Third-party modules that a root process would load, followed through every import."""
    known = modules(tree)
    found = []
    for name in known:
        if name.split(".")[0] in ("proxy", "assistant"):
            continue
        allowed = _exception(name)
        if allowed is not None:
            found += [f"{name} loads {f}" for f in known[name].foreign - allowed - ROOT_MAY]
            continue
        reached, todo = set[str](), [name]
        while todo:
            if (here := todo.pop()) in reached or here not in known:
                continue
            reached.add(here)
            todo += known[here].loads
            bad = known[here].foreign - ROOT_MAY
            found += [f"{name} loads {f} through {here}" for f in sorted(bad)]
    return found


def _pins(tree: Path) -> set[str]:
    lines = (tree / "packaging/locks/runtime.in").read_text().splitlines()
    return {m[0].lower() for line in lines if (m := re.match(r"[A-Za-z0-9_.-]+", line))}


def wheels_out_of_step(tree: Path) -> list[str]:
    """Imports of the unprivileged parts without a pin, and pins that nothing imports."""
    pins = _pins(tree)
    used: dict[str, str] = {}
    for module in modules(tree).values():
        if module.name.split(".")[0] in ("proxy", "assistant"):
            used |= {DISTRIBUTION.get(f, f).lower(): module.name for f in module.foreign}
    missing = [f"{who} imports {name}: no pin" for name, who in used.items() if name not in pins]
    idle = pins - set(used)
    return missing + [f"{name} is pinned and not imported" for name in sorted(idle)]


def debian_packages_out_of_step(tree: Path) -> list[str]:
    """Imports of Debian's modules whose package packaging/debian-packages.txt does not list."""
    text = (tree / "packaging/debian-packages.txt").read_text()
    listed = {line.split()[0] for line in text.splitlines() if line.strip()}
    return [
        f"{module.name} imports {name}: {DEBIAN.get(name, 'no Debian package known')} is not listed"
        for module in modules(tree).values()
        if module.name.split(".")[0] not in ("proxy", "assistant")
        for name in sorted(module.foreign)
        if DEBIAN.get(name) not in listed
    ]


def long_files(tree: Path) -> list[str]:
    """Code files over the bound that are not on the list, and list entries that are not needed."""
    counts = {
        str(path): len((tree / path).read_bytes().splitlines())
        for path in files(tree)
        if path.suffix in (".py", ".c", ".h", ".sh")
    }
    over = {path for path, count in counts.items() if count > LINES}
    stale = {path for path in LONG_FILES if (tree / path).exists()} - over
    return [f"{path}: {counts[path]} lines" for path in sorted(over - set(LONG_FILES))] + [
        f"{path} is listed and short" for path in sorted(stale)
    ]


def places_named(tree: Path, machine: str = str(ROOT)) -> list[str]:
    """Lines that name a package registry, or the place where this clone happens to stand."""
    patterns = [REGISTRIES]
    if not machine.startswith(("/usr/", "/var/lib/", "/run/")) and machine.count("/") > 1:
        patterns.append(re.compile(re.escape(machine) + r"(?![\w-])"))
    found = []
    for path in files(tree):
        for number, line in enumerate((tree / path).read_bytes().splitlines(), 1):
            text = line.decode(errors="replace")
            if any(pattern.search(text) for pattern in patterns):
                found.append(f"{path}:{number}")
    return found


Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (
    unknown_top_level,
    upward_imports,
    foreign_code_in_root,
    wheels_out_of_step,
    debian_packages_out_of_step,
    long_files,
    places_named,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_tree_keeps(rule: Rule) -> None:
    assert modules(ROOT), "no module was found: the rules would pass by seeing nothing"
    found = rule(ROOT)
    assert not found, "\n".join(found)


def plant(tree: Path, path: str, text: str) -> None:
    target = tree / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree that keeps every rule."""
    plant(tmp_path, "packaging/locks/runtime.in", "# wheels\nh11==1\nruamel.yaml==1\n")
    plant(tmp_path, "packaging/debian-packages.txt", "# packages\npython3-seccomp  filters\n")
    plant(tmp_path, "sandbox/__init__.py", "")
    plant(
        tmp_path,
        "sandbox/seccomp/__init__.py",
        "import os\nimport seccomp\nfrom sandbox import plan\n",
    )
    plant(tmp_path, "sandbox/plan.py", "")
    plant(tmp_path, "supervisor/__init__.py", "")
    plant(tmp_path, "supervisor/life.py", "from sandbox.seccomp import compile\n")
    plant(tmp_path, "assistant/http.py", "import h11\nfrom ruamel.yaml import YAML\n")
    return tmp_path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_clean_tree_passes(rule: Rule, tree: Path) -> None:
    assert rule(tree) == []


REGISTRY = ".".join(("pypi", "org"))


@pytest.mark.parametrize(
    ("rule", "path", "text", "expected"),
    [
        (unknown_top_level, "utils/x.py", "", "utils"),
        (upward_imports, "sandbox/x.py", "from supervisor import host\n", "imports supervisor"),
        (upward_imports, "sandbox/x.py", "def f():\n    import supervisor.life\n", "supervisor"),
        (upward_imports, "proxy/x.py", "import sandbox.plan\n", "proxy.x imports sandbox"),
        (upward_imports, "supervisor/x.py", "import assistant.http\n", "imports assistant"),
        (upward_imports, "assistant/a/b.py", "import supervisor\n", "imports supervisor"),
        (foreign_code_in_root, "sandbox/x.py", "import yaml\n", "sandbox.x loads yaml"),
        (foreign_code_in_root, "sandbox/plan.py", "import attr\n", "supervisor.life loads attr"),
        (foreign_code_in_root, "supervisor/x.py", "import rich\n", "supervisor.x loads rich"),
        (foreign_code_in_root, "supervisor/x.py", "def f():\n    import jwt\n", "loads jwt"),
        (foreign_code_in_root, "supervisor/vault/x.py", "import h11\n", "vault.x loads h11"),
        (foreign_code_in_root, "probes/read.py", "import bcc\n", "probes.read loads bcc"),
        (wheels_out_of_step, "proxy/x.py", "import httpx\n", "httpx: no pin"),
        (wheels_out_of_step, "assistant/http.py", "import h11\n", "ruamel.yaml is pinned"),
        (debian_packages_out_of_step, "probes/load.py", "import bcc\n", "python3-bpfcc is not"),
        (long_files, "proxy/x.py", "pass\n" * (LINES + 1), "proxy/x.py: 401 lines"),
        (places_named, "docs/x.md", f"see\nhttps://{REGISTRY}/x\n", "docs/x.md:2"),
        (places_named, "docs/x.md", f"cd {ROOT}/supervisor\n", "docs/x.md:1"),
    ],
)
def test_a_violation_is_found(rule: Rule, path: str, text: str, expected: str, tree: Path) -> None:
    plant(tree, path, text)
    assert any(expected in finding for finding in rule(tree)), rule(tree)


def test_a_dispatcher_is_not_what_it_dispatches_to(tree: Path) -> None:
    plant(tree, "supervisor/cli/__init__.py", "def main():\n    import supervisor.cli.run\n")
    plant(tree, "supervisor/cli/run.py", "import rich\n")
    plant(tree, "supervisor/cli/exits.py", "")
    plant(tree, "supervisor/life.py", "from supervisor.cli import exits\n")
    assert foreign_code_in_root(tree) == []
    plant(tree, "supervisor/life.py", "from supervisor.cli import exits, run\n")
    modules.cache_clear()
    assert foreign_code_in_root(tree) == ["supervisor.life loads rich through supervisor.cli.run"]


def test_relative_imports_are_resolved(tree: Path) -> None:
    plant(tree, "probes/__init__.py", "")
    plant(tree, "probes/deep/__init__.py", "")
    plant(tree, "probes/deep/x.py", "from . import y\nfrom ..load import start\n")
    plant(tree, "probes/deep/y.py", "")
    plant(tree, "probes/load.py", "")
    assert modules(tree)["probes.deep.x"].ours >= {"probes.deep.y", "probes.load", "probes.deep"}
