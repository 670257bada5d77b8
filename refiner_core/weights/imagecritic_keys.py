"""The names of the weights in ImageCritic's LoRA file."""

from __future__ import annotations

import re
from collections.abc import Iterable

KEY = re.compile(
    r"(?P<block>(?:single_)?transformer_blocks\.\d+\.attn)\.processor\."
    r"(?P<part>q|k|v|proj)_loras\.(?P<number>\d+)\.(?P<half>down|up)\.weight"
)


def is_imagecritic(keys: Iterable[str]) -> bool:
    """Whether these are the names of such a file."""
    return any(KEY.fullmatch(k) for k in keys)
