"""Masking a tool call's arguments, which are JSON that arrives in pieces of a string.

A tokenizer keeps its place between the pieces. Each string inside goes decoded through a channel of
its own and is escaped again on the way out, so that pieces may come merged or late, but together
are valid JSON if they were before. What turns out not to be JSON is plain text from there on.
"""

from __future__ import annotations

import re
from collections import Counter
from json.decoder import scanstring  # type: ignore[attr-defined]  # absent from the stubs only
from typing import Literal, Protocol

from proxy.providers import Place

from .hold import HoldBack
from .json_walk import CARD, DEPTH_MAX, before_value, encode
from .placeholders import AROUND, unfinished
from .scan import ScanFailed
from .stream import Channel
from .text import Masker

WHOLE_MAX = 64 * 1024  # characters of a key, or of a value behind a telling key
_TOKEN_MAX = 400
_HEX = "[0-9A-Fa-f]"
_HALF = rf"\\u[dD][89abAB]{_HEX}{{2}}"  # the first half of a surrogate pair; its second may follow
_CONTENT = re.compile(
    r'(?:[^"\\\x00-\x1f]+|\\["\\/bfnrt]|'
    rf"\\u(?![dD][89abAB]){_HEX}{{4}}|{_HALF}(?:\\u{_HEX}{{4}}|(?=[^\\]|\\[^u])))+"
)
_ESCAPE_BEGUN = re.compile(rf"(?:{_HALF})?(?:\\(?:u{_HEX}{{0,3}})?)?\Z")
_SPACE = re.compile(r"[ \t\r\n]+")
_TOKEN = re.compile(r"([-+.0-9A-Za-z]+)([ \t\r\n]*)")
_VALID_TOKEN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")

_Expected = Literal["value", "first value", "key", "first key", "colon", "comma", "end"]


