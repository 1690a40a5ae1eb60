"""Runs of encoded text, and what they say: percent, entities, escapes, base64, hex and their kin.

`GATES` are expressions for the scanner. They say in its one pass whether there is anything to
decode, and for base64 and hex where. Only what decodes to text is opened: in base64 of ASCII the
first three characters of each four can be only about half of the alphabet (RFC 4648, section 4),
so four such groups in a row come about once in 16,000 places of random data.
"""

from __future__ import annotations

import base64
import re
import string
import zlib
from collections.abc import Iterator
from itertools import pairwise

from .edits import Edit

_ANY = "A-Za-z0-9+/_-"
# The letters whose six bits can begin, continue and end three bytes of printable ASCII.
_FIRST = "I-Za-fCD"
_SECOND = "C-HS-Xi-nyz0-3AQgw"
_THIRD = "ABEFIJMNQRUVYZcdghklopstwx014589"
_QUAD = f"[{_FIRST}][{_SECOND}][{_THIRD}][{_ANY}]"
_LEAST = 4  # groups of base64, 12 bytes
_PAIRS = 10
# One letter and one NUL by turns, as UTF-16 has it; one letter and three NULs, as UTF-32.
_WIDE = (
    f"(?:[{_FIRST}][AQgw][AB][{_ANY}]A[C-H][AEIMQUYcgkosw048]A){{2}}"
    f"|(?:[{_FIRST}][AQgw]AAA[C-H][AEIMQUYcgkosw048]AAA[AB][{_ANY}]AAAA)"
)
_PACKED = "(?:H4sI|eJ[wxyz]|eN[opqr]|eAE|eF[4567])"  # gzip (RFC 1952), zlib (RFC 1950)

BASE64, HEX, PACKED, WIDE, INLINE, FORM = range(6)
GATES: tuple[tuple[str, bool], ...] = (
    # An expression, and whether one match is as good as many. The first two match at the end.
    (
        rf"(?:{_QUAD}){{{_LEAST}}}(?:\z|[^{_FIRST}]|[{_FIRST}](?:\z|[^{_SECOND}]|[{_SECOND}]"
        rf"(?:\z|[^{_THIRD}]|[{_THIRD}](?:\z|[^{_ANY}]))))",
        False,
    ),
    (
        rf"(?:[2-7][0-9A-Fa-f](?:[ ,:;-]{{0,2}}|\r?\n)(?:0x|\\x)?){{{_PAIRS}}}"
        r"(?:\z|[^2-7]|[2-7](?:\z|[^0-9A-Fa-f]))",
        False,
    ),
    (rf"{_PACKED}[{_ANY}]{{16}}", True),
    (_WIDE, True),
    (
        r"%(?:25)*[0-9A-Fa-f]{2}|%u[0-9A-Fa-f]{4}|&(?:amp;)*(?:#|[A-Za-z]{2,16};)|\\|\x1b"
        r"|=[2-7][0-9A-F]|=\r?\n|\*\*|[\w./+=-](?:\*|`{1,3}|~~)[\w./+=-]|[\w.-]<[/!a-z]"
        r"|[ -~][\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]",
        True,
    ),
    (r"%[0-9A-Fa-f]{2}[!-~]*\+|\w\+(?:[!-~]*%[0-9A-Fa-f]{2}|\w{1,12}\+\w)", True),
)

