"""One thing an intruder would try first, by name, in a process that calls itself `try-NAME`.

Runs inside a sandbox as ``python3 -I - NAME PORT PATH``, from standard input, because nothing of it
belongs into the sandbox; the same text run as root without a sandbox is the positive control.
Prints "succeeded" or the refusal; an attempt that is killed prints nothing.
"""

import ctypes
import errno
import os
import socket
import sys

PTRACE_TRACEME, PR_SET_NAME = 0, 15
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
NOWHERE = "192.0.2.53"  # TEST-NET-1 (RFC 5737); connecting a UDP socket sends nothing
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    """Raise what a libc call left in errno."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def attempt(name: str, port: int, path: str) -> None:
    """Try it; OSError is the refusal."""
    if name == "files":  # another workload's: what is there at all, then the known path
        try:
            os.listdir("/")
        except OSError as error:
            print(f"listing /: {errno.errorcode[error.errno or 0]}", end=", ")
        with open(path, "rb") as file:
            file.read(1)
    elif name == "network":  # a service on the host's loopback, past every proxy
        socket.create_connection(("127.0.0.1", port), timeout=3).close()
    elif name == "ptrace":
        checked(libc.ptrace(PTRACE_TRACEME, 0, 0, 0))
    elif name == "mount":
        if os.geteuid() == 0:  # the control: nothing may reach the host's own mounts
            checked(libc.unshare(CLONE_NEWNS))
            checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    elif name == "dns":  # the first step of a query: a route to a server
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            query.connect((NOWHERE, 53))
    else:
        raise SystemExit(f"no attempt {name}")


if __name__ == "__main__":
    libc.prctl(PR_SET_NAME, f"try-{sys.argv[1]}".encode(), 0, 0, 0)
    try:
        attempt(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    except OSError as error:
        print(errno.errorcode.get(error.errno or 0, str(error.errno)), flush=True)
    else:
        print("succeeded", flush=True)
