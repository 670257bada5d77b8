"""Bad inputs for the command line: a right result, or a message, and no files that are half written.

A sample of all kinds; `python -m tests.benchmarks bad-inputs` runs all of them.
"""

from __future__ import annotations

import pytest

from tests.bad_inputs import BadInput, inputs, judge

SAMPLE = inputs()[::13]


@pytest.mark.parametrize("bad", SAMPLE, ids=str)
def test_a_bad_input_is_used_or_refused(bad: BadInput) -> None:
    assert judge(bad).fault is None


def test_the_sample_has_all_kinds() -> None:
    assert {bad.kind for bad in SAMPLE} == {bad.kind for bad in inputs()}
