"""Bytes that are no text, in pieces: they pass as they are, unless a key in use is in them."""

from __future__ import annotations

from proxy.egress.redaction.text import Masker


class Opaque:
    """As a Channel, for bytes decoded as Latin-1; nothing is masked, a key ends it."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what can pass: all but what may be a key's beginning. Raises ConnectionError."""
        text = self._checked(self._held + text)
        at = self._masker.guard.holds(text)
        self._held = text[at:]
        return text[:at]

    def flush(self) -> str:
        """The end came in good order: return the rest."""
        rest, self._held = self._held, ""
        return self._checked(rest)

    def drop(self) -> None:
        """It broke off: forget what was held."""
        self._held = ""

    def _checked(self, text: str) -> str:
        if self._masker.keys(text) != text:
            self.drop()
            raise ConnectionError("a key in use was found in the answer")
        return text
