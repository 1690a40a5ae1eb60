"""Images and sound: the texts in their metadata are looked at, their pixels and samples are not.

PNG (ISO 15948), JPEG (JFIF, Exif), GIF89a and RIFF (WebP, WAVE): a piece of metadata with a secret
is left out. Of other known kinds, and of what does not follow its own format, all of it is looked
at as text.
"""

from __future__ import annotations

import base64
import os
import re
import zlib
from collections.abc import Callable, Iterator

from proxy.egress.redaction.text import Masker

Finds = Callable[[str], bool]  # whether a text holds a secret
_PNG = b"\x89PNG\r\n\x1a\n"
_MAGIC = (
    _PNG, b"\xff\xd8\xff", b"GIF8", b"RIFF", b"ID3", b"OggS", b"fLaC", b"\xff\xfb", b"\xff\xf3",
    b"\x1aE\xdf\xa3",
)  # fmt: skip
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf"})
_RIFF_TEXTS = frozenset({b"EXIF", b"XMP ", b"LIST", b"id3 "})
_INFLATED_MAX = 1024 * 1024
_EMBEDDED_MIN = 160
# The beginnings of the magic numbers above in base64, in a JSON string with nothing else in it.
_EMBEDDED = re.compile(
    r'"(data:[a-z]+/[a-z0-9.+-]+;base64,)?'
    r"((?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUQz|T2dnU|ZkxhQ|//[sz]|GkXfo)[A-Za-z0-9+/]{160,}={0,2})\""
)


class MediaHoldsSecret(ValueError):
    """A secret stands where it cannot be left out."""


def known(data: bytes) -> bool:
    """True for the beginning of an image or a recording that `cleaned` takes."""
    return data.startswith(_MAGIC) or data[4:8] == b"ftyp"


def cleaned(data: bytes, masker: Masker) -> bytes:
    """Return `data` without the metadata that `masker` would change; itself if there is none.

    Keys in use are looked for in all of it. Raises MediaHoldsSecret.
    """
    plain = data.decode("latin-1")
    if masker.keys(plain) != plain:
        raise MediaHoldsSecret("a key in use was found in media data")

    def finds(text: str) -> bool:
        return masker.text(text) != text

    try:
        if data.startswith(_PNG):
            parts = list(_png(data, finds))
        elif data.startswith(b"\xff\xd8\xff"):
            parts = list(_jpeg(data, finds))
        elif data.startswith(b"RIFF"):
            parts = list(_riff(data, finds))
        else:
            raise IndexError
    except IndexError:
        if _found(data, finds):
            raise MediaHoldsSecret("a secret was found in media data") from None
        return data
    whole = b"".join(parts)
    if len(whole) == len(data):
        return data
    if whole.startswith(b"RIFF"):
        whole = whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:]
    return whole


class Lifted:
    """A JSON text whose embedded media are out of it, so that no rule reads them as text."""

    def __init__(self, text: str) -> None:
        """`text` is then the rest of it."""
        self._media: dict[str, tuple[str, str]] = {}
        self._tag = ""
        self.text = _EMBEDDED.sub(self._lift, text) if len(text) > _EMBEDDED_MIN else text

    def put_back(self, text: str, masker: Masker) -> str:
        """Return the masked `text` with the cleaned media in place. Raises MediaHoldsSecret."""
        for token, (head, media) in self._media.items():
            if masker.keys(media) != media:  # every key in use, in base64 at each alignment
                raise MediaHoldsSecret("a key in use was found in media data")
            data = base64.b64decode(media)
            clean = cleaned(data, masker)
            if clean is not data:
                media = base64.b64encode(clean).decode("ascii")
            text = text.replace(token, f'"{head}{media}"')
        return text

    def _lift(self, found: re.Match[str]) -> str:
        if len(found[2]) % 4:
            return found[0]  # no base64: text like any other
        self._tag = self._tag or os.urandom(4).hex()  # so that no text can name one
        token = f'"media:{self._tag}:{len(self._media)}"'
        self._media[token] = (found[1] or "", found[2])
        return token


def _need(data: bytes, at: int, size: int) -> bytes:
    if size < 0 or at + size > len(data):
        raise IndexError
    return data[at : at + size]


def _png(data: bytes, finds: Finds) -> Iterator[bytes]:
    yield _PNG
    at = len(_PNG)
    while at < len(data):
        size = int.from_bytes(_need(data, at, 4), "big")
        chunk = _need(data, at, 12 + size)
        kind, body = chunk[4:8], chunk[8 : 8 + size]
        at += len(chunk)
        if kind not in _PNG_TEXTS or not _in_png_text(kind, body, finds):
            yield chunk
        if kind == b"IEND":
            break
    yield _tail(data[at:], finds)


def _in_png_text(kind: bytes, body: bytes, finds: Finds) -> bool:
    if _found(body, finds):
        return True
    start = body.find(b"\0")
    if kind == b"zTXt":
        return _in_deflated(body[start + 2 :], finds)
    if kind == b"iTXt" and body[start + 1 : start + 2] == b"\1":
        return _in_deflated(body[start + 3 :].split(b"\0", 2)[-1], finds)
    return False


def _in_deflated(body: bytes, finds: Finds) -> bool:
    """A text that cannot be read whole counts as one with a secret."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(body, _INFLATED_MAX)
    except zlib.error:
        return True
    return not inflate.eof or _found(text, finds)


def _jpeg(data: bytes, finds: Finds) -> Iterator[bytes]:
    yield data[:2]
    at = 2
    while True:
        head = _need(data, at, 4)
        if head[0] != 0xFF:
            raise IndexError
        if head[1] == 0xDA:  # the scan: pixels, to the end of the image
            end = data.rfind(b"\xff\xd9")
            if end < at:
                raise IndexError
            yield data[at : end + 2]
            yield _tail(data[end + 2 :], finds)
            return
        segment = _need(data, at, 2 + int.from_bytes(head[2:4], "big"))
        at += len(segment)
        text = head[1] == 0xFE or 0xE1 <= head[1] <= 0xEF
        if not text or not _found(segment[4:], finds):
            yield segment


def _riff(data: bytes, finds: Finds) -> Iterator[bytes]:
    yield _need(data, 0, 12)
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    at = 12
    while at < end:
        size = int.from_bytes(_need(data, at + 4, 4), "little")
        chunk = _need(data, at, 8 + size)
        padded = data[at : at + 8 + size + size % 2]
        at += len(padded)
        if chunk[:4] not in _RIFF_TEXTS or not _found(chunk[8:], finds):
            yield padded
    yield _tail(data[at:], finds)


def _tail(data: bytes, finds: Finds) -> bytes:
    """What stands behind the end of an image is no pixel either."""
    return b"" if data and _found(data, finds) else data


def _found(data: bytes, finds: Finds) -> bool:
    """Whether a text in `data` holds a secret, in one byte a character or, as in Exif, in two."""
    if finds(data.decode("latin-1")):
        return True
    wide = (data[at:].decode("utf-16-le", "replace") for at in (0, 1)) if b"\0" in data else ()
    return any(map(finds, wide))
