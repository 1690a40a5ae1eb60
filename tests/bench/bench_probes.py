"""What the watch costs a system call: getppid under each tier against the same without a watch.

Needs root and gcc. A figure is the quickest of many short batches in CPU time, because other work
on the machine only ever adds to it; even so trust the ratios, not the nanoseconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figure import Figure

sys.path.append(str(Path(__file__).parents[1] / "host/probes"))

from watchrig import Cgroups, Host, quiet, registered

from probes.maps import Watch

BATCHES, CALLS = 300, 5000
LOOP = """
#include <stdio.h>
#include <stdlib.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

int main(int argc, char **argv)
{
    int batches = atoi(argv[1]), calls = atoi(argv[2]);
    if (argc > 3) {     /* one comparison, then allow: the least filter there is */
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 999, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = { 4, code };
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
    }
    double best = 1e18;
    while (batches--) {
        struct timespec a, b;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        for (int i = 0; i < calls; i++) syscall(SYS_getppid);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        double took = ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / calls;
        if (took < best) best = took;
    }
    printf("%f", best);
    return 0;
}
"""


def measure(binary: Path, cgroup: Path | None, *arguments: str) -> float:
    """Nanoseconds per call."""

    def enter() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0")

    command = [str(binary), str(BATCHES), str(CALLS), *arguments]
    run = subprocess.run(command, check=True, capture_output=True, preexec_fn=enter)
    return float(run.stdout)


def three(binary: Path, cgroup: Path) -> dict[str, float]:
    """The loop inside a watched cgroup with a seccomp filter, and outside with and without one."""
    return {
        "watched, seccomp": measure(binary, cgroup, "seccomp"),
        "unwatched, seccomp": measure(binary, None, "seccomp"),
        "unwatched, no seccomp": measure(binary, None),
    }


def main() -> list[Figure]:
    """Ratios per tier; no bound yet, a busy machine would miss any that means something."""
    tiers: dict[str, dict[str, float]] = {}
    host, cgroups = Host(), Cgroups()
    try:
        with tempfile.TemporaryDirectory() as directory:
            binary = Path(directory) / "loop"
            subprocess.run(
                ["gcc", "-O2", "-x", "c", "-", "-o", binary], input=LOOP.encode(), check=True
            )
            workload = cgroups.workload()
            none = three(binary, workload)
            began = time.monotonic()
            _load(host, denials=True)
            loading = time.monotonic() - began
            with Watch.open(host.pins) as watch, registered(watch, workload, quiet(denials=True)):
                tiers["T0+T1+denials"] = three(binary, workload)
                (host.pins / "link_on_exit").unlink()
                tiers["T0+T1"] = three(binary, workload)
                (host.pins / "link_on_enter").unlink()
                tiers["T0"] = three(binary, workload)
            host.close_pins()
            after = three(binary, workload)
            none = {name: min(value, after[name]) for name, value in none.items()}
    finally:
        cgroups.close()
        host.close()
    figures = [Figure("probe loader, start to exit", loading, "s")]
    for name, reference in none.items():
        for tier, row in tiers.items():
            what = f"getppid, {name}, {tier}"
            figures.append(Figure(what, row[name], "ns", reference, "no watch"))
    return figures


def _load(host: Host, **options: object) -> None:
    status = host.load(**options)
    if not status["ok"]:
        raise RuntimeError(f"the watch did not load: {status['error']['message']}")


if __name__ == "__main__":
    from tests.bench.__main__ import table

    print(table(main()))
