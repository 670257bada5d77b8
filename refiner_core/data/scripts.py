"""The scripts that words are drawn in: their letters, and random words of them.

Of the large scripts the common characters are used, which the national standards list first. Scripts
whose letters join or change their shape inside a word, such as Arabic, are left out: drawn letter by
letter they would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np

CONSONANTS, VOWELS = "BCDFGHKLMNPRSTVWZ", "AEIOU"
LATIN = "latin"

_ALPHABETS = {
    "greek": (0x391, 0x3A9),
    "cyrillic": (0x410, 0x42F),
    "armenian": (0x531, 0x556),
    "georgian": (0x10D0, 0x10F0),
    "hebrew": (0x5D0, 0x5EA),
    "thai": (0xE01, 0xE2E),
    "devanagari": (0x915, 0x939),
    "hiragana": (0x3042, 0x3093),
    "katakana": (0x30A2, 0x30F3),
}
_TRAIL = range(0xA1, 0xFF)
# Codec, first and last lead byte: the characters that each standard counts as common.
_STANDARDS = {
    "hanzi": ("gb2312", 0xB0, 0xD7),
    "kanji": ("euc_jp", 0xB0, 0xCF),
    "hangul": ("euc_kr", 0xB0, 0xC8),
}
_BIG5_COMMON = range(0xA440, 0xC67F)
_TRADITIONAL = "hanzi-traditional"
_DENSE = (*_STANDARDS, _TRADITIONAL)  # a character is a syllable or a word
_UPPER_SHARE, _TITLE_SHARE = 0.6, 0.25

SCRIPTS = (LATIN, *_ALPHABETS, *_STANDARDS, _TRADITIONAL)


def _decoded(codec: str, codes: Iterable[int]) -> str:
    # A code that is not assigned decodes to nothing, or to the sign of its second byte alone.
    characters = (code.to_bytes(2, "big").decode(codec, "ignore") for code in codes)
    return "".join(c for c in characters if len(c) == 1 and c.isalpha() and not c.isascii())


@cache
def letters(script: str) -> str:
    """The letters that words of one of `SCRIPTS` are drawn of, capitals where there are two cases."""
    if script == LATIN:
        return CONSONANTS + VOWELS
    if script in _ALPHABETS:
        first, last = _ALPHABETS[script]
        return "".join(c for c in map(chr, range(first, last + 1)) if c.isalpha())
    if script == _TRADITIONAL:
        return _decoded("big5", _BIG5_COMMON)
    codec, first, last = _STANDARDS[script]
    return _decoded(
        codec, (lead << 8 | trail for lead in range(first, last + 1) for trail in _TRAIL)
    )


@cache
def needed_characters(script: str) -> str:
    """Every character that a word of the script may hold; a font without one of them is not used."""
    if script == LATIN:
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(dict.fromkeys(letters(script) + letters(script).lower()))


def random_word(rng: np.random.Generator, script: str = LATIN) -> str:
    """A random word: three to eight letters, or two to four characters of a script of syllables.

    Latin words can be pronounced, and are sometimes in lower case or end in digits.
    """
    if script == LATIN:
        return _latin_word(rng)
    low, high = (2, 5) if script in _DENSE else (3, 9)
    word = "".join(rng.choice(list(letters(script)), int(rng.integers(low, high))))
    case = rng.random()
    if case < _UPPER_SHARE:
        return word
    # One by one: in a whole word, a Greek letter has another form at the end.
    low = "".join(c.lower() for c in word)
    return word[0] + low[1:] if case < _UPPER_SHARE + _TITLE_SHARE else low


def _latin_word(rng: np.random.Generator) -> str:
    n = int(rng.integers(3, 9))
    first = int(rng.integers(2))
    word = "".join(
        str(rng.choice(list(VOWELS if (i + first) % 2 else CONSONANTS))) for i in range(n)
    )
    style = rng.random()
    if style < 0.25:
        return word.capitalize()
    if style < 0.35:
        return word.lower()
    if style < 0.5:
        return word[: max(2, n - 2)] + str(rng.integers(10, 100))
    return word


def misspell(rng: np.random.Generator, word: str, script: str = LATIN) -> str:
    """The word with one letter or up to half of them replaced; never the word itself."""
    spelt = list(word)
    for _ in range(int(rng.integers(1, max(2, len(spelt) // 2) + 1))):
        i = int(rng.integers(len(spelt)))
        spelt[i] = str(rng.choice(list(letters(script))))
    wrong = "".join(spelt)
    return wrong if wrong != word else word[::-1]
