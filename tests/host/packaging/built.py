"""Built packages as data, and how they are built for this machine's own release."""

from __future__ import annotations

import os
import platform
import subprocess
import tarfile
from dataclasses import dataclass
from email import message_from_string
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "packaging/deb.sh"


@dataclass(frozen=True)
class Deb:
    """One built package."""

    path: Path
    fields: dict[str, str]
    members: dict[str, tarfile.TarInfo]
    contents: dict[str, bytes]


def suite() -> str:
    """The release this machine runs, which is built without a root of its own."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def read(path: Path) -> Deb:
    """What is in a package: names without the leading `./`, contents of plain files."""
    said = subprocess.run(["dpkg-deb", "-f", path], capture_output=True, text=True, check=True)
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True)
    members: dict[str, tarfile.TarInfo] = {}
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=BytesIO(data.stdout)) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            members[name] = member
            if file := archive.extractfile(member) if member.isfile() else None:
                contents[name] = file.read()
    return Deb(path, dict(message_from_string(said.stdout).items()), members, contents)


def environment(**more: str) -> dict[str, str]:
    """What a person has, with this machine's release chosen."""
    return os.environ | {"SUITE": suite()} | more
