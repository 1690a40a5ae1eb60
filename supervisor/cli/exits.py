"""The exit codes of `anchorhold`, all of them. Scripts may rely on these numbers.

A running but DEGRADED installation is a 0: the host file waived what is missing, by name. The
status says so loudly, in the table and in its JSON.
"""

OK = 0  # done; `status`: running
FAILED = 1  # tried and failed; `demo`, `doctor`, `policy lint`, `seccomp`: something did not hold
USAGE = 2  # the command line, or a file named on it, is wrong; nothing was tried
NOT_RUNNING = 4  # no supervisor answers
REFUSED_START = 5  # the host lacks a guarantee that a policy requires and no waiver names
NOT_ALLOWED = 6  # not root, or not the user who may talk to the supervisor
TRY_FAILED = (
    125  # `try`: the sandbox could not be made; else the command's own code, or 128 + signal
)
INTERRUPTED = 130  # Ctrl-C
