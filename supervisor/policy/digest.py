"""The digest of a policy, which stands in every audit record; and versions never go back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from supervisor.policy.errors import PolicyError
from supervisor.policy.groups import Baseline, Group
from supervisor.policy.model import Devices, Policy, Syscalls
from supervisor.policy.nodes import DeviceGroup

_PLACES = {"line", "review_line", "file"}


def canonical(
    policy: Policy,
    groups: Mapping[str, Group],
    baseline: Baseline,
    device_groups: Mapping[str, DeviceGroup] | None = None,
) -> bytes:
    """The policy as canonical JSON: blocks sorted by id, no positions, its groups written out.

    The order of blocks and lists of names in the file, spacing and comments do not show in it.
    """
    body = _plain(policy)
    body["allow"] = sorted(
        ({**_plain(rule), "kind": rule.permission.key} for rule in policy.allow),
        key=lambda rule: str(rule["id"]),
    )
    for blocks in ("claims", "budgets", "redactions"):
        body[blocks] = sorted(body[blocks], key=lambda block: str(block["id"]))
    used = sorted({r.permission.group for r in policy.allow if isinstance(r.permission, Syscalls)})
    body["groups"] = [_plain(groups[name]) for name in used if name in groups]
    listed = sorted({r.permission.group for r in policy.allow if isinstance(r.permission, Devices)})
    if listed:
        known = device_groups or {}
        body["device_groups"] = [_plain(known[name]) for name in listed if name in known]
    body["baseline"] = _plain(baseline)
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")


def policy_digest(
    policy: Policy,
    groups: Mapping[str, Group],
    baseline: Baseline,
    device_groups: Mapping[str, DeviceGroup] | None = None,
) -> str:
    """sha256 of `canonical`, as 64 hex digits."""
    return hashlib.sha256(canonical(policy, groups, baseline, device_groups)).hexdigest()


def check_versions(policies: Iterable[Policy], last: Mapping[str, int]) -> list[PolicyError]:
    """One error for each policy older than the version loaded `last`; such a one is not started."""
    return [
        PolicyError(
            "version-went-back",
            policy.file,
            1,
            "version",
            f"version {policy.version} is older than {last[policy.id]}, which was loaded before",
            "restore the newer file, or raise version to take its change back on purpose",
        )
        for policy in policies
        if policy.version < last.get(policy.id, 0)
    ]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.name not in _PLACES]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
