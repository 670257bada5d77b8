"""Latents as tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refiner_core.models.tokens import layout_ids, pack, position_ids, unpack


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_unpack_undoes_pack(batch: int, channels: int, rows: int, columns: int) -> None:
    x = torch.arange(batch * channels * rows * columns * 4.0)
    x = x.reshape(batch, channels, rows * 2, columns * 2)
    tokens = pack(x)
    assert tokens.shape == (batch, rows * columns, channels * 4)
    assert torch.equal(unpack(tokens, rows * 2, columns * 2), x)


@given(st.data())
def test_the_order_is_the_documented_one(data: st.DataObject) -> None:
    """`B C (h 2) (w 2) -> B (h w) (C 2 2)`."""
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    x = torch.randn(2, 3, rows * 2, columns * 2)
    r, c = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    channel, dy, dx = (data.draw(st.integers(0, n)) for n in (2, 1, 1))
    value = pack(x)[1, r * columns + c, channel * 4 + dy * 2 + dx]
    assert value == x[1, channel, 2 * r + dy, 2 * c + dx]


def test_pack_table() -> None:
    x = torch.arange(16).reshape(1, 1, 4, 4)
    assert pack(x)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 3), (0, 4), (4, 0)])
def test_sizes_that_cannot_be_packed(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        pack(torch.zeros(1, 2, height, width))


def test_tokens_that_do_not_fill_the_latent() -> None:
    with pytest.raises(ValueError, match=r"5 tokens .* 6x4 \(6 tokens\)"):
        unpack(torch.zeros(1, 5, 8), 4, 6)


def test_position_ids() -> None:
    assert position_ids(2, 3, 1).tolist() == [
        [1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 1, 0], [1, 1, 1], [1, 1, 2],
    ]  # fmt: skip


def test_every_group_counts_from_zero() -> None:
    noisy, draft, reference = (torch.zeros(1, 4, h, w) for h, w in ((4, 4), (4, 4), (2, 6)))
    ids = layout_ids((noisy, draft, reference), (0, 1, 2))
    assert ids.shape == (4 + 4 + 3, 3)
    assert ids[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 3
    assert torch.equal(ids[:4, 1:], ids[4:8, 1:])
    assert ids[8:, 1:].tolist() == [[0, 0], [0, 1], [0, 2]]
    with pytest.raises(ValueError, match="zip"):
        layout_ids((noisy, draft), (0,))
