"""What a candidate must pass besides its pattern: checksums, randomness, and known harmless text.

A check takes the candidate and returns how many of its characters to mask; 0 means none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from .words import likeness, random_looking

_OURS = ("[REDACTED:", "anchorhold-placeholder-")
_SAMPLES = (
    "example", "changeme", "change-me", "change_me", "placeholder", "your-", "your_", "yourkey",
    "yourtoken", "xxxx", "****", "....", "<", "${", "{{", "$(", "redacted", "insert-", "insert_",
    "replace-", "replace_", "not-a-real", "aaaaaa", "goes-here", "goes_here", "\u2022\u2022",
)  # fmt: skip
# Keys that their issuers print in their documents: SHA-256, first 16 hex digits, so that no file
# here holds anything that looks like a key.
_PUBLISHED = frozenset({
    "0b476bdf9acf2123", "2037abcaffb2b777", "27a9a42931dff7eb", "3543c50b0cb9cea8",
    "37f8f09bdf12c2f2", "3a8b61d0f636b007", "3f370c9dd8225c63", "49f777db995e8260",
    "4b8cbd96c8530f05", "4c98242dcadc8b29", "7f75367e78812551", "8731261cb72d8626",
    "a19f89ab3555eac1", "a6c814bc555ae62c", "dc0fcf046c61640c", "e4a5542bb7fd7b67",
    "ea9bb1082cf95663", "eb540d2b6ee2a0a4", "f2d6ca16515033e5", "f5375a46365089a8",
})  # fmt: skip
_INTEGRITY = re.compile(r"(?:sha(?:1|224|256|384|512)|md5)[-:=]", re.IGNORECASE)
_OBJECT = re.compile(rb"""\{\s*["'][^"']{1,40}["']\s*:""")  # the beginning of one
_DATED = re.compile(r"\d{8}T\d{4,6}Z?\Z")
_WORDS = 8  # a likeness that no random value has
_RUN = re.compile(r"[A-Za-z0-9]+")
# A name, a member of one, a call: what stands behind "password =" in a program.
_CODE = re.compile(
    r"""[$@&*!]?[A-Za-z_][\w$]*(?:(?:\.|->|::|\?\.)[A-Za-z_][\w$]*)*(?:[(\[{].*|\?|!)?[;)}\]]*\Z"""
)
_VARIABLE = re.compile(r"[$%#@][({A-Za-z_]|\(|\{|required\b|optional\b|min:|max:")
# A version, a range, the name of a way to sign in or to hash, a path.
_NO_PASSWORD = re.compile(
    r"[v^~]?\d+(?:\.\d+)+\Z|\d{1,2}-\d{1,3}\Z|(?:scram-)?(?:sha|md)-?\d{1,3}(?:-\d{3})?\Z|[):]{0,2}(?:/[a-z_.-]+)+/?\Z",
    re.IGNORECASE,
)
_JOINT = re.compile(r"[-_'|+/&]")
_TEMPLATE = re.compile(r"\{[\w:. -]{0,40}\}|\$[({]")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_COMMON = frozenset(
    {"user", "username", "pass", "password", "passwd", "token", "test", "foo", "bar", "admin",
     "secret", "root", "guest", "login", "name", "key", "xxx", "yyy", "demo", "none", "null"}
)  # fmt: skip


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


def sample(value: str) -> bool:
    """True for text that stands for a value: "changeme", "<key>", "${KEY}", the alphabet."""
    lowered = value.lower()
    if any(mark in lowered for mark in _SAMPLES) or value.endswith(".."):
        return True
    following = sum(ord(b) - ord(a) == 1 for a, b in pairwise(lowered))
    return following * 2 > len(lowered)


def published(value: str) -> int:
    """A provider's key that is not its documentation's own sample."""
    if value.endswith("EXAMPLE") or "EXAMPLEKEY" in value or sample(value):
        return 0
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return 0 if digest in _PUBLISHED else len(value)


def jwt(value: str) -> int:
    """A JSON web token: its first part is base64url of a JSON object (RFC 7519)."""
    plain = _decoded(value.split(".", 1)[0])
    if not published(value):
        return 0
    return len(value) if _OBJECT.match(plain) else 0


def jwt_in_base64(value: str) -> int:
    """A JSON web token in base64."""
    plain = _decoded(value[: len(value) // 4 * 4])
    return len(value) if plain.startswith(b"eyJ") and b"." in plain else 0


def _decoded(text: str) -> bytes:
    text = text.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


def mixed(value: str) -> int:
    """A value whose form says nearly all: no sample, and both letters and digits."""
    if sample(value) or not any(c.isdigit() for c in value):
        return 0
    return len(value) if any(c.isalpha() for c in value) else 0


def irregular(value: str) -> int:
    """Letters, or letters and digits, that look drawn at random."""
    return len(value) if not sample(value) and random_looking(_RUN.findall(value)) else 0


def token(value: str) -> int:
    """A value that looks random, and is long enough to tell: no name, path, version or date."""
    if not published(value) or _INTEGRITY.match(value):
        return 0
    runs = [run for run in _RUN.findall(value) if not (run.isdigit() or _DATED.match(run))]
    sizes = [len(run) for run in runs]
    if max(sizes, default=0) < 8 and sum(sizes) < 12:
        return 0
    return len(value) if random_looking(runs) else 0


def header(value: str) -> int:
    """What stands behind a header's name: no sample, no plain words; short ones too."""
    if sample(value) or not any(c.isdigit() or c.isupper() for c in value[1:]):
        return 0
    if value.isalpha() or not value.strip("0123456789.-"):
        return 0
    if token(value):
        return len(value)
    if sum(map(likeness, _RUN.findall(value))) > _WORDS:
        return 0
    return len(value) if len(value) < 32 or entropy(value) > 3.8 else 0


def password(value: str) -> int:
    """A value behind the word password: not a sample, not one ordinary word, not a program."""
    if sample(value) or value.isalpha() or value.lower() in _COMMON or len(set(value)) < 3:
        return 0
    if _VARIABLE.match(value) or _TEMPLATE.search(value):
        return 0
    # "user.password" and "read_password()" are names; "hunter2" is none, nor is "pass_4711".
    plain = any(c.isdigit() for c in value) and "(" not in value and "." not in value
    if _CODE.match(value) and not plain:
        return 0
    if _NO_PASSWORD.match(value):
        return 0
    words = _JOINT.sub("", value.strip(".,;:!?)"))
    return len(value) if not words.isalpha() or len(value) > 20 else 0


def told(value: str) -> int:
    """A password in a sentence, without the stop behind it: letters and digits, and no name."""
    value = value.rstrip(".,;:?)")
    digits = sum(c.isdigit() for c in value)
    if not digits or len(value) < 7 or _NO_PASSWORD.match(value):
        return 0
    cases = not (value.islower() or value.isupper())
    strange = any(c in "!@#$%^&*?+~" for c in value) or (digits > 1 and cases)
    return password(value) if strange or token(value) else 0


def user_and_password(value: str) -> int:
    """``user:password`` on a command line, one of them random enough."""
    user, _, secret = value.replace('"', "").replace("'", "").partition(":")
    for part in (secret, user) if not secret else (secret,):
        plain = part.isalpha() and not (len(part) > 11 and irregular(part))
        known = part.lower() in _COMMON or part.isdigit() or plain
        if (
            part
            and not known
            and not part.startswith(("$", "[", "<", "{{"))
            and (password(part) or part.isalpha())
        ):
            return len(value)
    return 0


def base58(value: str) -> int:
    """Base58Check: the last four bytes are a double SHA-256 of the rest (Bitcoin, BIP 32)."""
    number = 0
    for character in value:
        digit = _BASE58.find(character)
        if digit < 0:
            return 0
        number = number * 58 + digit
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    digest = hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()
    return len(value) if len(data) > 8 and digest[:4] == data[-4:] else 0


CHECKS: dict[str, Callable[[str], int]] = {
    check.__name__: check
    for check in (
        published, jwt, jwt_in_base64, mixed, irregular, token, header, password, told,
        user_and_password, base58,
    )
}  # fmt: skip
