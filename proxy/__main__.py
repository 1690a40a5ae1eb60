"""``python3 -I <app>/proxy egress|ingress``: start one of the two proxies.

``python3 -I <app>/proxy compile-rules`` writes the compiled redaction rules to its standard output:
set-up keeps them in the environment of the wheels, as ``rules.db``, to spare each start a second.

``python3 -I <app>/proxy check-rules FILE...`` says what is wrong with redaction rules of your own.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a directory, the first entry is the package itself; its parent makes it importable.
sys.path[0] = str(Path(__file__).resolve().parent.parent)


def main(arguments: list[str]) -> int:
    """Run the proxy named by the only argument; returns its exit status (2: wrong usage)."""
    if arguments == ["egress"]:
        from proxy.egress import main as egress

        return egress()
    if arguments == ["ingress"]:
        # The gateway gets plain sockets; without TLS the interpreter is 4 MB smaller.
        sys.modules["ssl"] = None  # type: ignore[assignment]  # the documented way to block an import
        from proxy.ingress import main as ingress

        return ingress()
    if arguments == ["compile-rules"]:
        from proxy.egress.redaction import rules, scan

        sys.stdout.buffer.write(scan.Scanner(rules.load()).packed())
        return 0
    if arguments[:1] == ["check-rules"] and arguments[1:]:
        return check_rules(arguments[1:])
    print(
        "usage: python3 -I <app>/proxy egress|ingress|compile-rules|check-rules FILE...",
        file=sys.stderr,
    )
    return 2


def check_rules(files: list[str]) -> int:
    """Load rule files beside the shipped ones and try their examples; 1: something is wrong."""
    from proxy.egress.redaction import examples, rules, scan

    try:
        own = {file: Path(file).read_text("utf-8") for file in files}
        book = rules.load(own=own)
        added = [rule for rule in book.rules if not rule.ours]
        faults = list(examples.faults(scan.Scanner(book), added))
    except (rules.RulesInvalid, OSError, ValueError) as error:
        added, faults = [], [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"{len(added)} rules, each finds its examples")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
