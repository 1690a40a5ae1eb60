"""What root runs: the standard library, Debian's packages and this application. Nothing from PyPI.

The supervisor is started with Python's own -v, which prints every module with the file it came
from, also in the processes that are forked from it. Workloads are new programs and do not inherit
the flag.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from house import ROOT, House

# "matches" names the source, "code object from" the file that was read; both for one module.
_LOADED = re.compile(r"^(?:# code object from '?|# \S+ matches |# extension module .* from )"
                     r"'?(?P<file>/[^']+)'?$")  # fmt: skip
_EXTENSION = re.compile(r"^# extension module '[^']+' loaded from '(?P<file>/[^']+)'")
_OURS = tuple(f"{ROOT}/{name}/" for name in ("supervisor", "sandbox", "probes", "proxy"))
_SYSTEM = ("/usr/lib/x86_64-linux-gnu/", "/usr/lib/locale/", "/usr/bin/python3.11")
_STANDARD = ("/usr/lib/python3.11/", "/usr/lib/python3/dist-packages/")


def _files(log: str) -> set[str]:
    """Every file that a -v log says Python code was loaded from."""
    found = set()
    for line in log.splitlines():
        match = _EXTENSION.match(line) or _LOADED.match(line)
        # Processes share the log: a name that two of them wrote into each other is no file.
        if match and Path(match["file"]).is_file():
            found.add(match["file"])
    return found


def _foreign(files: Iterable[str]) -> list[str]:
    return sorted(file for file in files if not file.startswith((*_STANDARD, *_OURS)))


def test_root_runs_nothing_from_pypi(house: House, key: str) -> None:
    house.open(flags="-ISv")
    house.add_key(key)
    assert house.send()["reply"]
    house.ask("restart", {"workload": "adapter.rest"})
    house.ask("keys.list")
    null = os.open("/dev/null", os.O_RDWR)
    try:
        words = {"workload": "adapter.rest", "argv": ["/usr/bin/python3", "-I", "-c", "1"]}
        assert house.ask("try", words, null, null, null)["exit"] == 0
    finally:
        os.close(null)
    files = _files(house.log.read_text(errors="replace"))
    for part in ("supervisor/supervise", "sandbox/zygote", "sandbox/broker/server",
                 "sandbox/broker/resolver", "probes/maps", "supervisor/verbs"):  # fmt: skip
        assert any(re.search(rf"/{part.replace('/', '/(__pycache__/)?')}\.", f) for f in files), (
            part
        )
    assert any("dist-packages/seccomp" in file for file in files)
    assert _foreign(files) == []
    roots = [
        (pid, process.name())
        for pid, process in house.family().items()
        if process.uids().effective == 0
    ]
    assert house.pid in dict(roots) and house.child("zygote") in dict(roots), roots
    for pid, name in roots:
        assert _foreign(_mapped(pid, *_SYSTEM)) == [], name
    # And the roots are all of them: no workload is root.
    assert {pid for pid, _ in roots} & {w["pid"] for w in house.ask("status")["workloads"]} == set()


def _mapped(pid: int, *system: str) -> set[str]:
    """Files that the process has mapped, without `system`."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return {file for file in files if file.startswith("/") and not file.startswith(system)}


def test_a_package_from_pypi_would_have_been_seen() -> None:
    """The control: the same question about a program that does load some."""
    import msgspec

    code = f"import sys, time; sys.path.append({str(Path(msgspec.__file__).parents[1])!r}); "
    code += "import msgspec; print('ready', flush=True); sys.stdin.read()"
    program = subprocess.Popen(
        ["/usr/bin/python3", "-ISv", "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        mapped = _mapped(program.pid, *_SYSTEM)
        assert any("msgspec" in file for file in _foreign(mapped)), sys.version
    finally:
        log = program.communicate()[1]
    assert any("msgspec" in file for file in _foreign(_files(log)))
