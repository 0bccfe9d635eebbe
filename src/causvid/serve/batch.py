"""Many streams' passes as one batch.

Two ways to compute it. `exact` multiplies row by row, so that every stream gets the bits it would get alone: matrix
products may round otherwise when there are more rows, and everything else of the network keeps rows apart already
(elementwise functions do where rows fill whole vectors of the processor: widths that are multiples of 32).
`fast` leaves the products whole; results then differ from a stream alone in their last bits, and takes say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from causvid.cache import Past, PastOfMany
from causvid.models.dit import TextMemory, VideoDiT
from causvid.rollout import Pass

Batching = Literal["exact", "fast"]


class RowByRow(TorchFunctionMode):
    """Matrix products with weights, one row of the batch at a time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args[0]) > 1:
            return torch.cat([func(row, *args[1:], **(kwargs or {})) for row in args[0].split(1)])
        return func(*args, **(kwargs or {}))


def fits(a: Pass, b: Pass) -> bool:
    """Whether two passes can be part of one batch."""
    return a.x.shape[1:] == b.x.shape[1:] and _num_text_rows(a) == _num_text_rows(b)


@torch.no_grad()
def answer(model: VideoDiT, passes: Sequence[Pass], batching: Batching) -> list[Tensor]:
    """The network's v for each pass. All must fit each other and come from streams of one row."""
    if len(passes) == 1:
        return [passes[0].run(model)]
    texts = [p.text if isinstance(p.text, TextMemory) else model.project_text(p.text) for p in passes]
    pasts = [p.past for p in passes if isinstance(p.past, Past)]
    assert len(pasts) == len(passes), "a pass of a stream looks back at one cache"
    whole = Pass(
        torch.cat([p.x for p in passes]),
        torch.cat([p.sigma for p in passes]),
        TextMemory.stack(texts),
        PastOfMany(pasts),
    )
    if batching == "fast":
        return list(whole.run(model).split(1))
    with RowByRow():
        return list(whole.run(model).split(1))


def _num_text_rows(p: Pass) -> int:
    return p.text.keys[0].shape[1] if isinstance(p.text, TextMemory) else p.text.shape[1]
