"""Bodies of multipart/form-data: read strictly, each part masked, written anew.

RFC 7578. Names and file names are masked like texts. Whatever two readers might take in two ways is
refused: text round the parts, other encodings, other headers, a name twice on one part.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

PARTS_MAX = 64
_BOUNDARY = re.compile(
    r'multipart/form-data\s*;\s*boundary=(?:"([A-Za-z0-9\'()+_,./:=? -]{1,70})"'
    r"|([A-Za-z0-9'+_.-]{1,70}))",
    re.IGNORECASE,
)
_DISPOSITION = re.compile(r'form-data; name="([^"\r\n]{1,256})"(?:; filename="([^"\r\n]{0,512})")?')
_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,64}(?:; ?charset=utf-8)?", re.IGNORECASE)
_AS_IS = frozenset({"7bit", "8bit", "binary"})


class MultipartInvalid(ValueError):
    """The body is not multipart/form-data as strictly as we read it; the message holds no data."""


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form; `filename` is None where it is no file. Names as on the wire."""

    name: str
    filename: str | None
    kind: str
    data: bytes


def boundary(content_type: str) -> bytes:
    """Return the boundary that the media type gives. Raises MultipartInvalid."""
    match = _BOUNDARY.fullmatch(content_type.strip())
    if not match:
        raise MultipartInvalid("there is no boundary, or one that is not allowed")
    return (match[1] or match[2]).encode("ascii")


def parse(body: bytes, mark: bytes) -> list[Part]:
    """Return the parts between lines of the boundary `mark`. Raises MultipartInvalid."""
    line = b"\r\n--" + mark
    first, *rest = (b"\r\n" + body).split(line)
    if first or len(rest) < 2 or rest[-1] not in (b"--", b"--\r\n"):
        raise MultipartInvalid("it does not begin or end with its boundary")
    if len(rest) - 1 > PARTS_MAX:
        raise MultipartInvalid(f"it has more than {PARTS_MAX} parts")
    return [_part(part) for part in rest[:-1]]


def build(parts: list[Part]) -> tuple[str, bytes]:
    """Return media type and body with a boundary of our own."""
    mark = os.urandom(16).hex()
    out = []
    for part in parts:
        name = f'; filename="{_quoted(part.filename)}"' if part.filename is not None else ""
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{_quoted(part.name)}"{name}\r\n'
        if part.kind:
            head += f"Content-Type: {part.kind}\r\n"
        out.append(head.encode("utf-8") + b"\r\n" + part.data + b"\r\n")
    return f"multipart/form-data; boundary={mark}", b"".join(out) + f"--{mark}--\r\n".encode(
        "ascii"
    )


def _part(raw: bytes) -> Part:
    head, gap, data = raw.partition(b"\r\n\r\n")
    if not gap or not head.startswith(b"\r\n"):
        raise MultipartInvalid("a part has no head")
    fields: dict[str, str] = {}
    try:
        for line in head[2:].decode("utf-8").split("\r\n"):
            name, colon, value = line.partition(":")
            if not colon or name.lower() in fields:
                raise MultipartInvalid("a part's head has a line that is not allowed")
            fields[name.lower()] = value.strip()
    except UnicodeDecodeError:
        raise MultipartInvalid("a part's head is not UTF-8") from None
    disposition = _DISPOSITION.fullmatch(fields.pop("content-disposition", ""))
    kind = fields.pop("content-type", "")
    encoding = fields.pop("content-transfer-encoding", "binary").lower()
    fields.pop("content-length", None)
    if not disposition or fields or encoding not in _AS_IS or (kind and not _TYPE.fullmatch(kind)):
        raise MultipartInvalid("a part's head says what is not allowed")
    return Part(disposition[1], disposition[2], kind, data)


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
