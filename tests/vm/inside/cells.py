"""cells.py JSON: run programs side by side, each in a cgroup of ours with limits of its own.

JSON: {"seconds": N, "cells": [{"argv": [...], "limits": {...}, "raw": {file: text}}]}; `limits` are
those of sandbox.plan, `raw` is written as it is, {leaf} in `argv` is the cgroup. Prints a list of
what became of each: its exit code (None: it still ran and was killed), what it said, the kernel's
counts; or why its limits were refused. Nothing but the cgroup is around them.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/anchorhold/app")
from sandbox.cgroup import Leaf, Slice, make_room
from sandbox.errors import SandboxError
from sandbox.limits import look
from sandbox.plan import IoLimits, Limits
from sandbox.usage import events, usage


class Cell:
    """One program in its cgroup."""

    def __init__(self, leaf: Leaf, wanted: dict[str, Any]) -> None:
        self.leaf = leaf
        self.told: dict[str, Any] = {}
        self.most = 0
        given = {"memory": None, "pids": None, "cpu": None, **wanted.get("limits", {})}
        if "io" in given:
            given["io"] = IoLimits(**given["io"])
        limits = Limits(**given)
        try:
            self.told["absent"] = leaf.apply(limits, frozenset())
        except SandboxError as error:
            self.told = {"refused": str(error), "fix": error.fix}
            return
        self.told["limits"] = {one.file: one.found for one in look(leaf.path, limits, ())}
        for file, text in wanted.get("raw", {}).items():
            (leaf.path / file).write_text(text)
        self.process = subprocess.Popen(
            [word.replace("{leaf}", str(leaf.path)) for word in wanted["argv"]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=self.enter,
        )  # fmt: skip

    def enter(self) -> None:
        """In the child, before its program."""
        (self.leaf.path / "cgroup.procs").write_text("0")

    def look(self) -> bool:
        """Whether it still runs; remember what is seen."""
        if "refused" in self.told:
            return False
        self.most = max(self.most, usage(self.leaf.path)["memory"]["swap"] or 0)
        return self.process.poll() is None

    def end(self) -> dict[str, Any]:
        """What became of it; whoever is left is killed."""
        if "refused" not in self.told:
            path = self.leaf.path
            self.told |= {
                "exit": self.process.poll(),
                "usage": usage(path),
                "most_swap": self.most,
                "memory": events(path, "memory.events"),
                "cpu": events(path, "cpu.stat"),
            }
            if (peak := path / "memory.peak").exists():
                self.told["peak"] = int(peak.read_text())
            self.leaf.destroy()
            self.told["said"] = self.process.communicate()[0].decode(errors="replace")
        return self.told


def main(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Until all have ended, or the time is over."""
    tree = Slice(make_room("cells"))
    cells = [Cell(tree.leaf(), one) for one in order["cells"]]
    deadline = time.monotonic() + order["seconds"]
    while sum(cell.look() for cell in cells) and time.monotonic() < deadline:
        time.sleep(0.02)
    told = [cell.end() for cell in cells]
    tree.remove()
    for left in Path("/dev/shm").glob("eaten-*"):
        left.unlink()
    return told


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
