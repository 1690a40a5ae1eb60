"""The gateway: authenticates every client request before an adapter sees a byte of it.

It holds public keys only and has no network: the supervisor hands it a listening socket, and the
broker dials adapters for it. One connection carries one request, on both sides, so that there is no
request boundary that two parsers could see differently (request smuggling, RFC 9112 section 11.2).
"""

from __future__ import annotations


def main() -> int:
    """Run the gateway on the descriptors handed over; returns the exit status (0 after SIGTERM)."""
    from .server import main as run

    return run()
