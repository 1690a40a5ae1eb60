"""How much one client may ask for: requests at once, and requests per second."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

from .config import Limits
from .refusal import Refusal


class Admission:
    """Counts by client name, which a valid token proves; nobody can lock another client out."""

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now = now
        self._open: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}

    @contextlib.contextmanager
    def hold(self, client: str) -> Iterator[None]:
        """Hold one place of `client` while its request runs. Raises Refusal 429."""
        if self._open[client] >= self._limits.client_concurrent:
            most = self._limits.client_concurrent
            message = f"{most} requests of this client are running; wait for one to end."
            raise Refusal(429, "too_many_concurrent", message, retry=1)
        self._take(client)
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def _take(self, client: str) -> None:
        rate = self._limits.client_rate
        if rate is None:
            return
        now, burst = self._now(), float(self._limits.client_burst)
        tokens, since = self._buckets.get(client, (burst, now))
        tokens = min(burst, tokens + (now - since) * rate)
        if tokens < 1:
            message = f"This client may send {rate:g} requests per second; slow down."
            raise Refusal(429, "too_fast", message, retry=math.ceil((1 - tokens) / rate))
        self._buckets[client] = (tokens - 1, now)
        if len(self._buckets) > 1024:  # full buckets say nothing, forget them
            keep = {
                name: (left, at)
                for name, (left, at) in self._buckets.items()
                if left + (now - at) * rate < burst
            }
            self._buckets = keep
