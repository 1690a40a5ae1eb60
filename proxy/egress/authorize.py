"""Who may ask, and for what: decided from the listening socket, the head, and the policy."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_plus

from proxy.providers import Provider, Route

from .config import Grant, Workload
from .errors import Refusal
from .guard import KeyGuard
from .redaction.text import Masker

Headers = list[tuple[bytes, bytes]]
_SCHEME = b"bearer "
_PARAMETER = re.compile(r"([A-Za-z0-9_$.\[\]-]{1,64})=([A-Za-z0-9._~%+:,@/-]{0,512})")
_VALUE = re.compile(r"[\x20-\x7e]{0,1024}")


def check_credential(headers: Headers, workload: Workload, provider: Provider) -> None:
    """The placeholder of the workload whose socket this is, where the provider's clients put it.

    A provider without a key of its own needs none: the socket says who asks.
    """
    values = [
        (name, value) for name, value in headers if name.decode("latin-1") in provider.accepts
    ]
    if not values:
        if not provider.header:
            return
        place = provider.accepts[0]
        raise Refusal("credential_missing", f"There is no {place} header with a placeholder.")
    name, given = values[0]
    bearer = given[: len(_SCHEME)].lower() == _SCHEME
    token = given[len(_SCHEME) :].strip() if bearer else given
    if bearer != (name == b"authorization"):
        token = b""
    if len(values) > 1 or not hmac.compare_digest(token, workload.placeholder.encode("ascii")):
        raise Refusal("credential_mismatch", "The credential is not this workload's placeholder.")


def check_stray(headers: Headers, provider: Provider, placeholders: Iterable[str]) -> None:
    """A placeholder in any other header was meant for somewhere else."""
    accepts = provider.accepts
    stray = b"\n".join(v for name, v in headers if name.decode("latin-1") not in accepts)
    if any(placeholder.encode("ascii") in stray for placeholder in placeholders):
        raise misplaced("in another header")


def misplaced(where: str) -> Refusal:
    """Return the refusal for a placeholder that was found `where` it does not belong."""
    return Refusal("credential_endpoint_mismatch", f"A placeholder was found {where}.")


def live_keys(headers: Headers, guard: KeyGuard) -> int:
    """Return how many keys in use the headers hold (they are not passed on, but it is counted)."""
    return guard.mask(b"\n".join(value for _, value in headers).decode("latin-1"))[1]


def check_query(query: bytes, route: Route, masker: Masker) -> str:
    """Return the query to send: declared parameters only, each once, without a secret."""
    if not query:
        return ""
    seen: set[str] = set()
    for part in query.decode("latin-1").split("&"):
        match = _PARAMETER.fullmatch(part)
        if not match or match[1] not in route.query or match[1] in seen:
            raise Refusal("route_not_allowed", "The query has a parameter that is not declared.")
        seen.add(match[1])
        plain = unquote_plus(match[2])
        if masker.text(plain) != plain:
            raise Refusal("secret_blocked", "A parameter of the query holds a secret.")
    return "?" + query.decode("latin-1")


def passed_headers(headers: Headers, provider: Provider, masker: Masker) -> dict[str, str]:
    """The request headers that the provider declares, each value masked; a repeated one is joined.

    What is not printable ASCII does not pass.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        plain, text = name.decode("latin-1"), value.decode("latin-1")
        if plain in provider.request_headers and _VALUE.fullmatch(text):
            found[plain] = f"{found[plain]}, {text}" if plain in found else text
    return {name: masker.text(text) for name, text in found.items()}


def check_length(headers: Headers, workload: Workload) -> None:
    """The announced length of the body is within the policy's limit."""
    lengths = [value for name, value in headers if name == b"content-length"]
    if lengths and int(lengths[0]) > workload.body_max:
        raise too_large(workload)


def too_large(workload: Workload) -> Refusal:
    """Return the refusal for a body over the policy's limit."""
    return Refusal(
        "body_too_large",
        f"The body is larger than the {workload.body_max} bytes {workload.file} allows.",
    )


def grant_for(
    model: str, workload: Workload, upstreams: frozenset[str], shown: Callable[[str], str]
) -> Grant:
    """Return the permission to use `model` at one of `upstreams`; the refusal names the line.

    `shown` makes of the model's name what may stand in a message.
    """
    grant = workload.models.get(model)
    if grant is None or grant.upstream not in upstreams:
        grants = [one for one in workload.models.values() if one.upstream in upstreams]
        places = dict.fromkeys(f"{workload.file}:{one.line} ({one.rule})" for one in grants)
        where = ", ".join(places) or f"{workload.file}, which allows no model"
        raise Refusal(
            "model_not_allowed", f"Model {shown(model)} is not allowed by {where}.", by_rule=True
        )
    return grant


def family_grant(family: str, workload: Workload, upstreams: frozenset[str]) -> Grant:
    """Return the permission for a route without a model: a rule that names its family."""
    for grant in workload.models.values():
        if grant.upstream in upstreams and family in grant.routes:
            return grant
    raise Refusal(
        "route_not_allowed",
        f'No model rule of {workload.file} has routes = ["{family}"] for this upstream.',
    )
