"""Trigger words: tokens of their own in a T5 prompt, which a detail encoder fills with pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TriggerPrompt:
    """`ids` of the prompt, padded with 0; `positions` of the first of each trigger word in it."""

    ids: list[int]
    positions: tuple[int, ...]


def tokenize_triggers(
    tokenizer: Any, prompt: str, words: Sequence[str], length: int
) -> TriggerPrompt:
    """A prompt for T5 in which every trigger word is one token.

    The words are added to a copy of the tokenizer, in their order, behind its vocabulary: T5's rows
    32100 and 32101, which exist and were never trained.

    Args:
        tokenizer: a T5 tokenizer of transformers; left as it is.
        prompt: must hold every word, as a word of its own.
        words: the trigger words.
        length: padded to this many tokens.

    Raises:
        ValueError: a word is missing, or does not come before `length`.
    """
    own = copy.deepcopy(tokenizer)
    own.add_tokens(list(words), special_tokens=True)
    ids: list[int] = own(prompt, truncation=True, max_length=length).input_ids
    positions = []
    for word in words:
        number = own.convert_tokens_to_ids(word)
        if number not in ids:
            raise ValueError(
                f"The prompt must hold {' and '.join(words)}, which stand for the pictures; "
                f"{word} is not in {prompt!r} (or stands after its {length} tokens). Leave the "
                "prompt empty to take the recipe's own."
            )
        positions.append(ids.index(number))
    return TriggerPrompt(ids + [0] * (length - len(ids)), tuple(positions))
