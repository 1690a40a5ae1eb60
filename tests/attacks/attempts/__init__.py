"""Every attempt, by the section of the list that it belongs to; a section is a program."""

from __future__ import annotations

from tests.attacks.attempts import descriptors, filter, mounts, network, privilege, resources
from tests.attacks.attempts.attempt import Attempt, numbered

SECTIONS = {
    "descriptors": descriptors,
    "mounts": mounts,
    "privilege": privilege,
    "filter": filter,
    "network": network,
    "resources": resources,
}
PROGRAM: dict[str, str] = {}
ATTEMPTS: tuple[Attempt, ...] = ()
for name, section in SECTIONS.items():
    found = numbered(tuple(section.attempts()))
    PROGRAM |= {attempt.id: name for attempt in found}
    ATTEMPTS += found
