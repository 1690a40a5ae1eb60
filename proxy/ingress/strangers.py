"""The connections that have not shown a valid token yet, and who goes when there is no room."""

from __future__ import annotations

import time
from collections.abc import Callable

_GRACE = 0.25  # seconds in which an honest client has sent its head; younger ones are left alone


class Strangers:
    """Keeps them by address in the order of arrival.

    While there is room nobody is turned away: behind one address there may be many clients, and
    on loopback all of them. Only in a full gateway does an address that holds more than `most`
    places without a token give one up, so that holding heads open locks nobody out.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._by_address: dict[str, dict[Callable[[], None], float]] = {}

    def arrive(self, address: str, drop: Callable[[], None]) -> None:
        """A connection was accepted; `drop` is what closes it, and what names it in `leave`."""
        self._by_address.setdefault(address, {})[drop] = self._now()

    def leave(self, address: str, drop: Callable[[], None]) -> None:
        """It has shown a token, or has ended; a second call does nothing."""
        of_address = self._by_address.get(address, {})
        of_address.pop(drop, None)
        if not of_address:
            self._by_address.pop(address, None)

    def make_room(self) -> bool:
        """Drop the oldest connection of the address with the most; False: none holds too many."""
        if not self._by_address:
            return False
        address, held = max(self._by_address.items(), key=lambda item: len(item[1]))
        drop, since = next(iter(held.items()))
        if len(held) <= self._most or self._now() - since < _GRACE:
            return False
        self.leave(address, drop)
        drop()
        return True
