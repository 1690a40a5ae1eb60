"""The errors of this room: a stable code, a sentence, the fix, and the HTTP status that fits."""

from __future__ import annotations


class AssistantError(Exception):
    """Base of every error that this package raises on purpose.

    `code` is stable and safe to log. `sentence` and `fix` are for the person who sent the request
    or runs the program; they may quote a field name, never content.
    """

    def __init__(self, code: str, sentence: str, fix: str = "", *, status: int = 400) -> None:
        super().__init__(f"{sentence}; {fix}" if fix else sentence)
        self.code = code
        self.sentence = sentence
        self.fix = fix
        self.status = status

    @property
    def message(self) -> str:
        """Sentence and fix in one line."""
        return str(self)

    def body(self) -> dict[str, object]:
        """The error as OpenAI-shaped JSON data, the one shape used at every hop."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": None}}


class UnsupportedProtocol(AssistantError):
    """No adapter, or no route, for a protocol name."""

    def __init__(self, protocol: str, fix: str = "") -> None:
        super().__init__("unsupported_protocol", f"unsupported protocol: {protocol}", fix)


class UsageError(AssistantError):
    """Wrong command line or missing environment: the program does not start (exit status 2)."""

    def __init__(self, sentence: str, fix: str = "") -> None:
        super().__init__("usage", sentence, fix)