class TextChannel(Protocol):
    """A text in pieces: see stream.Channel."""

    @property
    def pending(self) -> bool:
        """True while text is held back."""

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be passed on. Raises ScanFailed, Blocked."""

    def flush(self) -> str:
        """The text has ended in good order: return the rest. Raises ScanFailed, Blocked."""

    def drop(self) -> None:
        """The text has broken off: forget what was held."""


def open_channel(masker: Masker, hold: HoldBack, place: Place | None = None) -> TextChannel:
    """Return the channel for a field of an answer; `place` says what it is to the policy.

    Without a place nothing is put back, whatever the policy restores.
    """
    if place == "tool-arguments":
        return ArgumentsChannel(masker, hold)
    channel = Channel(masker, hold)
    return Restoring(channel, masker, place) if place and masker.restores(place) else channel


class Restoring:
    """A channel behind which the workload's own values are put back."""

    __slots__ = ("_before", "_inner", "_masker", "_place", "_tail")

    def __init__(self, inner: TextChannel, masker: Masker, place: Place) -> None:
        self._inner = inner
        self._masker = masker
        self._place = place
        self._tail = self._before = ""

    @property
    def pending(self) -> bool:
        """True while text is held back."""
        return bool(self._tail) or self._inner.pending

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be passed on. Raises ScanFailed, Blocked."""
        text = self._tail + self._inner.feed(text)
        point = unfinished(text)
        self._tail = text[point:]
        return self._put_back(text[:point])

    def flush(self) -> str:
        """Return the rest. Raises ScanFailed, Blocked."""
        text, self._tail = self._tail + self._inner.flush(), ""
        return self._put_back(text)

    def drop(self) -> None:
        """Forget what was held."""
        self._tail = ""
        self._inner.drop()

    def _put_back(self, text: str) -> str:
        restored = self._masker.restore(text, self._place, self._before)
        self._before = (self._before + text)[-AROUND:]
        return restored


class _Whole:
    """A string of which nothing is passed on before its end: what is in front of it tells of it."""

    __slots__ = ("_before", "_masker", "_parts", "_size")

    def __init__(self, masker: Masker, before: str = "") -> None:
        self._masker = masker
        self._before = before
        self._parts: list[str] = []
        self._size = 0

    @property
    def pending(self) -> bool:
        return bool(self._parts)

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, text: str) -> str:
        self._size += len(text)
        if self._size > WHOLE_MAX:
            raise ScanFailed(f"A key, or what a telling key names, is longer than {WHOLE_MAX}.")
        self._parts.append(text)
        return ""

    def flush(self) -> str:
        text = self.text
        self.drop()
        return self._masker.text(text, self._before)

    def drop(self) -> None:
        self._parts.clear()


class ArgumentsChannel:
    """The arguments of one tool call. Feed it, and flush it at its end."""

    __slots__ = (
        "_before", "_expected", "_hold", "_key", "_masker", "_names", "_plain", "_restores",
        "_stack", "_string", "_tail", "_whole",
    )  # fmt: skip

    def __init__(self, masker: Masker, hold: HoldBack) -> None:
        self._masker = masker
        self._hold = hold
        self._restores = masker.restores("tool-arguments")
        self._stack: list[str] = []
        self._names: list[Counter[str]] = []  # masked keys of the objects around
        self._expected: _Expected = "value"
        self._string: TextChannel | None = None
        self._key: _Whole | None = None  # the same as _string while that is a key
        self._whole = False  # _string passes nothing on before its end
        self._before = ""
        self._tail = ""  # an escape or a number whose end has not come yet
        self._plain: TextChannel | None = None

    @property
    def pending(self) -> bool:
        """True while text is held back."""
        held = (self._plain, self._string)
        return bool(self._tail) or any(one is not None and one.pending for one in held)

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be passed on. Raises ScanFailed, Blocked."""
        if self._plain is not None:
            return self._plain.feed(text)
        text, self._tail = self._tail + text, ""
        out: list[str] = []
        at = 0
        while at < len(text):
            step = self._inside if self._string is not None else self._outside
            after = step(text, at, out)
            if after < 0:
                out.append(self._give_up(text[at:]))
                break
            at = after
        return "".join(out)

    def flush(self) -> str:
        """The arguments have ended: return the rest, cut off as it came. Raises as `feed`."""
        tail, self._tail = self._tail, ""
        if self._plain is not None:
            return self._plain.flush()
        if self._string is not None:
            half = scanstring(f'{tail[:6]}"', 0)[0] if len(tail) >= 6 else ""
            return encode(self._string.feed(half) + self._string.flush())[1:-1]
        token = tail.rstrip()
        if not token or ("value" in self._expected and _VALID_TOKEN.fullmatch(token)):
            return self._number(token)
        return self._give_up(tail) + self.flush()

    def drop(self) -> None:
        """The stream has broken off: forget what was held. It is never passed on unmasked."""
        self._tail = ""
        for one in (self._plain, self._string):
            if one is not None:
                one.drop()

    def _inside(self, text: str, at: int, out: list[str]) -> int:
        """Take one run of a string's content, or its end; -1: it is not JSON."""
        string = self._string
        if string is None:
            return -1
        if text[at] == '"':
            self._close(out)
            return at + 1
        run = _CONTENT.match(text, at)
        end = run.end() if run else at
        if end < len(text) and _ESCAPE_BEGUN.match(text, end):
            self._tail = text[end:]
        if end > at:
            raw = text[at:end]
            plain = scanstring(f'{raw}"', 0)[0] if "\\" in raw else raw
            passed = string.feed(plain)
            out.append(raw if passed == plain else encode(passed)[1:-1])
        elif not self._tail:
            return -1  # a control character, or an escape that does not exist
        return end + len(self._tail)

    def _close(self, out: list[str]) -> None:
        if self._key is not None:
            name = self._key.text
            masked = self._key.flush()
            if masked != name:
                self._names[-1][masked] += 1
                if (times := self._names[-1][masked]) > 1:
                    masked += f"-{times}"
            out.append(encode(masked)[1:])
            self._before, self._expected = before_value(name), "colon"
        elif self._string is not None:
            out.append(encode(self._string.flush())[1:])
            self._done()
        self._string = self._key = None

    def _outside(self, text: str, at: int, out: list[str]) -> int:
        """Take one token between strings; -1: it is not JSON."""
        if space := _SPACE.match(text, at):
            out.append(space[0])
            return space.end()
        if token := _TOKEN.match(text, at):
            if "value" not in self._expected or token.end() - at > _TOKEN_MAX:
                return -1
            # Only what follows tells whether "4111 1111" was a number or the beginning of a text.
            if token.end() == len(text):
                self._tail = token[0]
            elif self._stack and text[token.end()] in ",]}" and _VALID_TOKEN.fullmatch(token[1]):
                out.append(self._number(token[1]) + token[2])
                self._done()
            else:
                return -1
            return token.end()
        if not self._mark(text[at]):
            return -1
        out.append(text[at])
        return at + 1

    def _mark(self, character: str) -> bool:
        """Take a quote, bracket, comma or colon; False: it cannot stand here."""
        expected, around = self._expected, self._stack[-1] if self._stack else ""
        if character == '"' and "key" in expected:
            self._string = self._key = _Whole(self._masker)
            self._whole = True
        elif character == '"' and "value" in expected:
            self._string = self._value()
        elif character in "{[" and "value" in expected and len(self._stack) < DEPTH_MAX:
            self._stack.append(character)
            self._names.append(Counter())
            self._expected = "first key" if character == "{" else "first value"
        elif character == "," and expected == "comma":
            self._expected = "key" if around == "{" else "value"
        elif character == ":" and expected == "colon":
            self._expected = "value"
        elif (around, character) in (("{", "}"), ("[", "]")) and (
            expected in ("comma", "first key" if around == "{" else "first value")
        ):
            self._stack.pop()
            self._names.pop()
            self._done()
        else:
            return False
        return True

    def _value(self) -> TextChannel:
        before, self._before = self._before, ""
        self._whole = before != ""
        channel: TextChannel = (
            _Whole(self._masker, before) if before else Channel(self._masker, self._hold)
        )
        return Restoring(channel, self._masker, "tool-arguments") if self._restores else channel

    def _number(self, token: str) -> str:
        """Return a number as it may be passed on; a masked one stays a number."""
        if CARD.fullmatch(token) and self._masker.text(token) != token:
            return "0"
        return token

    def _done(self) -> None:
        """A value is complete."""
        self._expected = "comma" if self._stack else "end"

    def _give_up(self, rest: str) -> str:
        """Go on as plain text, with what the string that has begun still holds."""
        begun, self._string, self._key = self._string, None, None
        if begun is None or self._whole:
            self._plain = Channel(self._masker, self._hold)
            rest = (begun.flush() if begun is not None else "") + self._tail + rest
        else:
            self._plain = begun
        self._tail = ""
        return self._plain.feed(rest)
