"""A vision-language model as a scorer: how well a repair shows the reference's detail."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from PIL import Image
from torch import Tensor

from ..images.masks import bounds
from ..images.tensors import to_dtype
from .preparation import square_view
from .scorer import check_pair
from .vlm_answers import HIGHEST, Form, edit_scores, expected_score, probability_of, win_rates
from .vlm_client import Question, Reply, VlmClient, png_url

_CONTEXT, _SIDE = 1.3, 448  # of the region's crop; px
_SHORT = 8  # tokens of an answer of one word

_SHOWN = """The first picture shows how a detail should look: a logo, lettering, a pattern or a face.
The second picture is a repair of it. """
_DIGIT = (
    _SHOWN
    + f"""How exactly does the repair show the same shapes, strokes, colours and letters, without a
visible seam? Answer with one digit from 0 (useless) to {HIGHEST} (exact) and nothing else."""
)
_YES = (
    _SHOWN
    + """Does the repair show exactly the same shapes, strokes, colours and letters, without a visible
seam? Answer yes or no and nothing else."""
)
_PAIR = """The first picture shows how a detail should look: a logo, lettering, a pattern or a face.
The second and the third picture are two repairs of it, called A and B. Which repair shows the shapes,
strokes, colours and letters more exactly and has the less visible seam? Answer A or B and nothing
else."""
_JSON = """Answer with one JSON object and nothing else: {"reasoning": "...", "score": [...]}. Keep the
reasoning short. Scores are numbers from 0 to 25. """
_EDIT = (
    _JSON
    + _SHOWN
    + """Put two numbers into the list: how well the repair shows the detail (25: every stroke and letter
as it should be), and how well everything else was kept (25: nothing else was changed)."""
)
_QUALITY = (
    _JSON
    + """The picture is a repair. Put two numbers into the list: how natural it looks in light,
perspective and sharpness, and how free it is of seams, blur and other artefacts."""
)


@dataclass(frozen=True)
class VlmScorer:
    """`Scorer` by a vision-language model that sees the true detail and the repair.

    "digit" is the expected digit, "yes" the probability of yes, "edit" the two questions in the
    published form of EditScore and UnifiedReward-Edit (overall: the root of the smaller of the two
    scores for the edit times the smaller of the two for quality, averaged over `passes`), and
    "pairs" compares samples with each other, see `compare`.

    Args:
        form: how the model is asked.
        passes: replies at temperature 0.7 with different seeds whose mean counts; 1: one reply at
            temperature 0.
        tie_band: with "pairs", preferences that differ from one half by no more than this are ties.

    Raises:
        ValueError: an unknown form or numbers out of range.
    """

    client: VlmClient
    form: Form = "digit"
    passes: int = 1
    tie_band: float = 0.05

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(
                f"The form must be one of {', '.join(get_args(Form))}, got {self.form!r}."
            )
        if self.passes < 1 or not 0 <= self.tie_band < 0.5:
            raise ValueError(
                "passes must be at least 1 and the tie band from 0 to under 0.5, got "
                f"{self.passes} and {self.tie_band}."
            )

    @property
    def name(self) -> str:
        return f"{self.client.model} ({self.form})"

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Scorer.distance`; NaN where the model gives no usable answer.

        With "pairs" there is nothing to compare a single sample with, so it is asked as with "digit".
        """
        a, b, mask = check_pair(a, b, mask)
        crops = [_views(x, mask) for x in (b, a)]
        form = "digit" if self.form == "pairs" else self.form
        asked = [self._questions(form, true, sample) for true, sample in zip(*crops, strict=True)]
        replies = self.client.replies([q for questions in asked for q in questions])
        scores: list[float] = []
        for questions in asked:
            own, replies = replies[: len(questions)], replies[len(questions) :]
            scores.append(self._score(form, own))
        return torch.tensor([1 - s for s in scores], device=a.device)

    def _questions(self, form: Form, true: str, sample: str) -> list[Question]:
        out: list[Question] = []
        for seed in range(self.passes):
            temperature = 0.7 if self.passes > 1 else 0.0
            if form == "edit":
                pair = ((_EDIT, (true, sample)), (_QUALITY, (sample,)))
                out += [Question(t, p, 300, temperature, seed) for t, p in pair]
            else:
                text = _YES if form == "yes" else _DIGIT
                out.append(Question(text, (true, sample), _SHORT, temperature, seed, True))
        return out

    def _score(self, form: Form, replies: Sequence[Reply | OSError]) -> float:
        if form == "edit":
            pairs = zip(replies[::2], replies[1::2], strict=True)
            scores = [_overall(edit, quality) for edit, quality in pairs]
        else:
            scores = [_short_score(form, r) for r in replies if isinstance(r, Reply)]
        known = [s for s in scores if s is not None]
        return sum(known) / len(known) if known else math.nan

    def compare(self, samples: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The share of its siblings that each of G samples beats, `G` in [0, 1]; a tie is half.

        Every pair is asked in both orders, which cancels a preference for a position. NaN for all
        samples if no answer is usable.

        Args:
            samples: G 3 H W in [0, 1].
            target: 1 3 H W, how it should look.
            mask: 1 1 H W or None, the region.
        """
        preferences = self.preferences(samples, target, mask)
        if bool(preferences.isnan().all()):
            return torch.full((len(samples),), math.nan)
        return win_rates(preferences, self.tie_band)

    def preferences(self, samples: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """`G G`: the probability that sample i, shown first, is preferred to j; NaN if unknown."""
        count = len(samples)
        samples, target, mask = check_pair(samples, target, mask)
        shown = _views(samples, mask)
        true = _views(target[:1], None if mask is None else mask[:1])[0]
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        questions = [
            Question(_PAIR, (true, shown[i], shown[j]), _SHORT, logprobs=True) for i, j in pairs
        ]
        table = torch.full((count, count), math.nan)
        for (i, j), reply in zip(pairs, self.client.replies(questions), strict=True):
            found = probability_of(reply, "A", "B") if isinstance(reply, Reply) else None
            table[i, j] = math.nan if found is None else found
        return table


def _short_score(form: Form, reply: Reply) -> float | None:
    return probability_of(reply, "yes", "no") if form == "yes" else expected_score(reply)


def _overall(edit: Reply | OSError, quality: Reply | OSError) -> float | None:
    """EditScore's overall score, `sqrt(min(following, consistency) * quality)`, in [0, 1]."""
    if not isinstance(edit, Reply) or not isinstance(quality, Reply):
        return None
    followed, natural = edit_scores(edit, 2), edit_scores(quality, 2)
    if followed is None or natural is None:
        return None
    return math.sqrt(min(followed) * min(natural))


def _views(pictures: Tensor, mask: Tensor | None) -> list[str]:
    """The regions of B 3 H W as URLs of square pictures; whole pictures without a mask."""
    urls: list[str] = []
    for i, picture in enumerate(pictures.split(1)):
        box = None if mask is None else bounds(mask[i : i + 1])
        if box is not None:
            picture = square_view(picture, box, _CONTEXT, _SIDE)
        pixels = to_dtype(picture.detach().cpu().clamp(0, 1), torch.uint8)[0].permute(1, 2, 0)
        stream = io.BytesIO()
        Image.fromarray(pixels.contiguous().numpy()).save(stream, "PNG")
        urls.append(png_url(stream.getvalue()))
    return urls
