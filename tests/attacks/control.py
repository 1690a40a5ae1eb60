"""The positive control: the same program with the same words, on this host, without the sandbox.

As root with every capability, because nothing but the sandbox may be what refuses. What would
change the host runs in a namespace of its own that this file makes, not the product.
"""

from __future__ import annotations

import os
import signal
import subprocess

# The namespace's loopback plays the network: metadata address and TEST-NET-1 lead to itself. The
# second link, which leads nowhere, makes it look like a machine's.
NETWORK = """
ip link set lo up
ip link add uplink type veth peer name nowhere
ip link set uplink up
ip addr add 169.254.169.254/32 dev lo
ip addr add 192.0.2.1/24 brd 192.0.2.255 dev lo
ip route add 255.255.255.255 dev lo
ip -6 route add ff02::/16 dev lo table local
exec "$@"
"""
_WRAPPERS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "leak": (),
    "mounts": ("unshare", "--mount", "--propagation", "private"),
    "network": ("unshare", "--net", "sh", "-c", NETWORK, "sh"),
    "user": ("unshare", "--user", "--keep-caps"),
    # A process 1 of the same rank: the machine's own may be better protected than root.
    "first": ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"),
    "nobody": ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    # A parent that nobody needs, for what changes the parent.
    "shell": ("sh", "-c", '"$@"; exit $?', "sh"),
}


def outcome(code: int, number: int, out: str) -> str:
    """One line: what the program said, or how it ended without a word."""
    if number:
        return signal.Signals(number).name
    return out.strip() or f"exit {code}"


def run(kind: str, argv: list[str]) -> str:
    """How the control ended."""
    leaked = [os.open("/", os.O_PATH | os.O_DIRECTORY)] if kind == "leak" else []
    try:
        done = subprocess.run(
            [*_WRAPPERS[kind], *argv], capture_output=True, text=True, timeout=30, check=False,
            pass_fds=leaked, cwd="/", env={"OUTSIDE": "1", "PATH": os.environ["PATH"]},
        )  # fmt: skip
    finally:
        for fd in leaked:
            os.close(fd)
    number = -done.returncode if done.returncode < 0 else 0
    if not number and not done.stdout and done.returncode > 128 and kind in ("shell", "first"):
        number = done.returncode - 128
    return outcome(done.returncode, number, done.stdout or done.stderr)
