"""Checks of national identity, tax and insurance numbers: dates in them, and their check digits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date

from .personal import luhn_holds

_VERHOEFF_PRODUCT = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_VERHOEFF_PLACE = (
    "0123456789", "1576283094", "5803796142", "8916043527",
    "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip
# Codice fiscale: what a character at an odd place counts (Decreto ministeriale 23/12/1976).
_ITALIAN_ODD = (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23,
)  # fmt: skip
_CURP = "0123456789ABCDEFGHIJKLMN\u00d1OPQRSTUVWXYZ"


def _digits(value: str) -> str:
    return "".join(c for c in value if c.isdigit())


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _born(digits: str, order: str = "ymd") -> bool:
    """True: the first six digits are a day of some year, of this century or the last."""
    part = {name: int(digits[2 * n : 2 * n + 2]) for n, name in enumerate(order)}
    return any(_day(c + part["y"], part["m"], part["d"]) for c in (1900, 2000))


def us_ssn(value: str) -> bool:
    """Social security number: the areas, groups and serials never issued (SSA, since 2011)."""
    number = _digits(value)
    area, group, serial = number[:3], number[3:5], number[5:]
    if area in ("000", "666") or group == "00" or serial == "0000":
        return False
    return area < "900" and number not in ("078051120", "219099999", "123456789")


def us_itin(value: str) -> bool:
    """Individual taxpayer number: 9xx with the groups that the IRS issues."""
    group = int(_digits(value)[3:5])
    return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99


def uk_nino(value: str) -> bool:
    """National insurance number: prefixes never used (HMRC, NIM39110)."""
    return value[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def uk_nhs(value: str) -> bool:
    """NHS number: modulus 11."""
    number = _digits(value)
    check = 11 - _weighted(number, range(10, 1, -1)) % 11
    return check != 10 and check % 11 == int(number[9]) and len(set(number)) > 1


def de_tax(value: str) -> bool:
    """Steuer-ID: one digit of the first ten two or three times, then ISO 7064 MOD 11,10."""
    number = _digits(value)
    counts = sorted(number[:10].count(d) for d in set(number[:10]))
    return counts[-1] in (2, 3) and counts[-2] == 1 and _mod_11_10(number)


def hr_oib(value: str) -> bool:
    """OIB: ISO 7064 MOD 11,10."""
    return _mod_11_10(_digits(value))


def _mod_11_10(number: str) -> bool:
    product = 10
    for digit in number[:-1]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(number[-1])


def fr_nir(value: str) -> bool:
    """NIR: 97 less the rest of the number; Corsica's 2A and 2B count as 19 and 18 (INSEE)."""
    number = re.sub(r"[ .-]", "", value)
    body = number[:13].replace("2A", "19").replace("2B", "18")
    month = int(number[3:5])
    return (month <= 12 or 20 <= month <= 42 or month >= 50) and 97 - int(body) % 97 == int(
        number[13:]
    )


def es_dni(value: str) -> bool:
    """DNI and NIE: the letter is the number modulo 23."""
    text = re.sub(r"[ .-]", "", value).upper()
    number = str("XYZ".index(text[0])) + text[1:-1] if text[0] in "XYZ" else text[:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


def it_fiscal(value: str) -> bool:
    """Codice fiscale: the last letter checks the fifteen before it."""
    total = 0
    for place, character in enumerate(value[:15].upper(), 1):
        even = int(character) if character.isdigit() else ord(character) - 65
        total += _ITALIAN_ODD[even] if place % 2 else even
    return chr(65 + total % 26) == value[15].upper()


def nl_bsn(value: str) -> bool:
    """BSN: the eleven test."""
    number = _digits(value)
    return _weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and len(set(number)) > 1


def be_national(value: str) -> bool:
    """Rijksregisternummer: 97 less the rest; from 2000 on with a 2 in front."""
    number = _digits(value)
    body, check = number[:9], int(number[9:])
    return check in (97 - int(body) % 97, 97 - int("2" + body) % 97) and int(number[2:4]) % 20 <= 12


def pl_pesel(value: str) -> bool:
    """PESEL: a day of birth, whose month tells the century, and a weighted sum."""
    number = _digits(value)
    year, month, day = int(number[:2]), int(number[2:4]), int(number[4:6])
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[month // 20]
    total = _weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1))
    return _day(century + year, month % 20, day) and total % 10 == 0


def se_personal(value: str) -> bool:
    """Personnummer: a day of birth (plus 60: samordningsnummer) and a Luhn digit."""
    number = _digits(value)[-10:]
    day = int(number[4:6])
    born = number[:4] + f"{day - 60:02d}" if day > 60 else number[:6]
    return _born(born) and luhn_holds(number)


def fi_personal(value: str) -> bool:
    """Henkilotunnus: day of birth and individual number modulo 31."""
    number = int(value[:6] + value[7:10])
    return _born(value, "dmy") and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == value[10]


