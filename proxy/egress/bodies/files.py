"""A file that a workload sends or gets: masked by what it is, or refused."""

from __future__ import annotations

from typing import Any

from proxy.egress.redaction.json_walk import JsonInvalid, read
from proxy.egress.redaction.text import Masker
from proxy.providers import Provider

from . import media


class FileRefused(ValueError):
    """The file is nothing that can be looked at; the message holds nothing of it."""


def masked_file(data: bytes, masker: Masker, provider: Provider) -> bytes:
    """Return `data` masked: JSON, JSON lines, text in UTF-8, images and sound (their metadata).

    What kind it is, its bytes say, not its name. Raises FileRefused for all others, such as
    archives and UTF-16, and ScanFailed, Blocked, Untouchable.
    """
    if media.known(data):
        return media.cleaned(data, masker)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise FileRefused("it is neither text in UTF-8 nor an image or a recording") from None
    if "\0" in text:
        raise FileRefused("it holds NUL characters")
    if text.lstrip()[:1] in ("{", "["):
        try:
            return masker.document(read(text), provider.opaque).encode("utf-8")
        except JsonInvalid:
            lines = text.split("\n")
            if documents(text) is not None:
                masked = [masker.document(x, provider.opaque) if x.strip() else x for x in lines]
                return "\n".join(masked).encode("utf-8")
    return masker.text(text).encode("utf-8")


def documents(text: str) -> list[Any] | None:
    """Return the values of a text that has one JSON document a line; None if it has not."""
    try:
        return [read(line).value for line in text.split("\n") if line.strip()]
    except JsonInvalid:
        return None
