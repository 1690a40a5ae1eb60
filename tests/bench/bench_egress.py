"""The egress proxy with full redaction beside no proxy and three others, in one run.

CPU is the proxy process's own, so that neither client nor model server counts; a core's requests
per second are its inverse. Latency: all ways take turns, request by request, on open connections.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench import rivals  # needs the path
from tests.bench.figure import Figure
from tests.bench.load import Way, delays, request, saturate, take_turns
from tests.bench.model_server import Server
from tests.unit.egress.harness import ROOT, Proxy

ROUNDS, WARM = 300, 50
# Per measurement: enough for a CPU time that repeats within some per cent, few where one is dear.
REQUESTS = {"nginx": 4000, "ours": 2000, "mitmproxy": 400, "LiteLLM": 120}
STREAMS = {"nginx": 1000, "ours": 500, "mitmproxy": 150, "LiteLLM": 40}
PACED = 12
PAUSE = 0.005


@contextlib.contextmanager
def ours(upstream: int, folder: Path, **changes: object) -> Iterator[Proxy]:
    """The egress proxy as it is shipped: the runtime's interpreter, every rule, audit on disk."""
    server = type("Port", (), {"port": upstream})()
    workload = {"concurrent": 64, "timeout": 60.0}
    python = str(ROOT / ".runtime/bin/python3")
    proxy = Proxy(folder, server, python=python, workload=workload, **changes)
    try:
        proxy.unlock()
        yield proxy
    finally:
        proxy.close()


def way_of(proxy: Proxy) -> Way:
    """The proxy as a way to the model."""
    proxy.listen()
    return Way("ours", next(iter(proxy.listeners.values())), (proxy.process.pid,))


def cost(way: Way, data: bytes, counts: dict[str, int]) -> float:
    """ms of CPU for one request: the median of three measurements, after a warm-up."""
    number = counts[way.name]
    saturate(way, data, number // 4)
    return statistics.median(saturate(way, data, number) for _ in range(3)) * 1000


def compared(title: str, costs: dict[str, float], at_least: int) -> list[Figure]:
    """The figures of one kind of request."""
    mine = costs["ours"]
    found = [
        Figure(f"{title}: CPU of the egress proxy", mine, "ms", bound=1000 / at_least),
        Figure(f"{title}: per core", 1000 / mine, "requests/s"),
    ]
    for name, bound in (("LiteLLM", 1 / 20), ("mitmproxy", 1 / 5), ("nginx", None)):
        against = f"{name}, no redaction,"
        found.append(Figure(f"{title}: CPU", mine, "ms", costs[name], against, bound))
    return found


def main() -> list[Figure]:
    """Measure all of it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, paced = Server(), Server(PAUSE)
        stack.callback(server.close)
        stack.callback(paced.close)
        proxy = stack.enter_context(ours(server.port, folder))
        mine = way_of(proxy)
        others = [
            stack.enter_context(start(server.port, folder))
            for start in (rivals.nginx, rivals.mitmproxy, rivals.litellm)
        ]
        direct, ways = Way("direct", ("127.0.0.1", server.port)), [mine, *others]
        take_turns([direct, *ways], request(), ROUNDS, WARM)
        found = [
            Figure(
                "2 KB request: egress proxy adds, p50", mine.p50() - direct.p50(), "ms", bound=0.5
            ),
            Figure("2 KB request: egress proxy adds, p99", mine.p99() - direct.p99(), "ms"),
        ]
        found += [
            Figure(f"2 KB request through {way.name}, p50 (p99 {way.p99():.3g})", way.p50(), "ms",
                   direct.p50(), "direct")
            for way in ways
        ]  # fmt: skip
        found += compared(
            "2 KB request", {way.name: cost(way, request(), REQUESTS) for way in ways}, 2500
        )
        asked = request(stream=True)
        found += compared(
            "50-event stream", {way.name: cost(way, asked, STREAMS) for way in ways}, 800
        )
        status = Path(f"/proc/{proxy.process.pid}/status").read_text()
        memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        found.append(Figure("egress proxy after the run, RSS", memory, "MiB", bound=120))
        with ours(paced.port, folder) as patient:
            slow = way_of(patient)
            straight = Way("direct", ("127.0.0.1", paced.port))
            late: dict[str, list[float]] = {"direct": [], "ours": []}
            for _ in range(PACED):
                for way in (straight, slow):
                    late[way.name] += delays(way, asked, paced.clock)
        p99 = {name: statistics.quantiles(times, n=100)[98] * 1000 for name, times in late.items()}
        found.append(
            Figure(
                "a token every 5 ms: added delay, p99", p99["ours"] - p99["direct"], "ms", bound=1
            )
        )
        return found


if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
