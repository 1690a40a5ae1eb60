"""Look for inputs that break the masking of streams or the reading of JSON: `make fuzz`.

Every property of `properties.py` is given fresh random inputs in turn until the time (MINUTES, ten
if not set) is over. The first that fails is printed with the smallest input that shows it; a time
too short for all of them is a failure as well.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from .properties import PROPERTIES

ROUND = 400  # inputs per property and round


def main() -> int:
    """Fuzz; 1 if a property did not hold."""
    minutes = float(os.environ.get("MINUTES", "10"))
    end = time.monotonic() + 60 * minutes
    tried = dict.fromkeys(PROPERTIES, 0)
    start = int.from_bytes(os.urandom(4), "big")
    for number in itertools.cycle(range(1 << 30)):
        for name, (strategy, check) in PROPERTIES.items():
            if time.monotonic() >= end:
                for each, count in tried.items():
                    said = f"{count} inputs, all well" if count else "NOT TRIED: raise MINUTES"
                    print(f"fuzz: {each}: {said}")
                return 0 if all(tried.values()) else 1
            test = settings(
                max_examples=ROUND,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )(given(strategy)(check))
            try:
                seed(start + number)(test)()
            except Exception as error:
                print(f"fuzz: {name} does not hold (seed {start + number})")
                print(
                    f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()), sep="\n"
                )
                return 1
            tried[name] += ROUND
    return 0


if __name__ == "__main__":
    sys.exit(main())
