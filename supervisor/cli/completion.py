"""`completion SHELL`: a completion script, made from the command line's own declaration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

from supervisor.cli import exits

_BASH = """\
# bash completion for anchorhold: source it, or put it into /etc/bash_completion.d/
_anchorhold_workloads() {{  # the first id of every policy file; asks no supervisor
    local folder
    folder=$(sed -n 's/^policies *= *"\\(.*\\)".*/\\1/p' "$1" 2>/dev/null)
    # compgen expands what it is given: nothing but the characters of an id comes through
    [ -z "$folder" ] || grep -hm1 '^id *=' "$folder"/*.toml 2>/dev/null |
        sed -n 's/^id *= *"\\([a-z0-9.-]*\\)".*/\\1/p'
}}
_anchorhold() {{
    local here=${{COMP_WORDS[COMP_CWORD]}} path= word words= before= host_file={host_file}
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        if [ "$before" = --host-file ]; then host_file=$word
        else case $word in -*) ;; *) path="$path $word" ;; esac; fi
        before=$word
    done
    [ "$before" != --host-file ] || path=-
    case "${{path# }}" in
{cases}
        *) COMPREPLY=($(compgen -f -- "$here")); return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$here"))
    [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "$here"))
}}
complete -o filenames -F _anchorhold anchorhold
"""
_ZSH = """\
#compdef anchorhold
# zsh completion for anchorhold: put it as _anchorhold into a folder of $fpath
_anchorhold() {{
    local path= word
    local -a choices
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        [[ $word == -* ]] || path="$path $word"
    done
    case "${{path# }}" in
{cases}
        *) _files; return ;;
    esac
    _describe 'anchorhold' choices || _files
}}
_anchorhold "$@"
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("completion", help="print a shell completion script")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from supervisor.cli.run import parser

    tree = list(_walk(parser(), ()))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](tree), end="")
    return exits.OK


class Node(NamedTuple):
    """A verb's path, what may follow it as (word, help), and whether a workload's id may."""

    path: tuple[str, ...]
    words: list[tuple[str, str]]
    workload: bool


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[Node]:
    """Every verb path with what may follow it."""
    workload = False
    words: list[tuple[str, str]] = []
    deeper: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            words += [(name, helps.get(name, "")) for name in action.choices]
            deeper += action.choices.items()
        elif action.option_strings:
            words.append(
                (action.option_strings[-1], (action.help or "").replace("%(default)s", ""))
            )
        elif action.choices:
            words += [(str(choice), "") for choice in action.choices]
        else:
            workload |= action.dest == "workload"
    yield Node(path, words, workload)
    for name, below in deeper:
        yield from _walk(below, (*path, name))


def _bash(tree: list[Node]) -> str:
    from supervisor.cli.run import DEFAULT_HOST_FILE

    cases = []
    for path, words, workload in tree:
        ids = ' $(_anchorhold_workloads "$host_file")' if workload else ""
        cases.append(
            f"        '{' '.join(path)}') words=\"{' '.join(w for w, _ in words)}{ids}\" ;;"
        )
    return _BASH.format(cases="\n".join(cases), host_file=DEFAULT_HOST_FILE)


def _zsh(tree: list[Node]) -> str:
    cases = []
    for path, words, _ in tree:
        choices = " ".join(f"'{word}:{_plain(help_)}'" for word, help_ in words)
        cases.append(f"        '{' '.join(path)}') choices=({choices}) ;;")
    return _ZSH.format(cases="\n".join(cases))


def _fish(tree: list[Node]) -> str:
    lines = ["# fish completion for anchorhold: put it into ~/.config/fish/completions/"]
    for path, words, _ in tree:
        inner = {word for word, _ in words if not word.startswith("-")}
        seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in path)
        unseen = f"not __fish_seen_subcommand_from {' '.join(sorted(inner))}" if inner else ""
        condition = "; and ".join(part for part in (seen, unseen) if part) or "true"
        for word, help_ in words:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-f -a {word}"
            what = f"-s {word[1:]}" if len(word) == 2 and word[0] == "-" else what
            lines.append(f"complete -c anchorhold -n '{condition}' {what} -d '{_plain(help_)}'")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("'", "").replace(":", ",")
