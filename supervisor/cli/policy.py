"""`policy lint` and `policy explain`: without root, without a supervisor, running nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.cli import exits
from supervisor.cli.place import host_of
from supervisor.cli.terminal import print_json, say
from supervisor.control import ControlError

if TYPE_CHECKING:
    from supervisor.host import Host
    from supervisor.policy.errors import PolicyError
    from supervisor.policy.plans import CompiledPolicy


def add(verbs: Any) -> None:
    """Declare the verbs."""
    policy = verbs.add_parser("policy", help="check and explain policy files").add_subparsers(
        metavar="VERB", required=True
    )
    lint = policy.add_parser("lint", help="every mistake with file, line and fix")
    explain = policy.add_parser("explain", help="what a workload may do, and what enforces it")
    explain.add_argument("name", help="a workload id")
    for parser, run in ((lint, run_lint), (explain, run_explain)):
        parser.add_argument("directory", nargs="?", help="default: paths.policies of the host file")
        parser.add_argument("--json", action="store_true", help="for scripts")
        parser.set_defaults(run=run)


def run_lint(arguments: argparse.Namespace) -> int:
    """0 when every file compiles on this host; 1 with every mistake otherwise."""
    compiled, errors = _compile(arguments)
    if arguments.json:
        print_json([error.as_json() for error in errors])
    else:
        for error in errors:
            say(str(error))
        say(f"{len(compiled)} policies are sound, {len(errors)} mistakes")
    return exits.FAILED if errors else exits.OK


def run_explain(arguments: argparse.Namespace) -> int:
    """Print the compiled policy: the very plan that a start would use."""
    compiled, errors = _compile(arguments)
    found = compiled.get(arguments.name)
    if found is None:
        own = [str(error) for error in errors]
        raise ControlError(
            "no_policy",
            f"no sound policy for {arguments.name}" + "".join(f"\n{line}" for line in own),
            f"one of: {', '.join(sorted(compiled)) or 'none'}",
            exits.FAILED if own else exits.USAGE,
        )
    from supervisor.policy.explain import as_data, as_text

    if arguments.json:
        print_json(as_data(found))
    else:
        say(as_text(found))
    return exits.OK


def _compile(
    arguments: argparse.Namespace,
) -> tuple[dict[str, CompiledPolicy], list[PolicyError]]:
    """Every policy of the directory compiled as `up` would, and every mistake."""
    from supervisor.policy.compile import compile_policies
    from supervisor.policy.context import host_context
    from supervisor.policy.errors import PolicyErrors
    from supervisor.policy.parse import load_directory

    host = _host(arguments)
    directory = Path(arguments.directory or host.paths.policies)
    policies, errors = load_directory(directory)
    # The token is made at each start; its shape is all that a plan depends on.
    tokens = {policy.id: "anchorhold-placeholder-" + "0" * 32 for policy in policies}
    try:
        context = host_context(policies, host, tokens, groups=directory / "groups")
    except PolicyErrors as broken:
        return {}, [*errors, *broken.errors]
    return compile_policies(policies, host, context, errors), errors


def _host(arguments: argparse.Namespace) -> Host:
    """The host file, or the directory's own demo host where this machine has none."""
    shipped = Path(arguments.directory or ".", "hosts", "demo.toml")
    if arguments.directory and shipped.exists() and not Path(arguments.host_file).exists():
        arguments.host_file = str(shipped)
    return host_of(arguments)
