"""An e-mail as data for a model: a few headers, the text, and the names of attachments."""

from __future__ import annotations

import email
import email.policy
from dataclasses import dataclass
from email.message import Message

from assistant.errors import AssistantError

_HEADERS = ("From", "To", "Cc", "Date", "Subject")
# The library's parsers take time that grows with header length squared and with lines times depth:
# these bounds keep the worst message to a second or two.
_HEADER_MAX = 8192
_HEADERS_MAX = 256
_LINES_MAX = 40_000
_NESTED_MAX = 16
_PARTS_MAX = 64
_TEXT_MAX = 128 << 10


class ContentError(AssistantError):
    """The content is no e-mail that can be worked on."""

    def __init__(self, sentence: str, fix: str = "", *, status: int = 400) -> None:
        super().__init__("bad_content", sentence, fix, status=status)


@dataclass(frozen=True, slots=True)
class Mail:
    """What the models get to see."""

    headers: tuple[tuple[str, str], ...]
    text: str
    attachments: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Attachment (not read): {name}" for name in self.attachments]
        return "\n".join([*lines, "", self.text])


def parse(content: str) -> Mail:
    """Parse an RFC 5322 / MIME message. Attachments are listed, never decoded.

    Raises ContentError (400; 413 when a bound is crossed).
    """
    if content.count("\n") > _LINES_MAX:
        raise ContentError(f"more than {_LINES_MAX} lines", status=413)
    lower = content.lower()
    if lower.count("multipart/") + lower.count("message/") > _NESTED_MAX:
        raise ContentError(f"more than {_NESTED_MAX} multipart parts", status=413)
    try:
        return _read(email.message_from_bytes(content.encode()))
    except ContentError:
        raise
    # The parser is lenient by design and raises what it happens to meet on hostile input.
    except Exception as error:
        raise ContentError(f"the e-mail cannot be parsed ({type(error).__name__})") from error


def _read(message: Message) -> Mail:
    """Read a message parsed with the old, simple policy: the new one looks into each part's headers
    with a parser that is far too slow for strangers' input, so only five headers go through it."""
    raw = [(name, str(value)) for name, value in message.raw_items()]
    if len(raw) > _HEADERS_MAX:
        raise ContentError(f"more than {_HEADERS_MAX} headers", status=413)
    found: dict[str, str] = {}
    for name, value in raw:
        found.setdefault(name.lower(), value)
    if "from" not in found:
        raise ContentError("not an RFC 5322 message: it has no From header")
    headers = tuple(
        (name, _header(name, found[name.lower()])) for name in _HEADERS if name.lower() in found
    )
    text, attachments = _body(message)
    if len(text) > _TEXT_MAX:
        raise ContentError(f"the text is over {_TEXT_MAX} characters", "send less", status=413)
    text = "\n".join(text.splitlines()).strip()
    return Mail(headers, text, tuple(attachments))


def _header(name: str, raw: str) -> str:
    """One header with its encoded words decoded; bare UTF-8 (RFC 6532) is taken as such."""
    _bounded(name, raw)
    value = raw.encode("ascii", "surrogateescape").decode("utf-8", "replace")
    return _one_line(str(email.policy.default.header_fetch_parse(name, value)))


def _bounded(name: str, raw: object) -> None:
    if len(str(raw)) > _HEADER_MAX:
        raise ContentError(f"header {name} is over {_HEADER_MAX} characters", status=413)


def _body(message: Message) -> tuple[str, list[str]]:
    """The first plain text (else the first HTML, without tags) and the names of all the rest."""
    plain: str | None = None
    html: str | None = None
    attachments: list[str] = []
    for number, part in enumerate(message.walk()):
        if number >= _PARTS_MAX:
            raise ContentError(f"more than {_PARTS_MAX} parts", status=413)
        if part.is_multipart():
            continue
        for name in ("Content-Type", "Content-Disposition"):
            _bounded(name, part.get(name, ""))
        kind = part.get_content_type()
        attached = part.get_content_disposition() == "attachment"
        if kind == "text/plain" and plain is None and not attached:
            plain = _text(part)
        elif kind == "text/html" and html is None and not attached:
            html = _text(part)
        else:
            attachments.append(_one_line(f"{part.get_filename() or 'unnamed'} ({kind})")[:200])
    if plain is None and html is not None:
        plain = _without_tags(html)
    return plain or "", attachments


def _text(part: Message) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    charset = part.get_content_charset("utf-8")
    try:
        return data.decode(charset, "replace")
    except LookupError:
        return data.decode("latin-1")


def _one_line(value: str) -> str:
    return " ".join(value.split())


def _without_tags(html: str) -> str:
    from html.parser import HTMLParser

    words: list[str] = []
    hidden = 0

    class Words(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            nonlocal hidden
            hidden += tag in ("script", "style")

        def handle_endtag(self, tag: str) -> None:
            nonlocal hidden
            hidden = max(0, hidden - (tag in ("script", "style")))

        def handle_data(self, data: str) -> None:
            if not hidden:
                words.append(data)

    Words().feed(html)
    lines = ("".join(words)).splitlines()
    return "\n".join(line.strip() for line in lines if line.strip())
