"""The body of a request: read as JSON, what it asks for, and the same masked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from proxy.egress.authorize import Headers, misplaced
from proxy.egress.config import Workload
from proxy.egress.errors import Refusal
from proxy.egress.redaction import json_walk
from proxy.egress.redaction.json_walk import Document, JsonInvalid, JsonTooDeep
from proxy.egress.redaction.text import Masker
from proxy.providers import Provider, Route

from . import multipart
from .content_encoding import ENCODINGS, EncodingWrong, TooLarge, decode
from .files import FileRefused, documents, masked_file
from .media import Lifted
from .multipart import MultipartInvalid, Part

_MARK = "anchorhold-placeholder-"


def media_type(headers: Headers, route: Route) -> str:
    """Return the Content-Type to send on; the request's must be the declared one, in UTF-8."""
    values = [value for name, value in headers if name == b"content-type"]
    if route.request == "none":
        return ""
    if len(values) != 1:
        raise Refusal("unsupported_type", "There is not one Content-Type.")
    kind, _, parameter = values[0].lower().partition(b";")
    if route.request == "multipart":
        return values[0].decode("latin-1")
    if kind.strip() != b"application/json":
        raise Refusal("unsupported_type", "The body is not application/json.")
    if parameter.strip().replace(b'"', b"") not in (b"", b"charset=utf-8"):
        raise Refusal("unsupported_type", "The body is not UTF-8.")
    return "application/json"


def decoded(body: bytes, headers: Headers, workload: Workload) -> bytes:
    """Return the body without its content encoding. Raises Refusal."""
    values = [value for name, value in headers if name == b"content-encoding"]
    encoding = values[0].strip().lower().decode("latin-1") if values else "identity"
    if len(values) > 1 or encoding not in ENCODINGS:
        raise Refusal("unsupported_encoding", "There is not one known Content-Encoding.")
    if encoding == "identity":
        return body
    try:
        return decode(body, encoding, workload.body_max)
    except TooLarge as error:
        raise Refusal("body_too_large", f"The body is too large: {error}.") from None
    except EncodingWrong as error:
        raise Refusal("unsupported_encoding", f"The body cannot be decoded: {error}.") from None


def read(body: bytes) -> tuple[Document, Lifted]:
    """Return the body, a JSON object, parsed without its media, and these. Raises Refusal."""
    try:
        lifted = Lifted(body.decode("utf-8"))
        document = json_walk.read(lifted.text)
    except UnicodeDecodeError:
        raise Refusal("invalid_json", "The body is not UTF-8.") from None
    except JsonTooDeep as error:
        raise Refusal("body_too_deep", f"The body is {error}.") from None
    except JsonInvalid as error:
        raise Refusal("invalid_json", f"The body is not JSON: {error}.") from None
    if not isinstance(document.value, dict):
        raise Refusal("invalid_json", "The body is not a JSON object.")
    return document, lifted


def read_form(body: bytes, kind: str) -> list[Part]:
    """Return the parts of a body of multipart/form-data. Raises Refusal."""
    try:
        return multipart.parse(body, multipart.boundary(kind))
    except MultipartInvalid as error:
        raise Refusal("invalid_form", f"The body is no form: {error}.") from None


def named_model(parts: list[Part]) -> str:
    """Return the model that a form names. Raises Refusal."""
    models = [part.data for part in parts if part.name == "model" and part.filename is None]
    if len(models) != 1:
        raise Refusal("invalid_form", "The form needs model, once.")
    return models[0].decode("utf-8", "replace")


def masked_form(
    parts: list[Part], provider: Provider, masker: Masker, has_placeholder: Callable[[str], bool]
) -> tuple[str, bytes]:
    """Return media type and body of the form with names, texts and files masked.

    Raises Refusal, ScanFailed, Blocked, Untouchable.
    """
    found = []
    for part in parts:
        texts = [part.name, part.filename or "", part.data.decode("latin-1")]
        if any(_MARK in text and has_placeholder(text) for text in texts):
            raise misplaced("in the form")
        try:
            data = masked_file(part.data, masker, provider)
        except FileRefused as error:
            raise Refusal("unsupported_type", f"A part of the form: {error}.") from None
        name = None if part.filename is None else masker.text(part.filename)
        found.append(Part(masker.text(part.name), name, part.kind, data))
    return multipart.build(found)


def batched_models(document: Any, parts: list[Part]) -> list[str]:
    """Return the models that the requests of a batch ask for, inline or as lines of a file."""
    requests = document.get("requests") if isinstance(document, dict) else None
    asked = [item.get("params") for item in _dicts(requests)]
    for part in parts:
        lines = documents(part.data.decode("utf-8", "replace")) if b'"body"' in part.data else None
        asked += [line.get("body") for line in _dicts(lines)]
    return [str(body.get("model")) for body in _dicts(asked)]


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def asked(document: dict[str, Any], route: Route, provider: Provider) -> tuple[str, bool]:
    """Return the model (for a route with one in the body) and whether a stream is wanted."""
    model, stream = document.get("model"), document.get("stream")
    if route.model == "body" and not isinstance(model, str):
        raise Refusal("invalid_json", "The body needs model (a string).")
    for name in route.lists:
        if not isinstance(document.get(name), list):
            raise Refusal("invalid_json", f"The body needs {name} (a list).")
    if stream not in (True, False, None):
        raise Refusal("invalid_json", "stream is true or false.")
    for name in provider.refused:
        if document.get(name) not in (None, False, 0):
            raise Refusal("logprobs_not_allowed", "Token by token, an answer cannot be masked.")
    return (model if isinstance(model, str) else ""), bool(stream)


def masked(
    document: Document,
    lifted: Lifted,
    provider: Provider,
    masker: Masker,
    has_placeholder: Callable[[str], bool],
) -> bytes:
    """Return the body with its strings masked; bytes that need no change are copied.

    `has_placeholder` tells of a text whether a placeholder is in it. Raises Refusal, ScanFailed,
    Blocked, Untouchable.
    """
    if any(f'"{text}"' in document.text for text in provider.signed.values()):
        document = _without_emptied(document, provider)

    def mask(text: str, before: str) -> str:
        if _MARK in text and has_placeholder(text):
            raise misplaced("in the body")
        return masker.text(text, before)

    def suspects(all_: str) -> bool:
        return _MARK in all_ or masker.suspects(all_)

    text = json_walk.rewrite(document, mask, suspects, provider.opaque, provider.signed)
    return lifted.put_back(text, masker).encode("utf-8")


def _without_emptied(document: Document, provider: Provider) -> Document:
    """Take out blocks whose signature we emptied, as their text in a stream held a secret.

    Without it the provider would refuse them; with it also, for the text is not what it signed.
    """
    found = False
    messages = document.value.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            continue
        kept = [
            block
            for block in content
            if not isinstance(block, dict)
            or not any(block.get(s) == "" and t in block for s, t in provider.signed.items())
        ]
        if kept and len(kept) < len(content):
            message["content"], found = kept, True
    return json_walk.read(json.dumps(document.value)) if found else document
