"""The supervisor's hand on the pinned watch: register workloads, read counters, hand out fds.

Standard library only: this runs as root.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from types import TracebackType

from . import bpf, layout
from .errors import ProbeError
from .events import Verdict
from .layout import Counters
from .rules import WatchRules

_VALUES = {
    "slots": layout.SLOT.size,
    "rules": layout.RULES.size,
    "state": layout.STATE.size,
    "counters": layout.COUNTERS.size,
    "manifest": layout.MANIFEST.size,
}
_INDEX = struct.Struct("<I")
_ID = struct.Struct("<Q")


def clear(directory: Path) -> int:
    """Unpin everything under `directory`, which detaches the programs; returns how many there were.

    To be called after a loader that failed or was killed, and when the supervisor stops.
    """
    count = 0
    if directory.is_dir():
        for entry in directory.iterdir():
            entry.unlink()
            count += 1
    return count


def encode_rules(rules: WatchRules) -> bytes:
    """`rules` as the value of the kernel's table."""
    table = bytearray(layout.CALLS)
    for number in rules.high_risk:
        table[number] = layout.HIGH_RISK
    for number in rules.allowed:
        table[number] = layout.ALLOWED
    return layout.RULES.pack(
        bytes(table),
        Verdict[rules.on_unseen.upper()],
        Verdict[rules.on_high_risk.upper()],
        rules.denials,
    )


