"""What a cgroup tells of its use; what it does not tell is None."""

from __future__ import annotations

from pathlib import Path

from sandbox.usage import usage

PRESSURE = "some avg10={} avg60=0.50 avg300=0.25 total=1\nfull avg10={} avg60=0 avg300=0 total=1\n"


def test_use_limits_pressure_and_kills_are_read(tmp_path: Path) -> None:
    for file, text in {
        "memory.current": "1048576\n", "memory.max": "2097152\n", "memory.high": "max\n",
        "memory.swap.current": "0\n", "memory.events": "low 0\nhigh 5\nmax 9\noom_kill 2\n",
        "pids.current": "3\n", "pids.max": "16\n",
        "cpu.stat": "usage_usec 1500000\nnr_periods 20\nnr_throttled 5\nthrottled_usec 9\n",
        "cpu.pressure": PRESSURE.format("1.50", "0.00"),
        "memory.pressure": PRESSURE.format("12.00", "3.25"),
    }.items():  # fmt: skip
        (tmp_path / file).write_text(text)
    assert usage(tmp_path) == {
        "memory": {"now": 1 << 20, "high": None, "limit": 2 << 20, "swap": 0, "oom_kills": 2},
        "pids": {"now": 3, "limit": 16},
        "cpu": {"seconds": 1.5, "throttled": 0.25},
        "pressure": {
            "cpu": {"some": 1.5, "full": 0.0}, "memory": {"some": 12.0, "full": 3.25}, "io": None,
        },
    }  # fmt: skip


def test_before_the_first_period_nothing_was_throttled(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 0\nnr_periods 0\nnr_throttled 0\n")
    assert usage(tmp_path)["cpu"] == {"seconds": 0.0, "throttled": 0.0}


def test_without_controllers_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 250000\nuser_usec 1\n")
    (tmp_path / "cpu.pressure").symlink_to("/proc/self/mem")  # cannot be read, like with psi=0
    found = usage(tmp_path)
    assert found["memory"] == dict.fromkeys(("now", "high", "limit", "swap", "oom_kills"))
    assert found["pids"] == {"now": None, "limit": None}
    assert found["cpu"] == {"seconds": 0.25, "throttled": None}
    assert found["pressure"] == {"cpu": None, "memory": None, "io": None}
