"""What the answers of a vision-language model say as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .vlm_client import Reply, json_objects

# How a model is asked: for a digit, for yes or no, for EditScore's two numbers, or which of two is better.
Form = Literal["digit", "yes", "edit", "pairs"]

HIGHEST = 5  # of the scale on which a model answers with one digit
EDIT_RANGE = 25.0  # of EditScore's and UnifiedReward-Edit's scales


def _shares(
    tokens: Sequence[Mapping[str, float]], read: Callable[[str], str | None]
) -> dict[str, float] | None:
    """Probabilities of the answers at the first position whose likeliest token is one of them.

    `read` gives the answer that a token spells, or None. Spellings of one answer are added, and
    everything that is not an answer is left out.
    """
    for position in tokens:
        likeliest = max(position, key=lambda token: position[token], default="")
        if read(likeliest) is None:
            continue
        shares: dict[str, float] = {}
        for token, logprob in position.items():
            answer = read(token)
            if answer is not None:
                shares[answer] = shares.get(answer, 0.0) + math.exp(logprob)
        total = sum(shares.values())
        return {k: v / total for k, v in shares.items()}
    return None


def _word(token: str) -> str:
    return token.strip(" \n\t\"'.,:*").lower()


def expected_score(reply: Reply) -> float | None:
    """A digit from 0 to `HIGHEST` as a score in [0, 1]: its expectation over the digits' probabilities.

    Without log-probabilities it is the first digit in the reply. None: there is no such digit.
    (UniWorld-V2, arXiv 2510.16888.)
    """
    digits = {str(i) for i in range(HIGHEST + 1)}

    def read(token: str) -> str | None:
        return _word(token) if _word(token) in digits else None

    shares = _shares(reply.tokens, read)
    if shares is not None:
        return sum(int(k) * p for k, p in shares.items()) / HIGHEST
    found = re.search(r"(?<![\d.])\d+(?![\d.]*\d)", reply.text)
    return int(found[0]) / HIGHEST if found and found[0] in digits else None


def probability_of(reply: Reply, answer: str, other: str) -> float | None:
    """Probability of one of two words, for example of "yes" against "no".

    `p(answer) / (p(answer) + p(other))` at the first token that is one of them, its spellings added
    (PaCo-RL, RewardDance). Without log-probabilities it is 1 or 0 by the first word of the reply.
    None: it is neither.
    """
    pair = {answer.lower(), other.lower()}

    def read(token: str) -> str | None:
        return _word(token) if _word(token) in pair else None

    shares = _shares(reply.tokens, read)
    if shares is not None:
        return shares.get(answer.lower(), 0.0)
    found = _first_word(reply.text)
    return float(found == answer.lower()) if found in pair else None


def _first_word(text: str) -> str | None:
    """The first word of a reply in lower case; a single letter only if nothing or punctuation follows,
    since a sentence may begin with "A".
    """
    found = re.match(r"\W*(\w+)(\W?)", text)
    if found is None or (len(found[1]) == 1 and found[2] not in ("", *".,:;!)*\n")):
        return None
    return found[1].lower()


def edit_scores(reply: Reply, count: int) -> list[float] | None:
    """`count` scores in [0, 1] from the published form `{"reasoning": ..., "score": [a, b]}`, 0 to 25.

    EditScore (arXiv 2509.23909) and UnifiedReward-Edit answer so. None: the form is not followed.
    """
    for found in json_objects(reply.text):
        scores: Any = found.get("score")
        values: list[Any] = scores if isinstance(scores, list) else [scores]
        if len(values) == count and all(_is_edit_score(v) for v in values):
            return [float(v) / EDIT_RANGE for v in values]
    return None


def _is_edit_score(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= EDIT_RANGE


def win_rates(preferences: Tensor, tie_band: float = 0.0) -> Tensor:
    """The share of its siblings that each sample beats, a tie counting as half (Pref-GRPO).

    Args:
        preferences: `G G`, the probability that row i is better than column j; NaN where unknown,
            which counts as a tie. The diagonal is ignored.
        tie_band: preferences that differ from one half by no more than this are ties.

    Returns:
        `G` values that sum to G / 2. Comparisons are antisymmetric: both orders are averaged first.
    """
    count = len(preferences)
    both = (preferences + 1 - preferences.T) / 2
    margin = (both - 0.5).nan_to_num(0.0)
    wins = torch.where(margin.abs() <= tie_band, torch.zeros_like(margin), margin.sign()) / 2 + 0.5
    wins = wins * (1 - torch.eye(count, dtype=wins.dtype))
    return wins.sum(1) / max(1, count - 1)
