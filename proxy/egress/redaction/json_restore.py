"""Placeholders put back in a finished document, in the fields that a policy may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.providers import Place

from .json_walk import Frame, JsonInvalid, String, edited, encode, parse, strings

PutBack = Callable[[str, Place], str]


def restore(text: str, put_back: PutBack, places: Mapping[str, Place]) -> str:
    """Return the valid document `text` with put_back(s, place) for strings s in `places`.

    `places` maps object keys to the name of a place. A string directly under such a key, or in a
    list under it, belongs to that place; so does all that is nested below, in JSON inside a string
    too, where the place is "tool-arguments". Keys are never changed.
    """
    edits = []
    for item in strings(text):
        if item.key is None or text[item.start] != '"':
            continue
        place = _place(item, places)
        if place is not None and (new := _put(item.plain, put_back, place)) != item.plain:
            edits.append((item.start, item.end, encode(new)))
    return edited(text, edits)


def _place(item: String, places: Mapping[str, Place]) -> Place | None:
    if item.key is not None and item.key in places:
        return places[item.key]
    frame: Frame | None = item.frame
    while frame is not None:
        place = places.get(frame.key or "")
        if place is not None:
            return place if place == "tool-arguments" else None
        frame = frame.around
    return None


def _put(plain: str, put_back: PutBack, place: Place) -> str:
    if place == "tool-arguments" and plain.lstrip()[:1] in ("{", "["):
        try:
            parse(plain)
        except JsonInvalid:
            return put_back(plain, place)
        edits = [
            (item.start, item.end, encode(new))
            for item in strings(plain)
            if item.key is not None
            and plain[item.start] == '"'
            and (new := put_back(item.plain, place)) != item.plain
        ]
        return edited(plain, edits)
    return put_back(plain, place)
