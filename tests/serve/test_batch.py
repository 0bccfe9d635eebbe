"""Passes of several streams in one batch give each stream what it would get alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from causvid.bundle import Place
from causvid.serve import batch
from causvid.serve.batch import answer, fits
from tiny_models import TINY, random_dit, random_model

CLIP = np.random.default_rng(0).integers(0, 256, (21, 24, 40, 3), dtype=np.uint8)


def editing(model, seed):
    session = model.session(f"a red car {seed}", seed=seed)
    session.restyle(0.9, of=f"a blue bus {seed}")
    session.push(CLIP)
    return session


WIDE = replace(TINY, width=64, freq_width=64)  # rows of a batch then fill whole vectors


def test_streams_that_edit_at_different_places_share_their_passes():
    model = replace(random_model(), student_source=lambda: random_dit(WIDE, seed=1))
    alone = [editing(model, seed).next_chunk().latents for seed in range(3)]
    passes = [editing(model, seed).chunk_passes() for seed in range(3)]
    wanted, made, shared = {i: next(p) for i, p in enumerate(passes)}, {}, 0
    late = wanted.pop(2)  # one pass behind the others: they look at the source while it looks back, and the reverse
    while wanted:
        assert all(fits(next(iter(wanted.values())), p) for p in wanted.values())
        shared += len({p.past.alone for p in wanted.values()}) > 1
        for i, v in zip(list(wanted), answer(model.need_student(), list(wanted.values()), "exact")):
            try:
                wanted[i] = passes[i].send(v)
            except StopIteration as end:
                made[i] = end.value.latents
                del wanted[i]
        if late is not None:
            wanted, late = {**wanted, 2: late}, None
    assert all(torch.equal(made[i], alone[i]) for i in range(3))
    assert shared > 0


class Products(TorchFunctionMode):
    """Notes of how many rows products with weights are, and how wide those."""

    def __init__(self):
        super().__init__()
        self.taken = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            self.taken.add((len(args[0]), args[0].shape[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("alike", [None, False])
@pytest.mark.parametrize("mixed", [False, True])
def test_products_are_whole_only_where_that_gives_the_same_bits(mixed, alike, monkeypatch):
    if alike is not None:
        monkeypatch.setattr(batch, "rounds_alike", lambda *sizes: alike)
    network = Place(torch.device("cpu"), torch.float32, mixed).settle(random_dit(WIDE, seed=1))
    model = replace(random_model(), student_source=lambda: network)
    passes = [next(model.session(f"a red car {seed}", seed=seed).chunk_passes()) for seed in range(3)]
    alone = [p.run(network) for p in passes]
    for _ in range(2):  # first with care, then, if all are whole, without
        with Products() as products:
            together = answer(network, passes, "exact")
        assert all(torch.equal(one, other) for one, other in zip(together, alone))
        if alike is False:
            assert {rows for rows, _ in products.taken} == {1}
        elif mixed and torch.cpu._is_avx512_bf16_supported():
            assert (3, WIDE.ffn_width) in products.taken
