"""spin.py THREADS SECONDS: keep that many threads busy; prints processor time by wall time."""

import sys
import threading
import time
import zlib

END = time.monotonic() + float(sys.argv[2])
BLOCK = bytes(1 << 20)  # the interpreter lock is released for the time of a checksum


def spin() -> None:
    """One busy thread."""
    while time.monotonic() < END:
        zlib.crc32(BLOCK)


began, used = time.monotonic(), time.process_time()
threads = [threading.Thread(target=spin) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print((time.process_time() - used) / (time.monotonic() - began), flush=True)