def no_personal(value: str) -> bool:
    """Fodselsnummer: a day of birth (plus 40: D-nummer) and two check digits, modulus 11."""
    number = _digits(value)
    day = int(number[:2])
    born = f"{day - 40:02d}" + number[2:6] if day > 40 else number[:6]
    first = _weighted(number, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    second = _weighted(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11
    return _born(born, "dmy") and first == 0 and second == 0


def dk_cpr(value: str) -> bool:
    """CPR: a day of birth; since 2007 numbers are given out without a check digit."""
    return _born(_digits(value), "dmy")


def pt_nif(value: str) -> bool:
    """NIF: modulus 11."""
    number = _digits(value)
    rest = _weighted(number, range(9, 1, -1)) % 11
    return int(number[8]) == (0 if rest < 2 else 11 - rest)


def br_cpf(value: str) -> bool:
    """CPF: two check digits, modulus 11."""
    number = _digits(value)
    for size in (9, 10):
        rest = _weighted(number, range(size + 1, 1, -1)) * 10 % 11 % 10
        if rest != int(number[size]):
            return False
    return len(set(number)) > 1


def in_aadhaar(value: str) -> bool:
    """Aadhaar: Verhoeff's check digit."""
    check = 0
    for place, digit in enumerate(reversed(_digits(value))):
        check = int(_VERHOEFF_PRODUCT[check][int(_VERHOEFF_PLACE[place % 8][int(digit)])])
    return check == 0


def ca_sin(value: str) -> bool:
    """Social insurance number: Luhn."""
    number = _digits(value)
    return luhn_holds(number) and len(set(number)) > 1


def au_tfn(value: str) -> bool:
    """Tax file number: a weighted sum, modulus 11."""
    return _weighted(_digits(value), (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def ch_ahv(value: str) -> bool:
    """AHV number: the check digit of EAN-13."""
    number = _digits(value)
    return _weighted(number, (1, 3) * 6) % 10 == (10 - int(number[12])) % 10


def at_insurance(value: str) -> bool:
    """Sozialversicherungsnummer: a running number, its check digit, a day of birth."""
    number = _digits(value)
    total = _weighted(number[:3] + number[4:], (3, 7, 9, 5, 8, 4, 2, 1, 6)) % 11
    return total == int(number[3]) and _born(number[4:], "dmy")


def ie_pps(value: str) -> bool:
    """PPS number: the letter is a weighted sum modulo 23."""
    extra = (ord(value[8]) - 64) * 9 if len(value) > 8 and value[8] != "W" else 0
    total = _weighted(value, range(8, 1, -1)) + extra
    return "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] == value[7]


def cz_birth(value: str) -> bool:
    """Rodne cislo: a day of birth (women plus 50) and a number that 11 divides."""
    number = _digits(value)
    month = int(number[2:4])
    month -= 50 if month > 50 else 0
    month -= 20 if month > 20 else 0
    born = number[:2] + f"{month:02d}" + number[4:6]
    return _born(born) and (len(number) == 9 or int(number) % 11 == 0)


def ro_cnp(value: str) -> bool:
    """CNP: a day of birth and a weighted sum, modulus 11."""
    number = _digits(value)
    check = _weighted(number, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return _born(number[1:7]) and (1 if check == 10 else check) == int(number[12])


def sg_nric(value: str) -> bool:
    """NRIC and FIN: the letter is a weighted sum modulo 11."""
    total = _weighted(value[1:8], (2, 7, 6, 5, 4, 3, 2))
    total += {"S": 0, "F": 0, "T": 4, "G": 4, "M": 3}[value[0]]
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "XWUTRQPNJLK"}
    letter = letters.get(value[0], "XWUTRQPNMLK")
    return letter[10 - total % 11 if value[0] == "M" else total % 11] == value[8]


def cn_identity(value: str) -> bool:
    """Resident identity number: a day of birth and ISO 7064 MOD 11-2."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    born = _day(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    return born and "10X98765432"[_weighted(value[:17], weights) % 11] == value[17].upper()


def tr_identity(value: str) -> bool:
    """T.C. Kimlik No: two check digits."""
    number = [int(d) for d in value]
    tenth = (sum(number[0:9:2]) * 7 - sum(number[1:8:2])) % 10
    return number[9] == tenth and number[10] == sum(number[:10]) % 10


def kr_resident(value: str) -> bool:
    """Resident registration number: a day of birth (since 2020 the rest is drawn by lot)."""
    return _born(_digits(value))


def mx_curp(value: str) -> bool:
    """CURP: a day of birth and a check digit over the characters' places in the alphabet."""
    total = sum(_CURP.index(c) * (18 - place) for place, c in enumerate(value[:17]))
    return _born(value[4:10]) and str((10 - total % 10) % 10) == value[17]


def _whole(holds: Callable[[str], bool]) -> Callable[[str], int]:
    return lambda value: len(value) if holds(value) else 0


CHECKS: dict[str, Callable[[str], int]] = {
    check.__name__: _whole(check)
    for check in (
        us_ssn, us_itin, uk_nino, uk_nhs, de_tax, hr_oib, fr_nir, es_dni, it_fiscal, nl_bsn,
        be_national, pl_pesel, se_personal, fi_personal, no_personal, dk_cpr, pt_nif, br_cpf,
        in_aadhaar, ca_sin, au_tfn, ch_ahv, at_insurance, ie_pps, cz_birth, ro_cnp, sg_nric,
        cn_identity, tr_identity, kr_resident, mx_curp,
    )
}  # fmt: skip
