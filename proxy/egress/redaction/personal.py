"""Checks of personal data that has a checksum or a numbering plan: cards, accounts, telephones."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from itertools import pairwise

import phonenumbers

_DATE = re.compile(
    r"(?:[0-9]{4}[-./][0-9]{1,2}[-./][0-9]{1,2}|[0-9]{1,2}[-./][0-9]{1,2}[-./][0-9]{2,4})"
)

_NEAR = 256
_YEAR = re.compile(r"(?:19|20)[0-9]{2} ")

# Total length by country: the IBAN registry (SWIFT, ISO 13616), release 99.
_IBAN = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip


def luhn_holds(digits: str) -> bool:
    """True: the last digit is the Luhn check digit of the others (ISO 7812-1, annex B)."""
    numbers = [int(c) for c in digits]
    doubled = (n * 2 - 9 if n > 4 else n * 2 for n in numbers[-2::-2])
    return (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0


def card(value: str) -> int:
    """A payment card: a length that its range has, and a right Luhn digit (ISO 7812-1)."""
    digits = "".join(c for c in value if c.isdigit())
    if len(set(digits)) == 1 or len(digits) not in _card_lengths(digits):
        return 0
    groups = value.replace("-", " ").split()
    sizes = {len(group) for group in groups[:-1]}
    if min(sizes, default=4) < 3 and not (sizes == {1} and len(digits) == 16):
        return 0  # a row of small numbers
    if sizes == {4} and all(abs(int(a) - int(b)) < _NEAR for a, b in pairwise(groups)):
        return 0  # a table's row, in which each number follows the one before
    return len(value) if luhn_holds(digits) else 0


def _card_lengths(digits: str) -> range | tuple[int, ...]:
    """Return how long numbers of this range are: none for a range that no network has."""
    two, four = int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return (13, 16, 19)  # Visa
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return (16,)  # Mastercard
    if two in (34, 37):
        return (15,)  # American Express
    if two in (36, 38, 39) or 3000 <= four <= 3059 or four == 3095:
        return range(14, 20)  # Diners
    if two in (60, 62, 64, 65) or two == 81 or 3528 <= four <= 3589 or 2200 <= four <= 2204:
        return range(16, 20)  # Discover, UnionPay, RuPay, JCB, Mir
    if two in (50, 56, 57, 58, 59, 61, 63, 66, 67, 68, 69):
        return range(13, 20)  # Maestro and what is local
    return ()


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
    """A telephone number that its country's numbering plan has room for (libphonenumber)."""
    if len({c for c in value if c.isdigit()}) < 2:
        return 0
    # Without a plus only the North American form is looked for.
    number = _parsed(value if value.startswith("+") else "+1" + value)
    return len(value) if number and phonenumbers.is_possible_number(number) else 0


def local_phone(value: str) -> int:
    """A national number behind a word for telephone: 7 to 13 digits, and no date."""
    digits = "".join(c for c in value if c.isdigit())
    if not 7 <= len(digits) <= 13 or len(set(digits)) < 3 or _DATE.fullmatch(value):
        return 0
    return len(value)


def _parsed(value: str) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(value)
    except phonenumbers.NumberParseException:
        return None


def address(value: str) -> int:
    """A street and its number; a year in front of a street's name is none."""
    return 0 if _YEAR.match(value) and not any(c.isdigit() for c in value[4:]) else len(value)


def ip(value: str) -> int:
    """An IP address that names a machine: not loopback, any, broadcast or a mask."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return 0
    mask = address.version == 4 and value.startswith(("255.", "0."))
    nobody = address.is_loopback or address.is_unspecified or address.is_multicast or mask
    return 0 if nobody else len(value)


def mac(value: str) -> int:
    """A MAC address, not the broadcast or the zero one."""
    return len(value) if len(set(value.lower()) - {":", "-"}) > 1 else 0


CHECKS: dict[str, Callable[[str], int]] = {
    "luhn": card,
    "iban": iban,
    "phone": phone,
    "local_phone": local_phone,
    "address": address,
    "ip": ip,
    "mac": mac,
}
