"""Run the attack suite and print its report: a table for people, or JSON.

    python -m tests.attacks [--json] [ENTRY ...]      such as A09 A13.02

Exit code 0 only if every attempt was refused as expected, or is named as not testable here, and no
critical one gets through without any single layer. With --json the table goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """The exit code of the run."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("entries", nargs="*", metavar="ENTRY")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", str(Path(__file__).parent)]
    if wanted.entries:
        command += ["-k", " or ".join(wanted.entries)]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        environment = os.environ | {"ANCHORHOLD_ATTACKS_JSON": str(report)}
        output = sys.stderr if wanted.json else None
        code = subprocess.run(command, env=environment, stdout=output, check=False).returncode
        if wanted.json and report.exists():
            print(report.read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