_NAMES = {
    "amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "nbsp": " ", "sol": "/",
    "lowbar": "_", "UnderBar": "_", "hyphen": "-", "dash": "-", "ndash": "-", "minus": "-",
    "period": ".", "colon": ":", "semi": ";", "comma": ",", "equals": "=", "plus": "+", "num": "#",
    "excl": "!", "commat": "@", "percnt": "%", "lpar": "(", "rpar": ")", "ast": "*", "midast": "*",
    "quest": "?", "lsqb": "[", "lbrack": "[", "rsqb": "]", "rbrack": "]", "bsol": "\\", "Hat": "^",
    "grave": "`", "lcub": "{", "lbrace": "{", "rcub": "}", "rbrace": "}", "verbar": "|",
    "vert": "|", "dollar": "$", "Tab": "\t", "NewLine": "\n", "shy": "", "zwnj": "", "zwj": "",
    "ZeroWidthSpace": "", "NoBreak": "",
}  # fmt: skip
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "b": "", "f": "", "v": "", "a": "", "e": "\x1b"}
_INLINE = re.compile(
    r"%(?:25)*(?P<percent>[0-7][0-9A-Fa-f])|(?P<percents>(?:%(?:25)*[89A-Fa-f][0-9A-Fa-f])+)"
    r"|%u(?P<script>[0-9A-Fa-f]{4})"
    r"|&(?:amp;)*(?:#(?P<decimal>[0-9]{1,7});?|#[xX](?P<hexa>[0-9A-Fa-f]{1,6});?"
    r"|(?P<name>[A-Za-z]{2,16});)"
    r"|\\+u(?P<high>[dD][89abAB][0-9A-Fa-f]{2})\\+u(?P<low>[dD][c-fC-F][0-9A-Fa-f]{2})"
    r"|\\+(?:u\{(?P<brace>[0-9A-Fa-f]{1,6})\}|[uU](?:0000)?(?P<four>[0-9A-Fa-f]{4})"
    r"|x(?P<two>[0-9A-Fa-f]{2})|(?P<octal>[0-3][0-7]{2})|(?P<letter>[nrtbfvae])"
    r"|(?P<itself>[^\sA-Za-z0-9\\])|\r?\n)"
    r"|=(?P<printed>[2-7][0-9A-F]|0[09AD])|=\r?\n"
    r"|\x1b(?:\[[0-?]*[A-Za-z]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\^_]|(?![\[\]@-Z\\^_]))"
    r"|\*{2,3}|(?<=[\w./+=-])(?:\*|`{1,3}|~~)(?=[\w./+=-])"
    r"|(?<=[\w.-])(?:<(?:!--[^<>]{0,80}--|/?[a-z][a-z0-9]{0,9}(?: [^<>]{0,80})?/?)>)+"
)
_MARK = re.compile(r"[%&\\=\x1b*`~<]")  # what those begin with; far faster to search for
_PRINTED = re.compile(r"=(?:3D|\r?\n|[2-7][0-9A-F]=[2-7][0-9A-F])")
_PERCENTS = re.compile("%(?:25)*")

_BREAK = r"(?:\r?\n[ \t>]{0,8})?"
_KAERB = r"(?:[ \t>]{0,8}\n\r?)?"  # the same, backwards
_ON = re.compile(f"(?:{_BREAK}[{_FIRST}]{_BREAK}[{_SECOND}]{_BREAK}[{_THIRD}]{_BREAK}[{_ANY}])*")
_TAIL = re.compile(f"{_BREAK}[{_FIRST}]{_BREAK}[{_SECOND}](?:{_BREAK}[{_THIRD}])?(?![{_ANY}])")
_REST = re.compile(rf"(?:[ \t>\r\n]{{0,9}}[{_ANY}]){{0,3}}(?:\r?\n?[ \t>]{{0,8}})?\Z")
_HEX_REST = re.compile(r"[ ,:;\r\n-]{0,2}(?:0x?|\\x?)?[02-7]?\Z")
_PADDING = re.compile("={0,2}")
_BACK = re.compile(f"(?:[{_ANY}]{_KAERB}[{_THIRD}]{_KAERB}[{_SECOND}]{_KAERB}[{_FIRST}]{_KAERB})+")
_HEX_BACK = re.compile(r"(?:(?:[ ,:;-]{0,2}|\n\r?)(?:[0-9A-Fa-f][2-7]|[9AaDd]0)(?:x0|x\\)?)+")
_HEX_PAIR = re.compile(r"(?:0x|\\x)?([2-7][0-9A-Fa-f]|0[9AaDd])")
_HEX_ON = re.compile(r"(?:(?:[ ,:;-]{0,2}|\r?\n)(?:0x|\\x)?(?:[2-7][0-9A-Fa-f]|0[9AaDd]))*")
_PACK = re.compile(rf"(?<![{_ANY}]){_PACKED}(?:{_BREAK}[{_ANY}])*={{0,2}}")
_RUN_BACK = re.compile(f"[{_ANY}]*")
_WIDES = re.compile(rf"(?:{_WIDE})(?:{_BREAK}[{_ANY}])*={{0,2}}")
_CONTROL = re.compile(r"[^\t\n\r -~]")
_SPACE = re.compile(r"[\s>]+")


