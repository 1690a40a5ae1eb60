"""Policy: parse (text to typed rules), compile (rules to plans), explain, lint.

Everything here works without root and without a daemon; it uses the standard library only, and
Debian's ``seccomp`` for the numbers of system calls.
"""
