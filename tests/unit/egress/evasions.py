"""Ways to write a secret so that a plain search misses it, each with the number of its case."""

from __future__ import annotations

import base64
import gzip
import quopri
import textwrap
import zlib
from collections.abc import Callable
from urllib.parse import quote, quote_plus

_CYRILLIC = str.maketrans("aceopxyikABCEHKMOPTX", "асеорхуікАВСЕНКМОРТХ")
_GREEK = str.maketrans("ovpABEZHIKMNOPTYX", "ονρΑΒΕΖΗΙΚΜΝΟΡΤΥΧ")  # noqa: RUF001


def _each(form: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: "".join(map(form, text))


def _between(mark: str) -> Callable[[str], str]:
    return lambda text: mark.join(text)


def _plain_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(_plain_base64(text), 64))


def _mathematical(text: str) -> str:
    return _each(
        lambda c: chr(0x1D5BA + ord(c) - 97) if c.islower() and c.isascii()
        else chr(0x1D5A0 + ord(c) - 65) if c.isupper() and c.isascii()
        else chr(0x1D7E2 + ord(c) - 48) if c.isdigit() and c.isascii() else c
    )(text)  # fmt: skip


def _fullwidth(text: str) -> str:
    return _each(lambda c: chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c)(text)


def _markdown(text: str) -> str:
    third = len(text) // 3
    return f"{text[:third]}**{text[third : 2 * third]}**{text[2 * third :]}"


def _ansi(text: str) -> str:
    half = len(text) // 2
    return f"{text[:half]}\x1b[1;31m{text[half:]}\x1b[0m"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _utf16(text: str) -> str:
    return base64.b64encode(text.encode("utf-16-le")).decode()


EVASIONS: dict[str, Callable[[str], str]] = {
    "E14 base64": _plain_base64,
    "E14 base64 URL-safe": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "E14 base64 unpadded": lambda text: _plain_base64(text).rstrip("="),
    "E14 base64 wrapped": _wrapped,
    "E15 percent": _each(lambda c: f"%{ord(c):02X}"),
    "E15 percent, reserved only": lambda text: quote(text, safe=""),
    "E15 percent twice": lambda text: quote(_each(lambda c: f"%{ord(c):02X}")(text), safe=""),
    "E15 percent with plus": quote_plus,
    "E16 entities, decimal": _each(lambda c: f"&#{ord(c)};"),
    "E16 entities, hexadecimal": _each(lambda c: f"&#x{ord(c):x};"),
    "E16 quoted-printable": _each(lambda c: f"={ord(c):02X}"),
    "E16 quoted-printable, soft breaks": lambda text: (
        "=\n".join(textwrap.wrap(text, 12))
        if "\n" not in text
        else quopri.encodestring(text.encode()).decode()
    ),
    "E17 gzip in base64": _packed,
    "E17 zlib in base64": lambda text: base64.b64encode(zlib.compress(text.encode())).decode(),
    "E17 base64 twice": lambda text: _plain_base64(_plain_base64(text)),
    "E17 base64 in percent": lambda text: quote(_plain_base64(text), safe=""),
    "E17 percent in base64": lambda text: _plain_base64(_each(lambda c: f"%{ord(c):02X}")(text)),
    "E17 base64 four times": lambda text: _plain_base64(
        _plain_base64(_plain_base64(_plain_base64(text)))
    ),
    "E17 hex": lambda text: text.encode().hex(),
    "E17 hex, spaced": lambda text: text.encode().hex(" "),
    "E17 hex in base64": lambda text: _plain_base64(text.encode().hex()),
    "E12 escapes \\u": _each(lambda c: f"\\u{ord(c):04x}"),
    "E12 escapes \\u twice": _each(lambda c: f"\\\\u{ord(c):04x}"),
    "E12 escapes \\x": _each(lambda c: f"\\x{ord(c):02x}"),
    "E18 UTF-16 with NULs": _between("\0"),
    "E18 UTF-16 in base64": _utf16,
    "E18 UTF-32 in base64": lambda text: base64.b64encode(text.encode("utf-32-be")).decode(),
    "E19 zero-width space": _between("\u200b"),
    "E19 zero-width joiner": _between("\u200d"),
    "E19 soft hyphen": _between("\u00ad"),
    "E19 bidi controls": lambda text: "\u202e" + _between("\u2067")(text) + "\u202c",
    "E19 variation selectors": _between("\ufe0f"),
    "E20 Cyrillic": lambda text: text.translate(_CYRILLIC),
    "E20 Greek": lambda text: text.translate(_GREEK),
    "E20 fullwidth": _fullwidth,
    "E20 mathematical": _mathematical,
    "E20 combining marks": _between("\u0301"),
    "E21 Markdown": _markdown,
    "E21 ANSI": _ansi,
}
