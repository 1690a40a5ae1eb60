"""What a candidate must pass besides its pattern: checksums, randomness, and known harmless text.

A check takes the candidate and returns how many of its characters to mask; 0 means none.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Callable

# Total length by country: the IBAN registry (SWIFT, ISO 13616).
_IBAN = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22,
    "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GI": 23, "GR": 27, "HR": 21,
    "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21,
    "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "TR": 26,
}  # fmt: skip
_OURS = ("[REDACTED:", "anchorhold-placeholder-")
_SAMPLES = (
    "example",
    "changeme",
    "placeholder",
    "your-",
    "your_",
    "xxxx",
    "****",
    "....",
    "<",
    "${",
)


def entropy(text: str) -> float:
    """Return Shannon's entropy of `text`, in bits per character."""
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values()) if size else 0.0


def ours(value: str) -> bool:
    """True for what was masked already, and for our own placeholders."""
    return any(mark in value for mark in _OURS)


def monotonous(value: str) -> bool:
    """True for one letter over and over, as samples have it."""
    return len(set(value[-16:])) <= 2 and not value[-1].isdigit()


def luhn(value: str) -> int:
    """A payment card: 13 to 19 digits of a card range with a right Luhn digit (ISO 7812-1)."""
    digits = [int(c) for c in value if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6):
        return 0
    if len(set(digits)) == 1:
        return 0
    doubled = (d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2])
    return len(value) if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else 0


def iban(value: str) -> int:
    """An IBAN with right check digits (ISO 13616: mod 97); text after its length is left."""
    size = _IBAN.get(value[:2])
    if size is None:
        return 0
    kept, seen = "", 0
    for seen, character in enumerate(value, 1):  # noqa: B007  # used after the loop
        if character != " ":
            kept += character
        if len(kept) == size:
            break
    else:
        return 0
    return seen if int("".join(str(int(c, 36)) for c in kept[4:] + kept[:4])) % 97 == 1 else 0


def phone(value: str) -> int:
    """A telephone number: 8 to 15 digits (E.164), not all the same."""
    digits = [c for c in value if c.isdigit()]
    return len(value) if 8 <= len(digits) <= 15 and len(set(digits)) > 1 else 0


def jwt(value: str) -> int:
    """A JSON web token: its first part is base64url of a JSON object (RFC 7519)."""
    head = value.split(".", 1)[0]
    try:
        plain = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
    except (binascii.Error, ValueError):
        return 0
    return len(value) if plain.startswith(b"{") and b'"' in plain else 0


def token(value: str) -> int:
    """A value behind a telling name: letters and digits mixed, no sample, no plain words."""
    lowered = value.lower()
    if any(sample in lowered for sample in _SAMPLES):
        return 0
    has_digit = any(c.isdigit() for c in value)
    return len(value) if has_digit and any(c.isalpha() for c in value) else 0


def password(value: str) -> int:
    """A value behind the word password: not a sample, and not merely one ordinary word."""
    lowered = value.lower()
    if any(sample in lowered for sample in _SAMPLES) or value.isalpha():
        return 0
    return len(value)


def published(value: str) -> int:
    """A provider's key that is not its documentation's own sample."""
    return 0 if value.endswith("EXAMPLE") or "EXAMPLEKEY" in value else len(value)


CHECKS: dict[str, Callable[[str], int]] = {
    check.__name__: check for check in (luhn, iban, phone, jwt, token, password, published)
}
