"""Many streams' passes as one batch.

Two ways to compute it. `exact` gives every stream the bits it would get alone: matrix products that round otherwise
when there are more rows are taken row by row; everything else of the network keeps rows apart already (elementwise
functions do where rows fill whole vectors of the processor: widths that are multiples of 32). `fast` leaves all
products whole; results may then differ from a stream alone in their last bits, and takes say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from causvid.cache import Past, PastOfMany
from causvid.models.dit import TextMemory, VideoDiT
from causvid.rollout import Pass

Batching = Literal["exact", "fast"]

_WHOLE: WeakKeyDictionary[VideoDiT, set[tuple]] = WeakKeyDictionary()  # sizes of batches that need no care


class SameBits(TorchFunctionMode):
    """Matrix products with weights, whole where that rounds as a row alone does, else one row at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.all_whole = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args[0]) > 1:
            x, weight = args[:2]
            if not rounds_alike(x.shape, weight.shape, x.dtype, x.device, torch.get_num_threads()):
                self.all_whole = False
                return row_by_row(x, *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def row_by_row(x: Tensor, *layer: Any, **named: Any) -> Tensor:
    return torch.cat([F.linear(row, *layer, **named) for row in x.split(1)])


@cache
def rounds_alike(
    rows: torch.Size, weights: torch.Size, dtype: torch.dtype, device: torch.device, num_threads: int
) -> bool:
    """Whether products of these sizes give the same bits whole and row by row, by trial: the order in which a product
    adds up depends on its sizes and on the number of threads, and not on its values."""
    rng = torch.Generator().manual_seed(0)
    sizes = rows, weights, weights[:1]
    x, weight, bias = (torch.randn(size, generator=rng).to(device, dtype) for size in sizes)
    return torch.equal(F.linear(x, weight, bias), row_by_row(x, weight, bias))


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
    sizes = (whole.x.shape, _num_text_rows(whole), torch.get_num_threads())
    if batching == "fast" or sizes in _WHOLE.get(model, ()):
        return list(whole.run(model).split(1))
    with SameBits() as products:
        v = whole.run(model)
    if products.all_whole:  # then there is no need to look at them again, which takes as long as a tenth of them
        _WHOLE.setdefault(model, set()).add(sizes)
    return list(v.split(1))


def _num_text_rows(p: Pass) -> int:
    return p.text.keys[0].shape[1] if isinstance(p.text, TextMemory) else p.text.shape[1]
