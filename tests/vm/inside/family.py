"""family.py BYTES: a child takes that much memory; the parent says what became of it."""

import os
import sys
import time

child = os.fork()
if child == 0:
    held = bytearray()
    while len(held) < int(sys.argv[1]):
        held += b"x" * (1 << 20)
    os._exit(0)
status = os.waitpid(child, 0)[1]
print("child", os.waitstatus_to_exitcode(status), flush=True)
time.sleep(0.5)
print("parent lives", flush=True)