class Watch:
    """The maps of a loaded watch. Closing it leaves the pinned programs running."""

    def __init__(self, fds: dict[str, int], directory: Path, level: int, denials: bool) -> None:
        self._fds = fds
        self._directory = directory
        self.level = level
        self.denials = denials
        self._slots = dict(self._registered())
        self._next = 0

    @classmethod
    def open(cls, directory: Path | str) -> Watch:
        """Open what the loader pinned under `directory`.

        Raises ProbeError `not_loaded` (nothing or only a part is pinned: call `clear`, load again)
        and `wrong_abi` (pinned by another version).
        """
        directory = Path(directory)
        fds: dict[str, int] = {}
        try:
            # The manifest is pinned last: without it the rest is a left-over of a killed loader.
            for name in ("manifest", *layout.MAPS):
                if name in fds or name == "members":
                    continue
                flags = bpf.RDONLY if name in ("manifest", "counters") else 0
                fds[name] = bpf.get(str(directory / name), flags)
            level, denials = _check(fds)
        except OSError as error:
            _close(fds)
            raise ProbeError(
                "not_loaded",
                f"The watch is not loaded: {error.filename or directory}: {error.strerror}.",
                "Clear the directory and run the loader again.",
                error.errno or 0,
            ) from error
        except BaseException:
            _close(fds)
            raise
        return cls(fds, directory, level, denials)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        _close(self._fds)
        self._fds = {}

    def _registered(self) -> list[tuple[int, tuple[int, Counters]]]:
        """What the kernel has: cgroup id, (slot, counters at registering)."""
        found, key = [], bpf.next_key(self._fds["slots"], None, _ID.size)
        while key is not None:
            value = bpf.lookup(self._fds["slots"], key, layout.SLOT.size)
            if value is not None:
                slot, *before = layout.SLOT.unpack(value)
                found.append((_ID.unpack(key)[0], (slot, Counters(*before))))
            key = bpf.next_key(self._fds["slots"], key, _ID.size)
        return found

    def register(self, cgroup_id: int, rules: WatchRules) -> None:
        """Watch the cgroup `cgroup_id` (st_ino of its directory) and all below it.

        Call it before the workload's first instruction. Events, counters and first-seen marks start
        from nothing. Raises ProbeError: `registered`, `full`, `no_denials` (the rules ask for the
        denial filter, the loader was not told to attach it), `refused` (the kernel said no).
        """
        if cgroup_id in self._slots:
            raise ProbeError(
                "registered", f"Cgroup {cgroup_id} is already watched.", "Unregister it first."
            )
        if rules.denials and not self.denials:
            raise ProbeError(
                "no_denials",
                "The rules ask for denial reports, and the exit filter is not attached.",
                'Run the loader with "denials": true.',
            )
        taken = {slot for slot, _ in self._slots.values()}
        free = [slot for slot in range(layout.SLOTS) if slot not in taken]
        if not free:
            raise ProbeError(
                "full", f"All {layout.SLOTS} places are taken.", "Unregister a stopped workload."
            )
        # In turn, so that what a slot's last user left in flight is not counted to the next one.
        slot = min(free, key=lambda slot: (slot - self._next) % layout.SLOTS)
        key, before = _INDEX.pack(slot), self._totals(slot)
        try:
            bpf.update(self._fds["state"], key, bytes(layout.STATE.size))
            bpf.update(self._fds["rules"], key, encode_rules(rules))
            # Last: from here on the programs see the workload, complete.
            value = layout.SLOT.pack(slot, *before)
            bpf.update(self._fds["slots"], _ID.pack(cgroup_id), value, bpf.NOEXIST)
        except OSError as error:
            raise ProbeError(
                "refused",
                f"The kernel refused to watch cgroup {cgroup_id}: {error.strerror}.",
                "See the errno; the workload must not be started.",
                error.errno or 0,
            ) from error
        self._slots[cgroup_id] = slot, before
        self._next = slot + 1

    def unregister(self, cgroup_id: int) -> Counters:
        """Stop watching `cgroup_id` and return its last counters. KeyError when it was not."""
        last = self._since(*self._slots.pop(cgroup_id))
        with contextlib.suppress(FileNotFoundError):
            bpf.delete(self._fds["slots"], _ID.pack(cgroup_id))
        return last

    def counters(self) -> dict[int, Counters]:
        """Totals of every watched workload since it was registered, by cgroup id."""
        return {cgroup: self._since(*place) for cgroup, place in self._slots.items()}

    def _totals(self, slot: int) -> Counters:
        value = bpf.lookup(self._fds["counters"], _INDEX.pack(slot), layout.COUNTERS.size)
        return Counters(*layout.COUNTERS.unpack(value or bytes(layout.COUNTERS.size))[1:])

    def _since(self, slot: int, before: Counters) -> Counters:
        return Counters(*(a - b for a, b in zip(self._totals(slot), before, strict=True)))

    def seen(self, cgroup_id: int) -> frozenset[int]:
        """Call numbers the workload has made (and seccomp let in). KeyError when not watched."""
        size = layout.STATE.size
        value = bpf.lookup(self._fds["state"], _INDEX.pack(self._slots[cgroup_id][0]), size)
        table = layout.STATE.unpack(value or bytes(size))[0]
        return frozenset(number for number, bits in enumerate(table) if bits & 1)

    def fds_for_reader(self) -> dict[str, int]:
        """Fresh descriptors for the reader, by name; the caller passes and closes them.

        `counters` is frozen: neither the reader nor root can write it. (A descriptor opened with
        BPF_F_RDONLY could not be mapped.) `ring` is writable, because consuming moves a position in
        its first page; its data pages the kernel never lets be written.
        """
        counters = bpf.get(str(self._directory / "counters"))
        try:
            return {"ring": bpf.get(str(self._directory / "ring")), "counters": counters}
        except BaseException:
            os.close(counters)
            raise


def _check(fds: dict[str, int]) -> tuple[int, bool]:
    """Level and denial flag of the manifest, after every map's sizes were compared with ours."""
    value = bpf.lookup(fds["manifest"], _INDEX.pack(0), layout.MANIFEST.size)
    abi, level, denials = layout.MANIFEST.unpack(value or bytes(layout.MANIFEST.size))
    sizes = {name: bpf.map_info(fds[name]).value_size for name in _VALUES}
    if abi != layout.ABI or sizes != _VALUES:
        raise ProbeError(
            "wrong_abi",
            f"The pinned watch is of layout {abi}, this program speaks {layout.ABI}.",
            "Clear the directory and run the loader of this version.",
        )
    return level, bool(denials)


def _close(fds: dict[str, int]) -> None:
    for fd in fds.values():
        os.close(fd)
