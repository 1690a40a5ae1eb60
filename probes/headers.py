"""Which kernel headers the loader compiles with.

bcc looks for /lib/modules/<running release>/build and /source. Debian splits its headers in two
packages, `…-<flavour>` (build) and `…-common` (source); both links together work, one tree alone
does not. The programs read only arguments, helpers and BTF offsets, so headers of another release
serve; which ones were used is in the loader's status.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ProbeError


@dataclass(frozen=True, slots=True)
class Headers:
    """Two directories and the release they are of; `exact` when that is the running one."""

    release: str
    build: str
    source: str
    exact: bool


def linked(release: str = "", modules: Path = Path("/lib/modules")) -> Headers:
    """What the two links of the running release point at, inside the loader's sandbox.

    Raises ProbeError `no_headers` when a link is missing or dangling.
    """
    release = release or os.uname().release
    build, source = modules / release / "build", modules / release / "source"
    for link in (build, source):
        if not (link / "include").is_dir():
            raise ProbeError(
                "no_headers",
                f"{link} does not lead to kernel headers.",
                "Install linux-headers-amd64 (Debian) or kernel-devel (Fedora) and start again.",
            )
    version = build.resolve().name.removeprefix("linux-headers-")
    return Headers(version, str(build.resolve()), str(source.resolve()), version == release)
