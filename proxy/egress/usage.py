"""What requests use, in tokens: as upstreams report it, as requests bound it, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one request. `input` includes those read from (`cached`) and put into the cache."""

    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """What tokens cost: millionths of `currency` for a million of them, so 10**-12 for each."""

    currency: str
    input: int
    output: int
    cached: int
    cache_write: int

    def cost(self, tokens: Tokens) -> int:
        """Return what `tokens` cost in nano-units of the currency, rounded up."""
        plain = tokens.input - tokens.cached - tokens.written
        sum_ = plain * self.input + tokens.cached * self.cached
        sum_ += tokens.written * self.cache_write + tokens.output * self.output
        return -(-sum_ // 1000)


def reported(document: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """Return what an answer, or one event of it, reports at the first of `paths` that is there."""
    for steps in paths:
        found: Any = document
        for step in steps:
            found = found.get(step) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return dict(found)
    return {}


def tokens_of(usage: Mapping[str, Any] | None) -> Tokens | None:
    """Return the tokens of an upstream's report in any of the known shapes; None: not understood.

    OpenAI chat completions and responses, Anthropic messages, Gemini, Ollama. In Anthropic's shape
    the tokens from and for the cache stand beside `input_tokens`; elsewhere they are part of it.
    """
    if not usage:
        return None
    number = _numbers(usage)
    if (plain := number("prompt_tokens")) is not None:
        cached = _numbers(usage.get("prompt_tokens_details"))("cached_tokens") or 0
        return Tokens(plain, number("completion_tokens") or 0, min(cached, plain))
    if (plain := number("input_tokens")) is not None:
        read, written = number("cache_read_input_tokens"), number("cache_creation_input_tokens")
        output = number("output_tokens") or 0
        if read is not None or written is not None:
            read, written = read or 0, written or 0
            return Tokens(plain + read + written, output, read, written)
        cached = _numbers(usage.get("input_tokens_details"))("cached_tokens") or 0
        return Tokens(plain, output, min(cached, plain))
    if (plain := number("promptTokenCount")) is not None:
        plain += number("toolUsePromptTokenCount") or 0
        output = (number("candidatesTokenCount") or 0) + (number("thoughtsTokenCount") or 0)
        return Tokens(plain, output, min(number("cachedContentTokenCount") or 0, plain))
    if (output_ := number("eval_count")) is not None:
        return Tokens(number("prompt_eval_count") or 0, output_)
    return None


def output_bound(document: Mapping[str, Any]) -> int | None:
    """Return how many output tokens a request asks for at most, all its answers together.

    None where it names no bound. The names are those of the providers' APIs. Raises ValueError
    naming a field that is there but no whole number, for an upstream might understand it.
    """
    bounds: list[int] = []
    answers = [1]
    for where, names in _BOUNDS:
        source = document.get(where) if where else document
        if source is None:
            continue
        if not isinstance(source, Mapping):
            raise ValueError(where)
        number = _numbers(source)
        for name in names:
            if name in source:
                value = number(name)
                if value is None:
                    raise ValueError(name)
                (answers if name in _ANSWERS else bounds).append(value)
    return max(bounds) * max(answers) if bounds else None


_ANSWERS = ("n", "candidateCount")
_BOUNDS = (
    ("", ("max_completion_tokens", "max_tokens", "max_output_tokens", "n")),
    ("generationConfig", ("maxOutputTokens", "candidateCount")),
    ("options", ("num_predict",)),
)


def with_output_bound(text: str, path: tuple[str, ...], bound: int) -> str:
    """Return the JSON object `text`, which lacks the field at `path`, with `bound` set there."""
    if len(path) == 1:
        at = text.index("{") + 1
        rest = text[at:]
        comma = "" if rest.lstrip().startswith("}") else ", "
        return f'{text[:at]}"{path[0]}": {bound}{comma}{rest}'
    document = json.loads(text)
    here = document
    for step in path[:-1]:
        if here.get(step) is None:
            here[step] = {}
        here = here[step]
    here[path[-1]] = bound
    return json.dumps(document)


def _numbers(table: object) -> Callable[[str], int | None]:
    """A getter of whole numbers from 0 on that an upstream or a request gives, else None."""

    def get(name: str) -> int | None:
        value = table.get(name) if isinstance(table, dict) else None
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
        return value if good else None

    return get