def _beginnings(*classes: str) -> str:
    """An expression for every beginning, not empty, of one character of each class."""
    inner = ""
    for one in reversed(classes):
        inner = f"{one}(?:{inner})?" if inner else one
    return inner


_F, _S, _T, _A = f"[{_FIRST}]", f"[{_SECOND}]", f"[{_THIRD}]", f"[{_ANY}]"
_ZERO = "[AEIMQUYcgkosw048]"
_ALTERNATE = (_F, "[AQgw]", "[AB]", _A, "A", "[C-H]", _ZERO, "A")
_FOURFOLD = (_F, "[AQgw]", "A", "A", "A", "[C-H]", _ZERO, "A", "A", "A", "[AB]", _A)
_PART = _beginnings(_F, _S, _T)
# What may be the beginning of a run that is too short yet to be opened: anywhere in a word, ...
_BEGUN_WITHIN = re.compile(rf"(?:{_QUAD}){{1,4}}{_F}{_S}{_T}?\Z")
# ... where a word or a part of one begins, ...
_BEGUN_PART = re.compile(rf"(?:(?:{_QUAD}){{1,4}}(?:{_PART})?|{_PART})\Z")
# ... where a word begins, ...
_BEGUN_WORD = re.compile(
    rf"(?:{_beginnings('A', '[C-H]', _ZERO, 'A')}|//[45]?{_A}?|/v?8?A?|A{{1,4}})\Z"
    rf"|(?:A[C-H]{_ZERO}A|//[45]{_A}|/v8A|AAAA)?"
    rf"(?:(?:{''.join(_ALTERNATE)}){{0,2}}(?:{_beginnings(*_ALTERNATE)})"
    rf"|{_beginnings(*_FOURFOLD, 'A', 'A', 'A', 'A')})\Z"
    rf"|(?:H(?:4(?:sI?)?)?|e(?:[JN].?|A[EFGH]?|F[4567]?)?|{_PACKED}[{_ANY}]{{0,16}})\Z"
)
# ... and of hexadecimal digits.
_BEGUN_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:(?:0x|\\x)?[2-7][0-9A-Fa-f](?:[ ,:;-]{0,2}|\r?\n)){0,10}"
    r"(?:0x?|\\x?)?[2-7]?\Z"
)
_PART_END = re.compile("[/_+-]")
_LETTERS_OF_RUNS = string.ascii_letters + string.digits + "+/_-"
_LETTERS_OF_HEX = string.hexdigits + "x\\ ,:;-\r\n"
# What may be the beginning of a short escape.
_CUT_OFF = re.compile(
    r"(?:%(?:25)*(?:[0-9A-Fa-f]?|[89A-Fa-f][0-9A-Fa-f](?:%(?:25)*[0-9A-Fa-f]{0,2}){0,3})"
    r"|%u[0-9A-Fa-f]{0,3}|&(?:amp;)*(?:#(?:[0-9]{0,7}|[xX][0-9A-Fa-f]{0,6})|[A-Za-z]{0,16})"
    r"|\\+(?:u\{[0-9A-Fa-f]{0,6}|[uU][0-9A-Fa-f]{0,7}|u[dD][89abAB][0-9A-Fa-f]{2}\\+u?[0-9A-Fa-f]{0,3}"
    r"|x[0-9A-Fa-f]?|[0-3][0-7]?|\r)?|=(?:\r|[0-7][0-9A-F]?)?"
    r"|\x1b(?:\[[0-?]*|\][^\x07\x1b]{0,200})?"
    r"|\*{1,3}|`{1,3}|~|<(?:!--[^<>]{0,82}|/?[a-z]?[a-z0-9]{0,9}(?: [^<>]{0,80})?/?))\Z"
)
_NEAR_END = 160  # characters in which a short escape or a young run ends


