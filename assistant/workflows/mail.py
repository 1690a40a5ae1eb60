"""An e-mail as data for a model: a few headers, the text, and the names of attachments."""

from __future__ import annotations

import email
import email.policy
from dataclasses import dataclass
from email.message import EmailMessage, Message

from assistant.errors import AssistantError

_HEADERS = ("From", "To", "Cc", "Date", "Subject")
# The library's parser takes time that grows with header length squared and with lines times depth:
# these bounds keep the worst message under about a second.
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


class _Policy(email.policy.EmailPolicy):
    """The standard policy with a bound on every header, also those that the parser itself reads."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """Called once for each header, before anything looks into it."""
        if sum(map(len, sourcelines)) > _HEADER_MAX:
            raise ContentError(f"a header is over {_HEADER_MAX} characters", status=413)
        return super().header_source_parse(sourcelines)


_POLICY = _Policy()


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
        message: EmailMessage = email.message_from_bytes(content.encode(), policy=_POLICY)
        return _read(message)
    except ContentError:
        raise
    # The parser is lenient by design and raises what it happens to meet on hostile input.
    except Exception as error:
        raise ContentError(f"the e-mail cannot be parsed ({type(error).__name__})") from error


def _read(message: EmailMessage) -> Mail:
    if len(message) > _HEADERS_MAX:
        raise ContentError(f"more than {_HEADERS_MAX} headers", status=413)
    if message["From"] is None:
        raise ContentError("not an RFC 5322 message: it has no From header")
    headers = tuple(
        (name, _one_line(str(value))) for name in _HEADERS for value in message.get_all(name, [])
    )
    text, attachments = _body(message)
    if len(text) > _TEXT_MAX:
        raise ContentError(f"the text is over {_TEXT_MAX} characters", "send less", status=413)
    text = "\n".join(text.splitlines()).strip()
    return Mail(headers, text, tuple(attachments))


def _body(message: EmailMessage) -> tuple[str, list[str]]:
    """The first plain text (else the first HTML, without tags) and the names of all the rest."""
    plain: str | None = None
    html: str | None = None
    attachments: list[str] = []
    for number, part in enumerate(message.walk()):
        if number >= _PARTS_MAX:
            raise ContentError(f"more than {_PARTS_MAX} parts", status=413)
        if part.is_multipart():
            continue
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
