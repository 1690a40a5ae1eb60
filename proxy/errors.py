"""The proxies' exception family: a stable code, a sentence for people, and the fix."""

from __future__ import annotations


class ProxyError(Exception):
    """Base of every error a proxy raises on purpose. No secret may ever be put into one."""

    code = "proxy_error"
    fix = ""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if fix is not None:
            self.fix = fix

    def __str__(self) -> str:
        return f"{self.code}: {self.message} {self.fix}".rstrip()


class LaunchError(ProxyError):
    """The process was started without the descriptors or the configuration it needs."""

    code = "launch"
    fix = "Start it through the supervisor, which hands over the descriptors."


class ConfigError(ProxyError):
    """The configuration handed over is not what this program understands."""

    code = "config"
    fix = "Supervisor and proxy must come from the same release."


class AuditUnwritable(ProxyError):
    """A record could not be written whole; the caller must refuse the request (fail closed)."""

    code = "audit_unwritable"
    fix = "Free space on the volume that holds the audit log."


class BrokerLost(ProxyError):
    """The socket broker is gone for good; the process ends, so that a new one gets a new broker."""

    code = "broker_lost"
    fix = "The supervisor starts this program again; see `anchorhold status`."

    def __init__(self) -> None:
        super().__init__("The connection to the socket broker ended.")


class DialError(ProxyError):
    """The broker gave no connected socket.

    `status` is the broker's status byte (see `dial.Status`), `reason` its ASCII sentence.
    """

    code = "dial"

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