def cut_off(text: str) -> int:
    """Return where at the end of `text` an escape may be cut off; len(text) where none is."""
    for mark in _MARK.finditer(text, max(0, len(text) - _NEAR_END)):
        if _CUT_OFF.match(text, mark.start()):
            return mark.start()
    return len(text)


def begun(text: str) -> int:
    """Return where at the end of `text` a run may begin, too short yet; len(text) for nowhere."""
    size, low = len(text), max(0, len(text) - _NEAR_END)
    near = text[low:]
    at = size
    start = low + len(near.rstrip(_LETTERS_OF_RUNS))
    if start < size:
        starts = [start, *(found.end() for found in _PART_END.finditer(text, start))]
        if _BEGUN_WORD.match(text, start):
            at = start
        elif first := next((n for n in starts if _BEGUN_PART.match(text, n)), None):
            at = first
        if within := _BEGUN_WITHIN.search(text, start, size):
            at = min(at, within.start())
    digits = low + len(near.rstrip(_LETTERS_OF_HEX))
    if digits < size and (match := _BEGUN_HEX.search(text, digits)):
        at = min(at, match.start())
    return at


_URL_SAFE = str.maketrans("-_", "+/")
_REACH = 1 << 16  # how far back one run is followed
UNPACKED_MAX = 4 * 1024 * 1024


def inline(text: str) -> Iterator[Edit]:
    """Yield an edit for each short escape: percent, entity, backslash, ANSI, Markdown, ..."""
    printed = _PRINTED.search(text) is not None
    done = 0
    for mark in _MARK.finditer(text):
        at = mark.start()
        if at < done or (match := _INLINE.match(text, at)) is None:
            continue
        done = match.end()
        kind, value = match.lastgroup, match[match.lastgroup] if match.lastgroup else ""
        if kind == "printed" and not printed:
            continue  # "x=20" is no quoted-printable (RFC 2045) where no other sign of it is
        if kind == "low":
            value = (
                f"{0x10000 + (int(match['high'], 16) & 0x3FF) * 0x400 + int(value, 16) - 0xDC00:x}"
            )
        plain = _plain(kind, value)
        if plain is not None:
            yield Edit(match.start(), match.end(), plain)


def _plain(kind: str | None, value: str) -> str | None:
    if kind is None:
        return ""
    if kind == "name":
        return _NAMES.get(value)
    if kind == "letter":
        return _LETTERS[value]
    if kind == "itself":
        return value
    if kind == "percents":
        return bytes.fromhex(_PERCENTS.sub("", value)).decode("utf-8", "ignore")
    point = int(value, {"decimal": 10, "octal": 8}.get(kind, 16))
    return chr(point) if point <= 0x10FFFF else None


def base64_run(text: str, hit: int, final: bool = True) -> Edit | None:
    """Return the run of base64 of which `hit` (or up to four before it) is the end.

    Not `final`: more text may follow. Letters at the end that make no whole group are then left
    out of what the run says.
    """
    low = max(0, hit - _REACH)
    backwards = text[low:hit][::-1]
    best: Edit | None = None
    for skip in range(5):
        match = _BACK.match(backwards, skip)
        edit = _base64(text, hit - match.end(), hit - skip, final) if match else None
        # Of several alignments that could be text, the one that says most and is text throughout.
        if edit and (best is None or _readable(edit.text) > _readable(best.text)):
            best = edit
    return best


def _base64(text: str, start: int, middle: int, final: bool) -> Edit | None:
    """Return the run that begins at `start` (or after space there) and goes on at `middle`."""
    start = middle - len(text[start:middle].lstrip(" \t>\r\n"))
    end = _ON.match(text, middle).end()  # type: ignore[union-attr]  # it matches nothing too
    pending = None if final else _REST.match(text, end)
    if pending is None and (tail := _TAIL.match(text, end)):
        end = tail.end()
    letters = text[start:end]
    where: range | list[int] = range(start, end)
    if breaks := list(_SPACE.finditer(letters)):
        gone = {n for found in breaks for n in range(found.start(), found.end())}
        where = [start + n for n in range(len(letters)) if n not in gone]
        letters = _SPACE.sub("", letters)
    if len(letters) < 4 * _LEAST:
        return None
    plain = _decoded(letters).decode("latin-1")
    if pending:
        return Edit(start, len(text), plain, where, 4, 3, end)
    end = _PADDING.match(text, end).end()  # type: ignore[union-attr]
    return Edit(start, end, plain, where, 4, 3)


