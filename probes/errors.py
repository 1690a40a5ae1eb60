"""What can go wrong in the watch: one family, each error with a stable code and the fix."""

from __future__ import annotations

import os


class ProbeError(Exception):
    """A refusal of the watch: `code` is stable, `message` is for people, `fix` says what to do.

    `number` is the errno of the kernel call that failed, 0 when there was none.
    """

    def __init__(self, code: str, message: str, fix: str, number: int = 0) -> None:
        super().__init__(f"{message} {fix}")
        self.code = code
        self.message = message
        self.fix = fix
        self.number = number

    def as_json(self) -> dict[str, object]:
        """The error as the loader's status line carries it."""
        body: dict[str, object] = {"code": self.code, "message": self.message, "fix": self.fix}
        if self.number:
            body["errno"] = self.number
            body["strerror"] = os.strerror(self.number)
        return body
