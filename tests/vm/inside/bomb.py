"""bomb.py ROUNDS SECONDS: double ROUNDS times, a dot per process; the first one ends after SECONDS.

Bounded by itself, 2**ROUNDS processes, so that it can also run where nothing else bounds it.
"""

import os
import sys
import time
from contextlib import suppress

first = os.getpid()
end = time.monotonic() + float(sys.argv[2])
for _ in range(int(sys.argv[1])):
    with suppress(BlockingIOError):  # EAGAIN, what pids.max answers
        os.fork()
os.write(1, b".")
# Those that the first one leaves behind would go on for a minute.
time.sleep(max(0.0, end - time.monotonic()) + (0 if os.getpid() == first else 60))
