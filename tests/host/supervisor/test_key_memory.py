"""No process but the egress proxy ever holds a key, and that one only where nobody can read it."""

from __future__ import annotations

from house import House

from tests.memory import search

PROVIDER = "model.practice"  # it is who the key is for


def test_a_key_is_in_no_memory_that_can_be_read(running: House, key: str) -> None:
    """Supervisor, launcher, broker, gateway, proxies, adapters, executor, pumps, software TPM."""
    for _ in range(2):
        assert running.send()["reply"]
    placeholder = running.placeholder()
    ids = {one["pid"]: one["id"] for one in running.ask("status")["workloads"]}
    assert {"service.egress", "service.ingress", "service.swtpm", "executor.main"} <= {
        *ids.values()
    }
    holders: dict[str, dict[str, int]] = {}
    planted, read, number = set(), 0, 0
    for pid, process in running.family().items():
        name = ids.get(pid, process.name())
        seen = search(pid, [key, placeholder])
        assert seen.bytes > 1 << 20, f"{name} could not be read"
        read, number = read + seen.bytes, number + 1
        if hits := {hit: n for hit, n in seen.hits.items() if hit.startswith("secret 0")}:
            holders[name] = hits
        if len(hits) < len(seen.hits):
            planted.add(name)
        if name == "service.egress":
            assert "/secretmem (deleted)" in seen.unreadable
    print(f"figure: {read >> 20} MiB of {number} processes searched")
    assert {"executor.main", "service.egress"} <= planted, "the search finds what is there"
    holders.pop(PROVIDER, None)
    assert holders == {}
