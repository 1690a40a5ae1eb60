"""How much a string looks like words: a program's names are made of them, a random token is not.

The measure is the usual one of a language model of letter pairs: how much more often than by chance
each pair of neighbours comes in words, as a logarithm, added up. What words do not do counts
against it: to change to digits, or to end after one letter.
"""

from __future__ import annotations

import re
import string
from itertools import pairwise

# Row by first letter, column by second: 3 plus the binary logarithm of how many times as often as
# by chance the pair stands in the names and comments of Python's and Perl's standard libraries
# and of well-known JavaScript packages, from an eighth ("0") to eight times ("6").
_PAIRS = (
    "14551240312555040656331130", "41213000330400320230400020", "51225105305410620325300010",
    "41136110500310400231300010", "54553430100646143665132530", "30113300500300400322300010",
    "10005013500202200331200000", "50004000400200400203500000", "43434340001546540356040203",
    "10002002000000100050010000", "20004000200000000020300000", "41036600520500510033310020",
    "52016020413340440021200010", "50555350402103430056220000", "23450220103466450644433100",
    "50116001300431440514300030", "00000000000000000000300000", "52336140502333510454220030",
    "30406104501210440156431030", "50326206620230530543301040", "25214220300435030444000000",
    "40005030300000000000000000", "30003001300002200210003000", "00201000100000020004000000",
    "00000000030122030022000000", "10003000200000000000000000",
)  # fmt: skip
_EXCESS = {
    first + second: int(row[column]) - 3
    for first, row in zip(string.ascii_lowercase, _PAIRS, strict=True)
    for column, second in enumerate(string.ascii_lowercase)
}
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|[0-9]+")
_BREAK = -2  # to go on with digits or with another word; a letter alone
_LONG = 8  # letters and digits; what shorter ones look like is chance
_WORDY, _RANDOM = -5, -3  # of a run that is long, of all runs together
_LETTERS = -8  # where there is no digit: abbreviations look random too


def likeness(run: str) -> int:
    """Return the score of `run`, letters and digits of ASCII: above 0 for words, else random."""
    pieces = _PIECE.findall(run)
    total = _BREAK * (len(pieces) - 1)
    for piece in pieces:
        if len(piece) > 1:
            lowered = piece.lower()
            total += sum(_EXCESS.get(a + b, 0) for a, b in pairwise(lowered))
        elif not piece.isdigit():
            total += _BREAK
    return total


def random_looking(runs: list[str]) -> bool:
    """True if `runs` of letters and digits, which make one value, look drawn at random."""
    scores = [likeness(run) for run in runs]
    if not any(c.isdigit() for run in runs for c in run):
        return sum(scores) < _LETTERS
    odd = any(len(run) >= _LONG and score < _WORDY for run, score in zip(runs, scores, strict=True))
    return odd or sum(scores) < _RANDOM
