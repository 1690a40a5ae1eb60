"""`/usr/bin/python3 -IS supervisor VERB`: the command line, and with `up` the supervisor itself.

Root runs the standard library, this application and Debian's own packages, nothing from PyPI:
with -I -S the search path is exactly what the next lines make it, and /usr/local is not on it.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append("/usr/lib/python3/dist-packages")

if __name__ == "__main__":
    if sys.argv[1:2] == ["up"]:
        # Forks the launcher first of all, so nothing may be imported before it.
        from supervisor.daemon import main
    else:
        from supervisor.cli import main
    sys.exit(main(sys.argv[1:]))
