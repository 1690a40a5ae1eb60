"""The egress proxy: the one window of a workload, through which it reaches models.

It decides who may call what, masks secrets on the way out, puts in the real key, and masks again
on the way back. Read `exchange.py` for the way of one request.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the proxy on the descriptors handed over; returns the exit status."""
    from proxy.errors import ProxyError
    from proxy.launch import inherited, read_config, require

    try:
        handed = inherited()
        config, audit, control, broker = require(handed, "config", "audit", "control", "broker")
        data = read_config(config)
        from .process import serve

        serve(data, {"audit": audit, "control": control, "broker": broker})
    except ProxyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
