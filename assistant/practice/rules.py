"""How the practice model finds its answers: by looking at the words of the prompt."""

from __future__ import annotations

import json
import re

_READ = 64 << 10  # characters of the prompt that are looked at
LABEL = "[practice model: a draft made by rules, not by a language model]"

_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December"
    "|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
)
_DATE = re.compile(
    rf"\b\d{{4}}-\d{{2}}-\d{{2}}\b|\b\d{{1,2}}\.? {_MONTH}(?: \d{{4}})?\b"
    rf"|\b{_MONTH} \d{{1,2}}(?:, \d{{4}})?\b"
)
_NAMED = re.compile(r"([^\s<>:,;\"][^<>:,;\"\n]{0,80}?)\s*<([^<>\s@]{1,64}@[^<>\s@]{1,255})>")
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_PHONE = re.compile(r"\+\d[\d ()/-]{6,18}\d")
_URGENT = ("urgent", "immediately", "asap", "outage", "emergency")
_HIGH = ("deadline", "today", "tomorrow", "important", "by friday")
_LOW = ("newsletter", "unsubscribe", "no reply needed")


def answer(system: str, user: str) -> str:
    """The answer to one prompt; JSON where the prompt asks for JSON."""
    task, user = system.partition("\n")[0].lower(), user[:_READ]
    if "extract" in task:
        return json.dumps(entities(user), ensure_ascii=False)
    if "urgent" in task or "priority" in task:
        return json.dumps(priority(user))
    return reply(user)


def entities(text: str) -> dict[str, list[object]]:
    """Dates as written, and contacts with what is known of them."""
    mail = _without_results(text)
    contacts: dict[str, dict[str, str]] = {}
    for name, address in _NAMED.findall(mail):
        contacts.setdefault(address, {"name": _name(name), "email": address, "phone": ""})
    for address in _EMAIL.findall(mail):
        contacts.setdefault(address, {"name": "", "email": address, "phone": ""})
    for phone in dict.fromkeys(_PHONE.findall(mail)):
        contacts[phone] = {"name": "", "email": "", "phone": phone}
    return {
        "dates": list(dict.fromkeys(_DATE.findall(mail)))[:50],
        "contacts": [*contacts.values()][:50],
    }


def priority(text: str) -> dict[str, str]:
    """Urgency by signal words; the reason names the word."""
    words = _without_results(text).lower()
    for level, signals in (("urgent", _URGENT), ("high", _HIGH), ("low", _LOW)):
        for signal in signals:
            if signal in words:
                return {"priority": level, "reason": f'the text says "{signal}"'}
    return {"priority": "normal", "reason": "no signal word found"}


def reply(text: str) -> str:
    """A short draft that names the sender, the subject and the dates."""
    sender = re.search(r"^From: *\"?([^\"<\n]{1,80}?)\"? *(?:<|$)", text, re.M)
    subject = re.search(r"^Subject: *([^\n]{1,120})", text, re.M)
    dates = _DATE.findall(_without_results(text).partition("\n\n")[2])
    lines = [
        LABEL,
        "",
        f"Dear {sender[1] if sender else 'sender'},",
        "",
        f'thank you for your message "{subject[1] if subject else "without a subject"}".',
    ]
    if dates:
        lines.append(f"I have noted these dates: {', '.join(dict.fromkeys(dates))}.")
    return "\n".join([*lines, "I will come back to you shortly.", "", "Kind regards"])


def tokens(text: str) -> int:
    """How many words and signs `text` has: the practice model's unit of usage."""
    return sum(1 for _ in re.finditer(r"\w+|[^\w\s]", text))


def _name(words: str) -> str:
    """The capitalised words at the end: "or ask Ann Lee" is about Ann Lee."""
    name: list[str] = []
    for word in reversed(words.split()):
        if not word[0].isupper():
            break
        name.insert(0, word)
    return " ".join(name)


def _without_results(text: str) -> str:
    return text.partition("\nResults of earlier steps:")[0]
