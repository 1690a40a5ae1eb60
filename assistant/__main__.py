"""Entry of every program in this package: ``python3 -I assistant adapter NAME`` and so on."""

import os
import sys

# Nothing here speaks TLS and wsproto needs only SHA-1: without OpenSSL a process is 4 MB smaller
# (asyncio and hashlib both do without it) and has one large parser less inside the sandbox.
sys.modules["ssl"] = sys.modules["_hashlib"] = None  # type: ignore[assignment]
sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))  # noqa: PTH100, PTH120 (pathlib is big)

from assistant.program import main  # noqa: E402  (the two lines above must come first)

sys.exit(main(sys.argv[1:]))
