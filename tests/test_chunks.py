import pytest
import torch

from causvid.chunks import check_window, chunk_bounds, hold_per_chunk, token_mask, visible_spans


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((9, 3), [(0, 3), (3, 6), (6, 9)]),
        ((7, 3, 1), [(0, 1), (1, 4), (4, 7)]),
        ((8, 3), [(0, 3), (3, 6), (6, 8)]),
        ((2, 5), [(0, 2)]),
        ((2, 3, 4), [(0, 2)]),
        ((4, 1), [(0, 1), (1, 2), (2, 3), (3, 4)]),
    ],
)
def test_bounds(args, expected):
    assert chunk_bounds(*args) == expected


@pytest.mark.parametrize("args", [(0, 3), (5, 0), (5, 3, 0)])
def test_empty_chunks_are_refused(args):
    with pytest.raises(ValueError, match="at least 1"):
        chunk_bounds(*args)


def test_visible_spans():
    assert visible_spans((6, 9)) == [(0, 9)]
    assert visible_spans((6, 9), window=9) == [(0, 9)]
    assert visible_spans((9, 12), window=9) == [(3, 12)]
    assert visible_spans((9, 12), window=9, sink=2) == [(0, 2), (5, 12)]


def test_a_window_that_cannot_hold_a_chunk_says_what_would():
    with pytest.raises(ValueError, match="use at least 5"):
        check_window(3, 4, 2)


def test_mask_counts_what_each_frame_sees():
    mask = token_mask(chunk_bounds(7, 3, 1), tokens_per_frame=2, window=5, sink=1)
    per_frame = mask[::2, ::2].sum(1).tolist()
    assert per_frame == [1, 4, 4, 4, 5, 5, 5]
    assert mask[-1, :2].all() and not mask[-1, 2:6].any()  # the sink is seen, what lies between is not


def test_no_mask_row_is_empty_and_no_chunk_sees_the_future():
    bounds = chunk_bounds(10, 3)
    mask = token_mask(bounds, 1, window=6, sink=2)
    assert mask.diagonal().all()
    for start, stop in bounds:
        assert not mask[start:stop, stop:].any()


def test_levels_are_held_inside_a_chunk():
    levels = torch.tensor([[1.0, 2.0, 3.0]])
    assert hold_per_chunk(levels, chunk_bounds(7, 3, 1)).tolist() == [[1, 2, 2, 2, 3, 3, 3]]
