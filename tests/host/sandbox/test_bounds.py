"""What may be written is bounded, and what may only be read stays as it is, also in between."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from sandbox.plan import Bind, SyscallRule, Tmpfs
from tests.host.sandbox.conftest import Cell

SIZE, FILES = 1 << 20, 50
FILL = """
import errno, os
fd, written = os.open('{place}/big', os.O_WRONLY | os.O_CREAT), 0
try:
    while written < {most}:
        written += os.write(fd, b'x' * 4096)
    print('all', written)
except OSError as error:
    print(errno.errorcode[error.errno], written)
"""
MANY = """
import errno, os
made = 0
try:
    while made < {most}:
        os.close(os.open(f'{place}/{{made}}', os.O_WRONLY | os.O_CREAT))
        made += 1
    print('all', made)
except OSError as error:
    print(errno.errorcode[error.errno], made)
"""


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_a_tmpfs_ends_at_its_bytes_and_its_files(cell: Cell, place: str) -> None:
    small, large = Tmpfs(place, SIZE, FILES), Tmpfs(place, 4 * SIZE, 4 * FILES)
    fill = FILL.format(place=place, most=2 * SIZE)
    assert cell.run(fill, large).out == f"all {2 * SIZE}\n"  # control
    assert cell.run(fill, small).out == f"ENOSPC {SIZE}\n"
    many = MANY.format(place=place, most=2 * FILES)
    assert cell.run(many, large).out == f"all {2 * FILES}\n"  # control
    assert cell.run(many, small).out == f"ENOSPC {FILES - 1}\n", "one is the directory itself"


def test_both_may_stand_beside_each_other_and_are_verified(cell: Cell) -> None:
    mounts = (Tmpfs("/tmp", SIZE, FILES), Tmpfs("/dev/shm", SIZE, FILES))
    code = FILL.format(place="/tmp", most=2 * SIZE) + FILL.format(place="/dev/shm", most=2 * SIZE)
    result = cell.run(code, *mounts)
    assert result.out == f"ENOSPC {SIZE}\n" * 2, "each has its own"
    assert next(f for f in result.findings if f.layer == "root").verdict == "PASS"


CHANGES = {
    "write": ("open('/data/fixed', 'w')", "EROFS"),
    "append": ("open('/data/fixed', 'a').write('more')", "EROFS"),
    "cut": ("os.truncate('/data/fixed', 0)", "EROFS"),
    "mode": ("os.chmod('/data/fixed', 0o700)", "EROFS"),
    "times": ("os.utime('/data/fixed', (0, 0))", "EROFS"),
    "remove": ("os.unlink('/data/fixed')", "EBUSY"),
    "replace": ("open('/data/new', 'w').close(); os.rename('/data/new', '/data/fixed')", "EBUSY"),
    "move": ("os.rename('/data/fixed', '/data/other')", "EBUSY"),
    "link": ("os.link('/data/fixed', '/data/other')", "EXDEV"),
}
CALLS = ("truncate", "chmod", "utimensat", "unlink", "rename", "link")


@pytest.mark.parametrize("name", CHANGES)
def test_a_read_only_file_in_a_writable_directory_is_read_only(
    cell: Cell, tmp_path: Path, name: str
) -> None:
    change, refused = CHANGES[name]
    data, fixed = tmp_path / "data", tmp_path / "data/fixed"
    data.mkdir()
    fixed.write_text("old")
    for path in (data, fixed):
        path.chmod(0o777)
        os.chown(path, cell.plan.uid, cell.plan.gid)
    # The filter would refuse most of it already: here the mount stands alone.
    spec = cell.plan.seccomp
    others = tuple(rule for rule in spec.main if rule.call not in CALLS)
    weak = dataclasses.replace(
        spec, main=(*others, *(SyscallRule(call, "allow") for call in CALLS))
    )
    writable = Bind(str(data), "/data", ("read", "write"))
    inner = Bind(str(fixed), "/data/fixed", ("read",))
    code = f"""
import errno, os
open('/data/free', 'w').write('new')
try:
    {change}
    print('done')
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    before = fixed.stat()
    result = cell.run(code, inner, writable, seccomp=weak)
    assert result.out == f"{refused}\n"
    assert next(f for f in result.findings if f.layer == "root").verdict == "PASS"
    assert (data / "free").read_text() == "new", "the directory itself is writable"
    after = fixed.stat()
    assert (fixed.read_text(), after.st_mode) == ("old", before.st_mode)
    assert (after.st_mtime, after.st_nlink) == (before.st_mtime, 1)
    assert cell.run(code, writable, seccomp=weak).out == "done\n"  # control
