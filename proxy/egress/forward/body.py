"""Bodies on the forward port: what can be read is masked, what cannot be read is not sent."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

from proxy.egress.errors import Refusal
from proxy.egress.redaction.json_walk import JsonInvalid, parse
from proxy.egress.redaction.text import Masker

FORM = "application/x-www-form-urlencoded"
_FIELDS_MAX = 1000


def media_type(value: str) -> str:
    """Return the type of a Content-Type header without its parameters, in lower case."""
    return value.partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a media type is JSON (RFC 6838, section 4.2.8)."""
    return kind in ("application/json", "text/json") or kind.endswith("+json")


def is_text(kind: str) -> bool:
    """Whether a media type is text without a structure that masking could break."""
    return kind.startswith("text/") or kind in ("application/xml", "application/javascript")


def masked_request(body: bytes, kind: str, masker: Masker) -> bytes:
    """Return a request's body, masked. Raises Refusal where it cannot be read as declared."""
    if not body:
        return body
    text = _text(body)
    if is_json(kind):
        try:
            parse(text)
        except JsonInvalid:
            raise Refusal("invalid_json", "The body is not JSON, as it says it is.") from None
        masked = masker.document(text)
    elif kind == FORM:
        masked = masked_form(text, masker)
    elif is_text(kind):
        masked = masker.text(text)
    else:
        raise Refusal("unsupported_type", "Bodies are JSON, forms or text: others are not masked.")
    return body if masked is text else masked.encode("utf-8", "surrogatepass")


def masked_form(text: str, masker: Masker) -> str:
    """Return a form, or a query, with its fields masked; `text` itself when there was nothing."""
    try:
        fields = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=_FIELDS_MAX,
            errors="strict",
        )  # fmt: skip
    except ValueError:
        raise Refusal("proxy_request_invalid", "The form or query is not URL-encoded.") from None
    masked = [(masker.text(name), masker.text(value, f"{name}=")) for name, value in fields]
    return text if masked == fields else urlencode(masked)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal("unsupported_type", "The body is not UTF-8.") from None
