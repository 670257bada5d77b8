"""A vision-language model as judge, through any OpenAI-compatible endpoint.

The paper reports a VLM score of 0 to 100 without naming the model or the prompt, so scores of other
judges and rubrics cannot be compared with it; ours is given below and in the documentation.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..scoring.vlm_client import VlmClient, json_objects, png_url
from .metric import Column, EvaluationCase, Scores

PICTURES = {
    "reference": "the reference: it shows the true detail (a logo, lettering, a pattern or a face)",
    "draft": "the draft: the generated picture, in which that detail is wrong",
    "result": "the result: the draft after the repair",
}
# Each vote shows the pictures in another order: at temperature 0 a repeated question has one answer.
ORDERS = tuple(itertools.permutations(PICTURES))
_RUBRIC = """You judge the repair of one detail in a generated picture. You see three pictures:
{pictures}
Score the result from 0 (useless) to 100 (perfect) on each of:
- "detail": the detail's shapes, strokes and colours match the reference, apart from pose and light;
- "text": lettering in the detail reads exactly as in the reference; null if there is no lettering;
- "background": everything around the detail is as in the draft;
- "naturalness": the detail sits in the scene: perspective, light, sharpness, no seam.
Answer with one JSON object and nothing else, for example
{{"detail": 70, "text": null, "background": 100, "naturalness": 80}}"""

WEIGHTS = {"detail": 0.4, "text": 0.3, "background": 0.15, "naturalness": 0.15}
_MAX_SIDE = 1024  # px of the pictures that are sent
_MAX_FAILURES = 3  # requests in a row without a reply before the endpoint is given up


def rubric(order: Sequence[str]) -> str:
    """The question for pictures in this order."""
    listed = (f"{number}. {PICTURES[name]}" for number, name in enumerate(order, 1))
    return _RUBRIC.format(pictures=";\n".join(listed) + ".")


def read_reply(reply: str) -> float | None:
    """The score 0..100 in a reply: the last JSON object that follows the rubric; None without."""
    scores = (_weighted_score(parts) for parts in json_objects(reply))
    return next((s for s in scores if s is not None), None)


def _weighted_score(parts: Mapping[str, Any]) -> float | None:
    total = weight = 0.0
    for key, share in WEIGHTS.items():
        value = parts.get(key)
        if value is None and key == "text":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            return None
        total, weight = total + share * value, weight + share
    return total / weight


def data_url(pixels: Tensor) -> str:
    """A picture 1 3 H W as a PNG in a `data:` URL, at most 1024 px on a side."""
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return png_url(stream.getvalue())


class VlmJudge:
    """Median of several votes, each with the pictures in another order.

    Every raw reply is appended to a JSON-lines file.

    After three requests in a row without a reply the endpoint is not asked again: `failure` gives
    the reason, and the column stays empty from there.

    Args:
        client: the model.
        replies: the JSON-lines file.
        votes: per result, 1 to 6.

    Raises:
        ValueError: the number of votes is out of range.
    """

    columns = (Column("vlm", "VLM score", True, 1, 81.91),)

    def __init__(self, client: VlmClient, replies: Path, votes: int = 3) -> None:
        if not 1 <= votes <= len(ORDERS):
            raise ValueError(
                f"--vlm-votes must be 1 to {len(ORDERS)}, one per order of the pictures, got {votes}."
            )
        self.client, self.replies, self.votes = client, replies, votes
        self.failures = 0
        self.failure: str | None = None

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        given = {"reference": data_url(case.reference), "draft": data_url(case.draft)}
        return {
            name: {"vlm": self._judge(case.id, name, {**given, "result": data_url(result)})}
            for name, result in results.items()
        }

    def _judge(self, case: str, system: str, images: Mapping[str, str]) -> float | None:
        scores: list[float] = []
        for vote, order in enumerate(ORDERS[: self.votes]):
            if self.failure is not None:
                break
            entry = {"case": case, "system": system, "vote": vote, "order": order}
            score = self._vote(images, order, entry)
            if score is not None:
                scores.append(score)
        return statistics.median(scores) if scores else None

    def _vote(
        self, images: Mapping[str, str], order: Sequence[str], entry: dict[str, Any]
    ) -> float | None:
        score = None
        try:
            reply = self.client.ask(rubric(order), [images[name] for name in order])
            score = read_reply(reply)
            entry |= {"reply": reply, "score": score}
            self.failures = 0
        except OSError as e:  # TimeoutError and URLError are OSErrors
            entry["error"] = str(e)
            self.failures += 1
            if self.failures >= _MAX_FAILURES:
                self.failure = (
                    f"VLM: {self.client.url} did not reply to {self.failures} requests in a row "
                    f"and was not asked again: {e}"
                )
        with self.replies.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return score

    def describe(self) -> dict[str, str]:
        return {
            "vlm": f"{self.client.model} at {self.client.url}, {self.votes} votes in different orders: "
            f"{self.client.usage.summary()}"
        }
