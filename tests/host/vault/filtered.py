"""Run a program under a seccomp filter: filtered.py no-secret-memory|no-wx PROGRAM ARGUMENT..."""

import errno
import os
import sys

import seccomp

kind, program = sys.argv[1], sys.argv[2:]
rules = seccomp.SyscallFilter(seccomp.ALLOW)
if kind == "no-secret-memory":
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "memfd_secret")
else:
    wx, x = 0x6, 0x4  # PROT_WRITE | PROT_EXEC; PROT_EXEC
    rules.add_rule(seccomp.ERRNO(errno.EPERM), "mmap", seccomp.Arg(2, seccomp.MASKED_EQ, wx, wx))
    rules.add_rule(seccomp.ERRNO(errno.EPERM), "mprotect", seccomp.Arg(2, seccomp.MASKED_EQ, x, x))
rules.load()
os.execv(program[0], program)
