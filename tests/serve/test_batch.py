"""Passes of several streams in one batch give each stream what it would get alone."""

from dataclasses import replace

import numpy as np
import torch

from causvid.serve.batch import answer, fits
from tiny_models import TINY, random_dit, random_model

CLIP = np.random.default_rng(0).integers(0, 256, (21, 24, 40, 3), dtype=np.uint8)


def editing(model, seed):
    session = model.session(f"a red car {seed}", seed=seed)
    session.restyle(0.9, of=f"a blue bus {seed}")
    session.push(CLIP)
    return session


def test_streams_that_edit_at_different_places_share_their_passes():
    cfg = replace(TINY, width=64, freq_width=64)  # rows of a batch then fill whole vectors
    model = replace(random_model(), student_source=lambda: random_dit(cfg, seed=1))
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
