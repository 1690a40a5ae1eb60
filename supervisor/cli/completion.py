"""`completion SHELL`: a completion script, made from the command line's own declaration."""

from __future__ import annotations

import argparse
from typing import Any

from supervisor.cli import exits

_BASH = """\
# bash completion for anchorhold: source it, or put it into /etc/bash_completion.d/
_anchorhold() {{
    local here=${{COMP_WORDS[COMP_CWORD]}} path= word words=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*) ;; *) path="$path $word" ;; esac
    done
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


Node = tuple[tuple[str, ...], list[tuple[str, str]]]


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Any:
    """Every verb path with what may follow it: (word, help)."""
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
    yield path, words
    for name, below in deeper:
        yield from _walk(below, (*path, name))


def _bash(tree: list[Node]) -> str:
    cases = [f"        '{' '.join(path)}') words='{' '.join(w for w, _ in words)}' ;;"
             for path, words in tree]  # fmt: skip
    return _BASH.format(cases="\n".join(cases))


def _zsh(tree: list[Node]) -> str:
    cases = []
    for path, words in tree:
        choices = " ".join(f"'{word}:{_plain(help_)}'" for word, help_ in words)
        cases.append(f"        '{' '.join(path)}') choices=({choices}) ;;")
    return _ZSH.format(cases="\n".join(cases))


def _fish(tree: list[Node]) -> str:
    lines = ["# fish completion for anchorhold: put it into ~/.config/fish/completions/"]
    for path, words in tree:
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
