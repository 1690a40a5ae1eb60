"""The whole set of policy files as one digest, which someone may sign.

It is the SHA-256 of what this prints in the directory, so that anybody can compute it:

    find . -name '*.toml' -not -path './hosts/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum

The signature, Ed25519 (RFC 8032) over CONTEXT and the 32 bytes of the digest, lies in base64url in
the file `policies.sig` beside them. The unlock helper checks it against the vault's signers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FILE = "policies.sig"
CONTEXT = b"anchorhold/policies/v1\0"
_HOSTS = "hosts"


def set_digest(directory: Path) -> bytes:
    """The digest of every policy, group and price below `directory`. Raises OSError."""
    files = (path.relative_to(directory) for path in directory.rglob("*.toml"))
    names = sorted(path.as_posix() for path in files if path.parts[0] != _HOSTS)
    listing = hashlib.sha256()
    for name in names:
        content = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        listing.update(f"{content}  ./{name}\n".encode())
    return listing.digest()
