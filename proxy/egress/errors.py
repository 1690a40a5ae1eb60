"""Every answer "no" of the egress proxy: one table of codes, and the exception that carries one."""

from __future__ import annotations

from typing import NamedTuple

from proxy.errors import ProxyError


class Kind(NamedTuple):
    """What a code means to a client: HTTP status, OpenAI error type, and what to do about it."""

    status: int
    type: str
    fix: str


_REQUEST, _DENIED = "invalid_request_error", "permission_error"
_UPSTREAM, _OURS = "upstream_error", "api_error"

CODES: dict[str, Kind] = {
    "credential_missing": Kind(
        401, "authentication_error", "Send the placeholder as the provider's clients send a key."
    ),
    "credential_mismatch": Kind(403, _DENIED, "Use the placeholder of this workload, only there."),
    "credential_endpoint_mismatch": Kind(
        403, _DENIED, "A placeholder goes only where its provider's clients put the key."
    ),
    "route_not_allowed": Kind(
        403, _DENIED, "Use a route that a provider file declares, for an upstream of your policy."
    ),
    "model_not_allowed": Kind(403, _DENIED, "Ask for a listed model, or have the policy changed."),
    "body_too_large": Kind(413, _REQUEST, "Send less, or raise body_max in the policy."),
    "body_too_deep": Kind(413, _REQUEST, "Nest the JSON less deeply."),
    "body_slow": Kind(408, _REQUEST, "Send the body without pauses."),
    "unsupported_type": Kind(415, _REQUEST, "Send the declared media type, as UTF-8."),
    "unsupported_encoding": Kind(
        415, _REQUEST, "Send it plain, or by one of gzip, deflate, br and zstd."
    ),
    "invalid_json": Kind(400, _REQUEST, "Send one JSON object without duplicate keys."),
    "invalid_form": Kind(400, _REQUEST, "Send multipart/form-data as RFC 7578 has it."),
    "logprobs_not_allowed": Kind(400, _REQUEST, "Leave out logprobs and top_logprobs."),
    "too_many_requests": Kind(429, "rate_limit_error", "Wait for a request of yours to end."),
    "budget_exceeded": Kind(429, "rate_limit_error", "Wait, or have the policy's budget raised."),
    "budget_unavailable": Kind(
        503, _OURS, "Free space in the proxy's state directory, or put its damaged book aside."
    ),
    "proxy_request_invalid": Kind(
        400, _REQUEST, "Use CONNECT host:port, or an absolute URI such as http://host:443/path."
    ),
    "destination_not_allowed": Kind(403, _DENIED, "Have a net rule added to the policy."),
    "tunnel_not_allowed": Kind(
        403, _DENIED, "Ask for http://host:443/path: the proxy checks it and speaks TLS itself."
    ),
    "secret_in_head": Kind(
        422, _REQUEST, "Leave it out: headers and addresses are not masked, they are refused."
    ),
    "upgrade_refused": Kind(403, _DENIED, "Use a tunnel, where the policy allows one."),
    "ask_timeout": Kind(403, _DENIED, "Try again when the operator is there: anchorhold ask."),
    "destination_refused": Kind(403, _DENIED, "Ask the operator."),
    "model_host": Kind(403, _DENIED, "Call models at the model port."),
    "vault_locked": Kind(503, _OURS, "Unlock the vault; see anchorhold status."),
    "credential_absent": Kind(503, _OURS, "Add the key with anchorhold keys add."),
    "audit_unwritable": Kind(503, _OURS, "Free space on the volume that holds the audit log."),
    "secret_blocked": Kind(
        422, _REQUEST, "Leave such values out, or have the policy's [[redact]] changed."
    ),
    "decode_limit": Kind(422, _REQUEST, "Send less of the text encoded, or fewer times over."),
    "secret_in_opaque": Kind(
        422, _REQUEST, "Leave out the part of the conversation that holds it."
    ),
    "scan_failed": Kind(502, _OURS, "Nothing was passed on; report this as a defect."),
    "internal_error": Kind(500, _OURS, "The audit log names the place; report it as a defect."),
    "upstream_unreachable": Kind(502, _UPSTREAM, "Check that the model server is up."),
    "upstream_disconnected": Kind(502, _UPSTREAM, "Try again; the model server hung up."),
    "upstream_timeout": Kind(504, _UPSTREAM, "Try again, or raise the timeout in the policy."),
    "upstream_error": Kind(502, _UPSTREAM, "The model server refused; see its own log."),
    "upstream_invalid": Kind(502, _UPSTREAM, "The model server must answer as declared."),
    "redirect_refused": Kind(502, _UPSTREAM, "Declare the final address in the host file."),
}


class Refusal(ProxyError):
    """A request ends here. `message` names no value from the request, only names and places.

    `by_rule` is set where a policy rule decided; `status` differs from the table's only for
    upstream_error, which repeats the upstream's own. `headers` go with the answer, `retry_after`
    (seconds) as one of them.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        by_rule: bool = False,
        headers: list[tuple[bytes, bytes]] | None = None,
        retry_after: int | None = None,
    ) -> None:
        kind = CODES[code]
        super().__init__(message, fix=kind.fix)
        self.code = code
        self.type = kind.type
        self.status = status or kind.status
        self.by_rule = by_rule
        self.retry_after = retry_after
        self.headers = list(headers or ())
        if retry_after is not None:
            self.headers.append((b"retry-after", str(retry_after).encode("ascii")))


def unrecorded() -> Refusal:
    """Return the refusal for a request whose audit record cannot be written."""
    return Refusal("audit_unwritable", "The audit log cannot be written.")


def vault_locked(why: str) -> Refusal:
    """Return the refusal of a request that needs a key before there is any; `why`: its code."""
    return Refusal("vault_locked", f"The vault has not been unlocked{why and ': '}{why}.")
