"""Strict reading of JSON objects: exact keys, exact types, bounds; errors name the field."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, NoReturn

from .errors import Fault, VaultError


def refuse(detail: str) -> NoReturn:
    """Raises TAMPERED."""
    raise VaultError(Fault.TAMPERED, detail)


def encode(raw: bytes) -> str:
    """Base64 with padding, the one spelling that `Fields.binary` takes."""
    return base64.b64encode(raw).decode()


class Fields:
    """A JSON object with exactly the keys named; every getter checks type and bounds."""

    def __init__(self, value: Any, path: str, keys: set[str]) -> None:
        if not isinstance(value, dict):
            refuse(f"{path or 'file'} is not an object")
        if odd := value.keys() ^ keys:
            refuse(f"{path}{min(odd)[:40]!r} is missing or unknown")
        self._value: dict[str, Any] = value
        self._path = path

    def value(self, key: str) -> Any:
        return self._value[key]

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value[key]
        if type(value) is not int or not low <= value <= high:
            refuse(f"{self._path}{key} is not a number from {low} to {high}")
        return value

    def text(self, key: str, pattern: str) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            refuse(f"{self._path}{key} is malformed")
        return value

    def binary(self, key: str, low: int, high: int) -> bytes:
        value = self._value[key]
        if not isinstance(value, str):
            refuse(f"{self._path}{key} is not text")
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            refuse(f"{self._path}{key} is not base64")
        if encode(raw) != value or not low <= len(raw) <= high:
            refuse(f"{self._path}{key} is not {low} to {high} bytes")
        return raw

    def items(self, key: str, low: int, high: int) -> list[Any]:
        value = self._value[key]
        if not isinstance(value, list) or not low <= len(value) <= high:
            refuse(f"{self._path}{key} is not a list of {low} to {high}")
        return value

    def flag(self, key: str) -> bool:
        value = self._value[key]
        if not isinstance(value, bool):
            refuse(f"{self._path}{key} is not true or false")
        return value

    def unused(self, key: str, empty: Any) -> None:
        """A field that version 1 did not use."""
        value = self._value[key]
        if type(value) is not type(empty) or value != empty:
            raise VaultError(Fault.VAULT_VERSION, f"{self._path}{key} is in use")
