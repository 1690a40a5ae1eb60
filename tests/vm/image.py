"""The guest's Debian: a root made by mmdebstrap, its ext4 image, kernel and initrd.

    python -m tests.vm.image     build what $SUITE needs, or say that it is there

An image is named by a hash of everything that goes into it: the files of this tree and what the
mirrors offer now. It is built aside, made read-only and renamed: one that is there is whole.
Mirrors, proxies and keys are those of this machine's own apt configuration.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm import places
from tests.vm.failures import RigFailure, tail
from tests.vm.programs import need, tied

GUEST = Path(__file__).parent / "guest"
SUITES = ("bookworm", "trixie")
DISK_SIZE = "4G"
# mmdebstrap's root, and the image made of it.
ROOT_GIB, IMAGE_GIB = 3.0, 3.0
INITRD_MODULES = ("virtio_pci", "virtio_blk")


def chosen_suite() -> str:
    """The Debian of the guest: $SUITE, bookworm if it is not set."""
    suite = os.environ.get("SUITE") or SUITES[0]
    if suite not in SUITES:
        raise RigFailure(f"SUITE={suite} is not known; there are: {', '.join(SUITES)}")
    return suite


@dataclass(frozen=True)
class Image:
    """A built image; nothing in `path` ever changes."""

    suite: str
    path: Path

    @property
    def disk(self) -> Path:
        """The root file system, raw."""
        return self.path / "disk.raw"

    @property
    def kernel(self) -> Path:
        """The guest's kernel."""
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The smallest initrd that finds the disk."""
        return self.path / "initrd"

    @property
    def os_release(self) -> Path:
        """The guest's os-release, which a unified kernel image carries."""
        return self.path / "os-release"


def packages(suite: str) -> list[str]:
    """The names in guest/packages.txt that are for this suite."""
    names = []
    for line in (GUEST / "packages.txt").read_text().splitlines():
        if found := re.match(r"([a-z0-9][a-z0-9.+-]+)(?:\s+\[(\w+)\])?", line):
            name, only = found.groups()
            if only in (None, suite):
                names.append(name)
    return names


def sources(suite: str) -> list[str]:
    """apt lines for the suite, from the places this machine gets its own release from."""
    own = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = own[1] if own else ""
    found = {}
    for line in listed.splitlines():
        uri, codename, component = line.split()
        if component == "main" and codename in (here, f"{here}-updates", f"{here}-security"):
            found[codename.removeprefix(here)] = uri
    if "" not in found:
        raise RigFailure(
            "apt knows no Debian archive with a component main.\n"
            "  Check /etc/apt/sources.list*, then run: apt-get update"
        )
    return [f"deb {uri} {suite}{kind} main" for kind, uri in sorted(found.items())]


def offered(lines: list[str]) -> str | None:
    """A hash of the package lists the mirrors offer now; None if one does not answer."""
    digest = hashlib.sha256()
    for line in lines:
        _, uri, suite, _ = line.split()
        with tempfile.TemporaryDirectory() as folder:
            release = Path(folder) / "InRelease"
            command = ["/usr/lib/apt/apt-helper", "-o", "Acquire::Retries=2", "download-file"]
            fetched = subprocess.run(
                [*command, f"{uri.rstrip('/')}/dists/{suite}/InRelease", str(release)],
                capture_output=True,
                check=False,
            )
            if fetched.returncode != 0 or not release.exists():
                return None
            # The lists' own hashes: the rest of the file changes daily with its date.
            found = re.findall(
                r"^ ([0-9a-f]{64}) .* main/binary-amd64/Packages$", release.read_text(), re.M
            )
            digest.update(f"{suite} {found}\n".encode())
    return digest.hexdigest()[:12]


