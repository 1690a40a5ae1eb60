"""Floods: who is held back, who is not, and that every event is accounted for."""

from __future__ import annotations

import os
from collections import Counter

from watchrig import Cgroups, Tail, cgroup_id, quiet, registered, run_in

from probes.events import Kind
from probes.maps import Watch

GETPPID = 110
# Calls without effect that Python does not make by itself here.
VICTIM_CALLS = (
    24,
    36,
    95,
    98,
    100,
    102,
    104,
    107,
    108,
    111,
    115,
    118,
    120,
    124,
    140,
    145,
    186,
    201,
)


def test_two_flooders_cost_the_victim_nothing(watch: Watch, tail: Tail, cgroups: Cgroups) -> None:
    # Nobody reads the ring during the flood: the worst reader there is.
    flood = """
import ctypes, os, time
libc = ctypes.CDLL(None)
end = time.monotonic() + 1.5
number = 600
while time.monotonic() < end:
    for _ in range(500): libc.syscall(number); libc.getppid(); number += 1
"""
    victim = f"""
import ctypes, time
libc = ctypes.CDLL(None)
time.sleep(0.3)
buffer = ctypes.create_string_buffer(4096)
for number in {VICTIM_CALLS}:
    libc.syscall(number, 0, buffer, buffer, buffer)
    time.sleep(0.05)
"""
    flooders, calm = [cgroups.workload(), cgroups.workload()], cgroups.workload()
    loud = quiet(but={GETPPID}, high_risk=frozenset({GETPPID}))
    with (
        registered(watch, flooders[0], loud) as first,
        registered(watch, flooders[1], loud) as second,
        registered(watch, calm, quiet(but=set(VICTIM_CALLS))) as third,
    ):
        children = [run_in(path, flood) for path in flooders]
        children.append(run_in(calm, victim))
        assert [child.wait(20) for child in children] == [0, 0, 0]
        events = tail.read()
        calls = {e.number for e in events if e.cgroup == third and e.kind == Kind.CALL}
        assert calls == set(VICTIM_CALLS)
        delivered = Counter(event.cgroup for event in events)
        counters = watch.counters()
        assert counters[third].lost == 0
        for number in (first, second):
            told = counters[number]
            assert told.suppressed > 10_000  # it really was a flood
            assert told.seen - told.suppressed - told.lost == delivered[number]


def test_a_full_ring_loses_events_and_counts_every_one(
    watch: Watch, tail: Tail, cgroups: Cgroups
) -> None:
    # One process walks through enough workloads, using up the budget of each, to fill the ring.
    paths = [cgroups.workload() for _ in range(80)]
    for path in paths:
        watch.register(cgroup_id(path), quiet())
    try:
        code = f"""
import ctypes
libc = ctypes.CDLL(None)
for path in {[str(path) for path in paths]!r}:
    open(path + "/cgroup.procs", "w").write("0")
    for _ in range(70): libc.syscall(600)
"""
        child = run_in(None, code)
        assert child.wait(20) == 0
        delivered = Counter(event.cgroup for event in tail.read())
        counters = watch.counters()
        assert sum(told.lost for told in counters.values()) > 0
        for path in paths:
            told = counters[cgroup_id(path)]
            assert told.seen >= 70
            assert told.seen - told.suppressed - told.lost == delivered[cgroup_id(path)]
        # The ring works on once it was read.
        after = cgroup_id(paths[0])
        assert run_in(paths[0], "pass").wait(10) == 0
        assert {event.cgroup for event in tail.read()} == {after}
    finally:
        for path in paths:
            watch.unregister(cgroup_id(path))


def test_seen_calls_of_a_new_registration_start_from_nothing(
    watch: Watch, tail: Tail, cgroups: Cgroups
) -> None:
    workload = cgroups.workload()
    for _ in range(2):
        with registered(watch, workload, quiet(but={GETPPID})) as number:
            assert run_in(workload, "import os; os.getppid()").wait(10) == 0
            assert [e.number for e in tail.read() if e.kind == Kind.CALL] == [GETPPID]
            assert watch.counters()[number].seen >= 1
    assert os.getpid() not in {e.pid for e in tail.read()}
