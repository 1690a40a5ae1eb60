"""eat.py BYTES: hold that much memory, written to."""

import sys

held = bytearray()
while len(held) < int(sys.argv[1]):
    held += b"x" * (1 << 20)
print("held", len(held), flush=True)
