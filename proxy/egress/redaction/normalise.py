"""Text as a reader sees it: look-alikes folded to ASCII, and what has no width left out.

Folding keeps every position (one character for one), so that only what is dropped or expands
needs an edit. Sources: Unicode UAX 15 (compatibility forms), UTS 39 (confusable letters), and the
Default_Ignorable_Code_Point property of UAX 44.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from .edits import Edit

# Letters of other scripts that look like a Latin one; escapes, because a reader could not tell.
_LOOKS = {
    "a": "\u0430\u03b1\u0251", "b": "\u042c\u044c\u0184", "c": "\u0441\u03f2\u1d04", "d": "\u0501",
    "e": "\u0435\u04bd\u212e", "g": "\u0261\u0581", "h": "\u04bb\u0570", "i": "\u0456\u03b9\u0131",
    "j": "\u0458\u03f3", "k": "\u043a\u03ba", "l": "\u04cf\u01c0", "n": "\u0578\u057c",
    "o": "\u043e\u03bf\u0585\u03c3\u1d0f", "p": "\u0440\u03c1", "q": "\u051b\u0566", "r": "\u0433",
    "s": "\u0455", "u": "\u03c5\u057d\u1d1c", "v": "\u03bd\u0475\u1d20", "w": "\u051d\u0461\u1d21",
    "x": "\u0445\u03c7", "y": "\u0443\u03b3\u04af", "z": "\u1d22", "m": "\u043c", "t": "\u0442",
    "A": "\u0410\u0391", "B": "\u0412\u0392", "C": "\u0421\u03f9", "E": "\u0415\u0395",
    "F": "\u03dc", "G": "\u050c", "H": "\u041d\u0397", "I": "\u0406\u0399\u04c0", "J": "\u0408",
    "K": "\u041a\u039a", "M": "\u041c\u039c", "N": "\u039d", "O": "\u041e\u039f\u0555",
    "P": "\u0420\u03a1", "Q": "\u051a", "S": "\u0405\u054f", "T": "\u0422\u03a4", "U": "\u054d",
    "V": "\u0474", "W": "\u051c", "X": "\u0425\u03a7", "Y": "\u04ae\u03a5", "Z": "\u0396",
    "3": "\u0417\u0437", "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\u06d4",
    "_": "\u02cd", "/": "\u2215\u2044\u2571", ":": "\ua789\u2236\u02d0\u05c3", "=": "\ua78a\u30a0",
    ".": "\u2024\u06d4"[:1], "'": "\u2018\u2019\u201b\u2032\u02b9", '"': "\u201c\u201d\u201f\u2033",
    "+": "\u2795\u16ed", "|": "\u2223", "~": "\u223c", "*": "\u2217", ",": "\u201a",
}  # fmt: skip
# Where characters with an ASCII compatibility form are.
_FORMS = ((0xA0, 0x2C00), (0xFB00, 0xFB07), (0xFE30, 0xFE70), (0xFF00, 0xFFF0),
          (0x1D400, 0x1D800), (0x1F100, 0x1F200), (0x1FBF0, 0x1FBFA), (0x3000, 0x3001),
          (0xA620, 0xA630), (0xA8D0, 0xA8DA), (0xAA50, 0xAA5A), (0xABF0, 0xABFA))  # fmt: skip
_IGNORED = (
    "\\x00-\\x08\\x0b\\x0c\\x0e-\\x1a\\x1c-\\x1f\\x7f-\\x84\\x86-\\x9f"
    "\\u00ad\\u0300-\\u036f\\u0483-\\u0489\\u0591-\\u05bd\\u061c\\u064b-\\u065f\\u115f\\u1160"
    "\\u17b4\\u17b5\\u180b-\\u180f\\u1ab0-\\u1aff\\u1dc0-\\u1dff\\u200b-\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\u20d0-\\u20ff\\u3164\\ufe00-\\ufe0f\\ufe20-\\ufe2f\\ufeff\\uffa0\\ufff0-\\ufffb"
)
_STRANGE = ("Mn", "Me", "Cf")


def _tables() -> tuple[dict[int, str], dict[str, str]]:
    """Return what folds to one ASCII character, and what expands to several."""
    fold: dict[int, str] = {}
    wide: dict[str, str] = {}
    ignored = re.compile(f"[{_IGNORED}]")
    for start, end in _FORMS:
        for point in range(start, end):
            character = chr(point)
            plain = unicodedata.normalize("NFKD", character)
            plain = "".join(c for c in plain if not unicodedata.combining(c))
            if unicodedata.category(character) == "Nd":
                plain = str(unicodedata.digit(character))
            if not plain or not plain.isascii() or ignored.match(character):
                continue
            if len(plain) == 1:
                fold[point] = plain
            else:
                wide[character] = plain
    for plain, looks in _LOOKS.items():
        fold |= dict.fromkeys(map(ord, looks), plain)
    return fold, wide


def _ranges(points: Iterable[int]) -> str:
    """Return the code points as the inside of a character class."""
    out: list[str] = []
    first = last = -2
    for point in [*sorted(points), -1]:
        if point == last + 1:
            last = point
            continue
        if first >= 0:
            out.append(f"\\U{first:08x}-\\U{last:08x}")
        first = last = point
    return "".join(out)


_FOLD, _WIDE = _tables()
# Classes of the basic plane alone are searched fast, those beyond it range after range.
_FOLDED = re.compile(f"[{_ranges(point for point in _FOLD if point < 0x10000)}]+")
_FOLDED_BEYOND = re.compile(
    "[\\U0001d400-\\U0001d7ff\\U0001f100-\\U0001f1ff\\U0001fbf0-\\U0001fbf9]+"
)
_LATIN = bytes(ord(_FOLD.get(point, chr(point))) for point in range(256))
# Marks and signs of all scripts, where they stand on one of ours.
_MARKS = _ranges(n for n in range(0x300, 0x10000) if unicodedata.category(chr(n)) in _STRANGE)
_DROPPED = re.compile(f"(?<=[ -~])[{_IGNORED}{_MARKS}]+|[{_IGNORED}{_ranges(map(ord, _WIDE))}]+")
_DROPPED_ASCII = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1a\\x1c-\\x1f\\x7f]+")
_DROPPED_BEYOND = re.compile(
    "[\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff]+"
)


def fold(text: str) -> str:
    """Return `text` with look-alikes as ASCII, of the same length; the same object if none is."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").translate(_LATIN).decode("latin-1")
    except UnicodeEncodeError:
        pass
    text = _FOLDED.sub(_folded, text)
    return _FOLDED_BEYOND.sub(_folded, text)


def _folded(match: re.Match[str]) -> str:
    return match[0].translate(_FOLD)


def edits(text: str) -> Iterator[Edit]:
    """Yield what must be dropped or expanded in `text`."""
    if text.isascii():
        classes: tuple[re.Pattern[str], ...] = (_DROPPED_ASCII,)
    else:
        classes = (_DROPPED, _DROPPED_BEYOND)
    for expression in classes:
        for match in expression.finditer(text):
            expanded = "".join(_WIDE.get(character, "") for character in match[0])
            yield Edit(match.start(), match.end(), expanded)