def _readable(text: str) -> int:
    return len(text) - 8 * len(_CONTROL.findall(text))


def hex_runs(text: str, hit: int, final: bool = True) -> list[Edit]:
    """Return the runs of hexadecimal pairs of which `hit` (or up to two before it) is the end.

    One unbroken run may have others beside it, which a space sets apart. `final` as above.
    """
    low = max(0, hit - _REACH)
    backwards = text[low:hit][::-1]
    for skip in range(3):
        match = _HEX_BACK.match(backwards, skip)
        if match is None:
            continue
        end = _HEX_ON.match(text, hit - skip).end()  # type: ignore[union-attr]
        pairs = list(_HEX_PAIR.finditer(text, hit - match.end(), end))
        if len(pairs) >= _PAIRS:
            return [_hex(text, run, final) for run in _unbroken(text, pairs)]
    return []


def _unbroken(text: str, pairs: list[re.Match[str]]) -> list[list[re.Match[str]]]:
    """Return `pairs` in runs: an unbroken one that is long enough alone, all others together."""
    words = [pairs[:1]]
    for before, pair in pairwise(pairs):
        if text[before.end() : pair.start()].strip("\r\n"):
            words.append([])
        words[-1].append(pair)
    runs: list[list[re.Match[str]]] = [[]]
    for word in words:
        if len(word) >= _PAIRS:
            runs += [word, []]
        else:
            runs[-1] += word
    return [run for run in runs if len(run) >= _PAIRS]


def _hex(text: str, pairs: list[re.Match[str]], final: bool) -> Edit:
    plain = bytes.fromhex("".join(pair[1] for pair in pairs)).decode("latin-1")
    where = [n for pair in pairs for n in (pair.start(), pair.end() - 1)]
    end = where[-1] + 1
    if not final and _HEX_REST.match(text, end):
        return Edit(where[0], len(text), plain, where, 2, 1, end)
    return Edit(where[0], end, plain, where, 2, 1)


def packed_runs(text: str, final: bool = True) -> Iterator[Edit]:
    """Yield the runs of base64 that hold gzip or zlib data; `final` as above."""
    for match in _PACK.finditer(text):
        data = _decoded(_SPACE.sub("", match[0].rstrip("=")))
        try:
            plain = zlib.decompressobj(47).decompress(data, UNPACKED_MAX)
        except zlib.error:
            continue
        pending = match.start() if not final and match.end() == len(text) else None
        yield Edit(match.start(), match.end(), plain.decode("utf-8", "replace"), pending=pending)


def wide_runs(text: str, final: bool = True) -> Iterator[Edit]:
    """Yield the runs of base64 that hold UTF-16 or UTF-32 text; `final` as above."""
    for match in _WIDES.finditer(text):
        start, low = match.start(), max(0, match.start() - _REACH)
        ahead = start - low - len(_RUN_BACK.match(text[low:start][::-1])[0])  # type: ignore[index]
        if (start - low - ahead) % 4 == 0:
            start = low + ahead  # a byte order mark, or the NULs before the first letter
        data = _decoded(_SPACE.sub("", text[start : match.end()].rstrip("="))).replace(b"\0", b"")
        pending = start if not final and match.end() == len(text) else None
        plain = _CONTROL.sub("", data.decode("latin-1"))
        yield Edit(start, match.end(), plain, pending=pending)


def _decoded(letters: str) -> bytes:
    """Return the bytes of base64 without padding; letters that make no byte are left out."""
    letters = letters[: len(letters) - (len(letters) % 4 == 1)]
    return base64.b64decode(letters.translate(_URL_SAFE) + "=" * (-len(letters) % 4))
