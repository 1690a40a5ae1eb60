"""Who may ask, and for what: decided from the listening socket, the head, and the policy."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable

from .config import Grant, Workload
from .errors import Refusal
from .guard import KeyGuard

Headers = list[tuple[bytes, bytes]]
_SCHEME = b"bearer "


def check_credential(headers: Headers, workload: Workload) -> None:
    """The Authorization header must be the placeholder of the workload whose socket this is."""
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise Refusal("credential_missing", "There is no Authorization header.")
    given = values[0]
    token = given[len(_SCHEME) :].strip() if given[: len(_SCHEME)].lower() == _SCHEME else b""
    if len(values) > 1 or not hmac.compare_digest(token, workload.placeholder.encode("ascii")):
        raise Refusal("credential_mismatch", "The credential is not this workload's placeholder.")


def check_stray(headers: Headers, placeholders: Iterable[str]) -> None:
    """A placeholder in any header but Authorization is refused: it was being sent elsewhere."""
    stray = b"\n".join(value for name, value in headers if name != b"authorization")
    if any(placeholder.encode("ascii") in stray for placeholder in placeholders):
        raise Refusal("credential_mismatch", "A placeholder was found in another header.")


def live_keys(headers: Headers, guard: KeyGuard) -> int:
    """Return how many keys in use the headers hold (they are not passed on, but it is counted)."""
    return guard.mask(b"\n".join(value for _, value in headers).decode("latin-1"))[1]


def check_head(headers: Headers, workload: Workload) -> None:
    """Type, encoding and announced length of the body."""
    head = dict(headers)
    kind, _, parameter = head.get(b"content-type", b"").lower().partition(b";")
    if kind.strip() != b"application/json":
        raise Refusal("unsupported_type", "The body is not application/json.")
    if parameter.strip().replace(b'"', b"") not in (b"", b"charset=utf-8"):
        raise Refusal("unsupported_type", "The body is not UTF-8.")
    if head.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refusal("unsupported_encoding", "The body is compressed.")
    if int(head.get(b"content-length", b"0")) > workload.body_max:
        raise too_large(workload)


def too_large(workload: Workload) -> Refusal:
    """Return the refusal for a body over the policy's limit."""
    return Refusal(
        "body_too_large",
        f"The body is larger than the {workload.body_max} bytes {workload.file} allows.",
    )


def grant_for(model: str, workload: Workload, shown: Callable[[str], str]) -> Grant:
    """Return the permission to use `model`; the refusal names the policy's line.

    `shown` makes of the model's name what may stand in a message.
    """
    grant = workload.models.get(model)
    if grant is None:
        places = dict.fromkeys(
            f"{workload.file}:{grant.line} ({grant.rule})" for grant in workload.models.values()
        )
        where = ", ".join(places) or f"{workload.file}, which allows no model"
        raise Refusal(
            "model_not_allowed", f"Model {shown(model)} is not allowed by {where}.", by_rule=True
        )
    return grant
