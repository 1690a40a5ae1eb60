"""Entry of every program in this package: ``python3 -I assistant adapter NAME`` and so on."""

import sys

# Nothing here speaks TLS and wsproto needs only SHA-1: without OpenSSL a process is 4 MB smaller
# (asyncio and hashlib both do without it) and has one large parser less inside the sandbox.
sys.modules["ssl"] = sys.modules["_hashlib"] = None  # type: ignore[assignment]
sys.path[0] = sys.path[0].rpartition("/")[0] or "/"

from assistant.program import main  # noqa: E402  (the two lines above must come first)

sys.exit(main(sys.argv[1:]))
