"""disk.py PATH BYTES read|write: through the page cache's back; prints bytes a second."""

import mmap
import os
import sys
import time

STEP = 256 << 10
path, amount, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
block = mmap.mmap(-1, STEP)  # O_DIRECT takes aligned memory only
flags = os.O_DIRECT | (os.O_RDONLY if way == "read" else os.O_WRONLY | os.O_CREAT)
fd = os.open(path, flags, 0o600)
began = time.monotonic()
for offset in range(0, amount, STEP):
    done = os.preadv(fd, [block], offset) if way == "read" else os.pwrite(fd, block, offset)
    assert done == STEP, done
print(amount / (time.monotonic() - began), flush=True)
