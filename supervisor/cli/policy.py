"""`policy lint`, `explain`, `seccomp`, `digest` and `sign`: without root, without a supervisor,
running nothing."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.cli import exits
from supervisor.cli.place import host_of
from supervisor.cli.terminal import complain, print_json, say
from supervisor.control import ControlError

if TYPE_CHECKING:
    from supervisor.host import Host
    from supervisor.policy.plans import CompiledPolicy


def add(verbs: Any) -> None:
    """Declare the verbs."""
    policy = verbs.add_parser("policy", help="check and explain policy files").add_subparsers(
        metavar="VERB", required=True
    )
    lint = policy.add_parser("lint", help="every mistake with file, line and fix")
    explain = policy.add_parser("explain", help="what a workload may do, and what enforces it")
    seccomp = policy.add_parser("seccomp", help="which system calls it may make, and what says so")
    views = seccomp.add_mutually_exclusive_group()
    for view, text in (
        ("table", "call, verdict, arguments, rule (default)"),
        ("pseudo", "what the filters do with every number"),
        ("bpf", "their instructions"),
    ):
        views.add_argument(f"--{view}", dest="view", action="store_const", const=view, help=text)
    digest = policy.add_parser("digest", help="the digest of all policy files: what is signed")
    sign = policy.add_parser("sign", help="sign all policy files, for hosts with signed = true")
    sign.add_argument("key", metavar="KEY", help="an Ed25519 private key (PEM)")
    for parser in (explain, seccomp):
        parser.add_argument("workload", help="its id")
    for parser, run in (
        (lint, run_lint),
        (explain, run_explain),
        (seccomp, run_seccomp),
        (digest, run_digest),
        (sign, run_sign),
    ):
        parser.add_argument("directory", nargs="?", help="default: paths.policies of the host file")
        parser.add_argument("--json", action="store_true", help="for scripts")
        parser.set_defaults(run=run)


def run_lint(arguments: argparse.Namespace) -> int:
    """0 when every file holds together; 1 with every mistake otherwise. Warnings stop nothing."""
    from supervisor.policy.lint import exit_code, lint

    directory = _directory(arguments)
    findings = lint(directory, groups_from=_groups(arguments, directory))
    if arguments.json:
        print_json([finding.as_json() for finding in findings])
    else:
        for finding in findings:
            say(str(finding))
        errors = sum(finding.severity == "error" for finding in findings)
        say(f"{errors} errors, {len(findings) - errors} warnings")
    return exits.FAILED if exit_code(findings) else exits.OK


def run_explain(arguments: argparse.Namespace) -> int:
    """Print the plan that a start would use, every part with the line that asks for it."""
    from supervisor.policy.explain import explain, explain_json

    found = _compiled(arguments)
    if arguments.json:
        print_json(explain_json(found))
    else:
        say(explain(found).rstrip("\n"))
    return exits.OK


def run_seccomp(arguments: argparse.Namespace) -> int:
    """Print the filters that a start would load; 1 if they answer otherwise than the rules say."""
    from supervisor.policy import filters

    found = filters.filters_of(_compiled(arguments))
    views = {"pseudo": filters.as_pseudo_code, "bpf": filters.as_bpf}
    if arguments.json:
        print_json(filters.filters_json(found))
    else:
        say("\n".join(views.get(arguments.view, filters.as_table)(found)))
    return exits.FAILED if found.wrong else exits.OK


def run_digest(arguments: argparse.Namespace) -> int:
    """Print the digest, for who signs elsewhere."""
    from supervisor.policy.signature import set_digest

    digest = set_digest(_directory(arguments)).hex()
    if arguments.json:
        print_json({"digest": digest})
    else:
        say(digest)
    return exits.OK


def run_sign(arguments: argparse.Namespace) -> int:
    """Write the signature beside the policies; refuses policies that do not hold together."""
    from supervisor.policy.lint import exit_code, lint
    from supervisor.policy.signature import CONTEXT, FILE, set_digest

    directory = _directory(arguments)
    if exit_code(lint(directory, groups_from=_groups(arguments, directory))):
        raise ControlError(
            "not_sound", f"{directory} has mistakes", "see `anchorhold policy lint`", exits.FAILED
        )
    digest = set_digest(directory)
    signature = _private_key(Path(arguments.key)).sign(CONTEXT + digest)
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    (directory / FILE).write_text(text + "\n")
    if arguments.json:
        print_json({"digest": digest.hex(), "signature": text, "file": str(directory / FILE)})
    else:
        say(f"signed {digest.hex()}: {directory / FILE}")
    return exits.OK


def _private_key(path: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from supervisor.cli.secrets import typed

    pem = path.read_bytes()
    password = typed(f"password of {path}: ") if b"ENCRYPTED" in pem else None
    try:
        key = load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ControlError(
            "no_key",
            f"{path} is no Ed25519 private key, or the password is another one",
            f"openssl genpkey -algorithm ed25519 -out {path}",
            exits.USAGE,
        )
    return key


def _compiled(arguments: argparse.Namespace) -> CompiledPolicy:
    from supervisor.policy.lint import compile_anywhere

    host = _host(arguments)
    directory = _directory(arguments)
    groups = _groups(arguments, directory)
    compiled, errors = compile_anywhere(directory, host, groups_from=groups)
    found = compiled.get(arguments.workload)
    if found is None:
        mistakes = "".join(f"\n  {error}" for error in errors)
        raise ControlError(
            "no_policy",
            f"there is no sound policy for {arguments.workload}{mistakes}",
            f"one of: {', '.join(sorted(compiled)) or 'none'}",
            exits.FAILED if errors else exits.USAGE,
        )
    return found


def _directory(arguments: argparse.Namespace) -> Path:
    directory = Path(arguments.directory or host_of(arguments).paths.policies)
    if not directory.is_dir():
        raise ControlError(
            "no_directory",
            f"{directory} is no directory",
            "name a directory of policy files",
            exits.USAGE,
        )
    return directory


def _groups(arguments: argparse.Namespace, directory: Path) -> Path:
    """The directory's groups; the installed ones where it has none, and then that is said."""
    own = directory / "groups"
    if own.exists():
        return own
    present = Path(arguments.host_file).exists()
    shipped = Path(__file__).resolve().parents[2] / "policies"
    installed = Path(host_of(arguments).paths.policies if present else shipped, "groups")
    complain(f"no groups in {directory}: those of {installed} are used")
    return installed


def _host(arguments: argparse.Namespace) -> Host:
    """The host file, or the directory's own demo host where this machine has none."""
    shipped = Path(arguments.directory or ".", "hosts", "demo.toml")
    if arguments.directory and shipped.exists() and not Path(arguments.host_file).exists():
        arguments.host_file = str(shipped)
    return host_of(arguments)
