"""TLS towards upstreams: certificates are checked against the configured authorities alone."""

from __future__ import annotations

import ssl


def client_context(ca_file: str) -> ssl.SSLContext:
    """Return a context that demands a valid certificate for the name dialled, TLS 1.2 or later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=ca_file)
    return context
