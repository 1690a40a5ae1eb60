"""`python3 -I app/supervisor/vault VERB`: finds its own package, whatever else is visible.

In the sandbox only this package is there, so `supervisor` is a namespace package without a file.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from supervisor.vault.helper import main  # noqa: E402  # the path comes first

if __name__ == "__main__":
    sys.exit(main())
