"""How a clip is cut into chunks, and what each chunk may see. Pure functions over frame numbers.

A chunk is K latent frames denoised together: full attention inside, the past behind, nothing of the future. The first
chunk may have another size (1+3+3...), the last one may be ragged. A `window` counts every frame a chunk sees, itself
and the `sink` (the first frames of the stream, never forgotten) included; None is everything.
"""

from itertools import pairwise

import torch
from torch import Tensor

from causvid.shapes import TokenMask

Span = tuple[int, int]  # frames [start, stop)


def chunk_bounds(num_frames: int, chunk: int, first: int | None = None) -> list[Span]:
    """Cut `num_frames` into chunks; `first` is the size of the first one where it differs."""
    if num_frames < 1 or chunk < 1 or (first is not None and first < 1):
        raise ValueError(f"frames and chunk sizes must be at least 1, got {num_frames} frames, {first=}, {chunk=}")
    stops = list(range(first or chunk, num_frames, chunk))
    edges = [0, *stops, num_frames]
    return list(pairwise(edges))


def visible_spans(span: Span, window: int | None = None, sink: int = 0) -> list[Span]:
    """The frames that the chunk at `span` attends to, as one or two runs in order."""
    start, stop = span
    if window is None or stop <= window:
        return [(0, stop)]
    check_window(stop - start, window, sink)
    recent = (stop - (window - sink), stop)
    return [(0, sink), recent] if sink else [recent]


def check_window(chunk: int, window: int, sink: int) -> None:
    if sink < 0 or window < sink + chunk:
        raise ValueError(
            f"a window of {window} frames cannot hold {sink} sink frames and a chunk of {chunk}; "
            f"use at least {sink + chunk}"
        )


def token_mask(bounds: list[Span], tokens_per_frame: int, window: int | None = None, sink: int = 0) -> TokenMask:
    """The same rule as a dense mask (True = attends). For tests: it costs L*L, the loop over chunks costs nothing."""
    num_frames = bounds[-1][1]
    frame_mask = torch.zeros(num_frames, num_frames, dtype=torch.bool)
    for span in bounds:
        for seen in visible_spans(span, window, sink):
            frame_mask[span[0] : span[1], seen[0] : seen[1]] = True
    return frame_mask.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


def hold_per_chunk(values: Tensor, bounds: list[Span]) -> Tensor:
    """One value per chunk [B, num_chunks] -> one per frame [B, T], constant inside a chunk: a level, or its number."""
    sizes = torch.tensor([stop - start for start, stop in bounds], device=values.device)
    return values.repeat_interleave(sizes, dim=1)