def recipe(suite: str, lines: list[str]) -> str:
    """A hash of what this tree puts into the image."""
    digest = hashlib.sha256(f"{suite} {lines}".encode())
    for path in [Path(__file__), *sorted(GUEST.rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.name} {path.stat().st_mode:o}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def existing(suite: str) -> Image | None:
    """The newest image of this tree's recipe, without a look at the mirrors."""
    images = sorted(
        (places.cache() / "images").glob(f"{suite}-{recipe(suite, sources(suite))}-*"),
        key=lambda path: path.stat().st_mtime,
    )
    return Image(suite, images[-1]) if images else None


def image(suite: str) -> Image:
    """The image for the suite, built if need be."""
    lines = sources(suite)
    now = offered(lines)
    if now is None:
        if kept := existing(suite):
            print(f"vm: the mirrors do not answer; using {kept.path.name}", file=sys.stderr)
            return kept
        raise RigFailure(
            "the Debian mirrors do not answer and no image is in the cache.\n"
            "  Check the network and apt's configuration: apt-get update"
        )
    images = places.cache() / "images"
    target = images / f"{suite}-{recipe(suite, lines)}-{now}"
    with places.alone(images / f"{suite}.lock"):
        if not target.exists():
            build(suite, lines, target)
            held = places.hold(target)
            places.remove_unused(images, f"{suite}-*")
            os.close(held)
    return Image(suite, target)


def build(suite: str, lines: list[str], target: Path) -> None:
    """Make the image and rename it to `target`."""
    for program in ("mmdebstrap", "mke2fs", "unshare", "setpriv", "chroot"):
        need(program)
    if os.geteuid() != 0:
        raise RigFailure("making a Debian root needs root")
    began = time.monotonic()
    print(f"vm: building the image for Debian {suite} ...", flush=True)
    log = target.parent / f"{suite}.log"
    with (
        places.working_folder(places.cache() / "run") as aside,
        places.working_folder(_roomy(aside.parent)) as scratch,
    ):
        places.need_space(aside, IMAGE_GIB, "a guest image")
        root, new = scratch / "root", aside / "image"
        new.mkdir()
        with log.open("w") as output:
            _debian_root(suite, lines, root, output.fileno())
            _step([str(GUEST / "customize.sh"), str(root)], output.fileno())
            _initrd(root, new / "initrd", output.fileno())
            _file_system(root, new / "disk.raw", output.fileno())
        shutil.copy(max(root.glob("boot/vmlinuz-*")), new / "vmlinuz")
        shutil.copy(root / "usr/lib/os-release", new / "os-release")
        for file in new.iterdir():
            file.chmod(0o444)
        new.rename(target)
    print(f"vm: built {target.name} in {time.monotonic() - began:.0f} s", flush=True)


def _roomy(otherwise: Path) -> Path:
    """Where to unpack Debian: memory is some seconds faster, if there is enough of it."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 2 * ROOT_GIB * (1 << 30):
        return memory / "anchorhold-vm"
    places.need_space(otherwise, ROOT_GIB + IMAGE_GIB, "unpacking Debian for the guest")
    return otherwise


def _step(command: list[str], output: int, **variables: str) -> None:
    """One command of the build, in a mount and process namespace that vanish with this process."""
    apart = tied(["unshare", "--mount-proc", "--pid", "--fork", "--kill-child", *command])
    status = subprocess.run(
        apart,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | variables,
        check=False,
    ).returncode
    if status != 0:
        log = Path(f"/proc/self/fd/{output}").resolve()
        raise RigFailure(
            f"building the image failed: {command[0]} ended with {status}; the end of {log}:\n"
            + tail(log.read_text(errors="replace"))
        )


def _debian_root(suite: str, lines: list[str], root: Path, output: int) -> None:
    debs = places.cache() / "debs" / suite
    debs.mkdir(parents=True, exist_ok=True)
    there = '"$1"/var/cache/apt/archives'
    command = [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--include={','.join(packages(suite))}",
        # Kept: the downloaded packages, until the hook below has put them into the cache.
        "--skip=essential/unlink,download/empty,cleanup/apt/cache",
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=APT::Install-Recommends "0"',
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--setup-hook=mkdir -p {there}/partial; cp {debs}/*.deb {there}/ 2>/dev/null || true",
        f"--customize-hook=cp --update {there}/*.deb {debs}/; rm -f {there}/*.deb",
        *(suite, str(root), *lines),
    ]
    # No initrd of Debian's: the rig has its own.
    _step(command, output, INITRD="No")


def _initrd(root: Path, target: Path, output: int) -> None:
    """busybox and the modules that lead to the disk, packed by the guest's own programs."""
    stage = root / "initrd"
    for folder in ("bin", "modules", "dev", "proc", "newroot"):
        (stage / folder).mkdir(parents=True)
    shutil.copy(GUEST / "initrd-init", stage / "init")
    shutil.copy(root / "bin/busybox", stage / "bin/busybox")
    for name in ("sh", "insmod", "mount", "umount", "switch_root", "sleep", "poweroff", "["):
        (stage / "bin" / name).symlink_to("busybox")
    version = max(root.glob("usr/lib/modules/*")).name
    names = []
    for module in INITRD_MODULES:
        depends = subprocess.run(
            ["chroot", str(root), "modprobe", "-S", version, "--show-depends", module],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for path in re.findall(r"^insmod /(\S+)", depends, re.M):
            name = Path(path).name.removesuffix(".xz")
            content = (root / path).read_bytes()
            (stage / "modules" / name).write_bytes(
                lzma.decompress(content) if path.endswith(".xz") else content
            )
            if name not in names:
                names.append(name)
    (stage / "modules/list").write_text("".join(f"{name}\n" for name in names))
    pack = "cd /initrd && find . | busybox cpio -o -H newc >/initrd.cpio"
    _step(["chroot", str(root), "/bin/sh", "-euc", pack], output)
    shutil.move(root / "initrd.cpio", target)
    shutil.rmtree(stage)


def _file_system(root: Path, target: Path, output: int) -> None:
    # Debian's own features, the journal above all: power cuts are part of what is tested. Nothing
    # lazy, or every restored guest would spend its first minutes zeroing tables.
    lazy = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    command = ["mke2fs", "-q", "-t", "ext4", "-E", lazy, "-L", "rig", "-d", str(root)]
    _step([*command, str(target), DISK_SIZE], output)


if __name__ == "__main__":
    try:
        print(f"vm: image {image(chosen_suite()).path}")
    except RigFailure as failure:
        sys.exit(f"vm: {failure}")
