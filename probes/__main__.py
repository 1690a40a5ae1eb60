"""`probes load` and `probes read`: the two programs of the watch, started by the supervisor."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib costs the reader memory


def _main() -> int:
    verb = sys.argv[1:]
    if verb == ["load"]:
        from probes.load import main as load

        return load()
    if verb == ["read"]:
        from probes.read import main as read

        return read()
    sys.stderr.write("usage: probes load|read\n")
    return 2


if __name__ == "__main__":
    sys.exit(_main())
