"""How much of the reference's lettering can be read in a repair."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from torch import Tensor

from ..scoring.text import TextReader, characters_read
from .metric import Column, EvaluationCase, MetricUnavailable, Scores, cut


class TextMetric:
    """Percentage of the characters in the reference's detail that are read in the region.

    A case without text in its reference has no value; the report says how many cases have one.

    Raises:
        MetricUnavailable: RapidOCR is not installed.
    """

    columns = (Column("text", "text read, %", True, 1),)

    def __init__(self) -> None:
        try:
            self.reader = TextReader()
        except ModuleNotFoundError as e:
            raise MetricUnavailable(f"Text: {e}") from e

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        wanted = self.reader.read(case.reference_crop)
        if not wanted:
            return {name: {"text": None} for name in results}
        return {
            name: {"text": 100 * characters_read(wanted, self.reader.read(cut(result, case.box)))}
            for name, result in results.items()
        }

    def describe(self) -> dict[str, str]:
        return {"text": f"RapidOCR {version('rapidocr')} with the models of its package"}
