"""Streaming with a cache, chunk by chunk, must be the whole clip under the equivalent mask."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from causvid.cache import FULL, CachePolicy, CacheShape, KVCache, PastOfMany
from causvid.chunks import chunk_bounds, hold_per_chunk, token_mask
from causvid.models import dit as dit_module
from causvid.rope import grid_rotation, rotate, shift_in_time
from tiny_models import TINY, random_dit

NUM_FRAMES, HEIGHT, WIDTH = 13, 6, 10
TOLERANCE = 1e-6  # float32; what is left is how matrix products of other heights round


def apart(a, b):
    """The largest difference, of outputs scaled to reach 1."""
    return (a - b).abs().max() / b.abs().max()


def clip(batch: int = 2, num_frames: int = NUM_FRAMES):
    rng = torch.Generator().manual_seed(3)
    return torch.randn(batch, num_frames, 4, HEIGHT, WIDTH, generator=rng), torch.randn(batch, 5, 8, generator=rng)


def random_levels(bounds, batch: int = 2):
    rng = torch.Generator().manual_seed(4)
    return hold_per_chunk(torch.rand(batch, len(bounds), generator=rng), bounds)


def stream(model, x, sigma, text, bounds, policy=FULL, **cache_options):
    """Commit every chunk as it stands, after two passes over other content that must leave no trace."""
    cache = KVCache(model.cache_shape(HEIGHT, WIDTH), policy, batch=x.shape[0], max_frames=x.shape[1], **cache_options)
    memory = model.project_text(text)
    out = []
    for start, stop in bounds:
        past = cache.at_hand(stop - start)
        for scale in (3.0, -1.0):
            model(x[:, start:stop] * scale + 1, torch.full((x.shape[0], stop - start), 0.9), text, past=past)
        out.append(model(x[:, start:stop], sigma[:, start:stop], memory, past=past))
        past.commit()
    return torch.cat(out, 1)


@pytest.mark.parametrize(("chunk", "first"), [(1, None), (3, None), (5, None), (3, 1), (4, 2)])
def test_cached_equals_block_causal_whole_clip(dit, chunk, first):
    x, text = clip()
    bounds = chunk_bounds(NUM_FRAMES, chunk, first)
    sigma = random_levels(bounds)
    whole = dit(x, sigma, text, bounds=bounds)
    assert apart(stream(dit, x, sigma, text, bounds), whole) <= TOLERANCE


@pytest.mark.parametrize(
    ("chunk", "first", "policy"),
    [
        (3, None, CachePolicy(window=6)),
        (3, 1, CachePolicy(window=7)),
        (1, None, CachePolicy(window=4, sink=1)),
        (3, None, CachePolicy(window=7, sink=2)),
        (3, 1, CachePolicy(window=8, sink=1)),
        (5, 2, CachePolicy(window=11, sink=3)),
        (3, None, CachePolicy(window=6, relative=True)),  # without a sink, relative is absolute
    ],
)
def test_window_and_sink_equal_the_mask(dit, chunk, first, policy):
    x, text = clip()
    bounds = chunk_bounds(NUM_FRAMES, chunk, first)
    sigma = random_levels(bounds)
    whole = dit(x, sigma, text, bounds=bounds, window=policy.window, sink=policy.sink)
    assert apart(stream(dit, x, sigma, text, bounds, policy), whole) <= TOLERANCE
    everything = dit(x, sigma, text, bounds=bounds)
    assert (everything - whole).abs().max() > 1e-2  # the window does forget


class DenseMask:
    """The oracle: attention over everything with a boolean mask."""

    def __init__(self, mask):
        self.mask = mask

    def attend(self, layer, q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2)


@pytest.mark.parametrize(("chunk", "first", "window", "sink"), [(3, None, None, 0), (3, 1, 7, 0), (2, 1, 6, 2)])
def test_the_loop_over_chunks_equals_a_dense_mask(dit, monkeypatch, chunk, first, window, sink):
    x, text = clip()
    bounds = chunk_bounds(NUM_FRAMES, chunk, first)
    sigma = random_levels(bounds)
    looped = dit(x, sigma, text, bounds=bounds, window=window, sink=sink)
    tokens = (HEIGHT // 2) * (WIDTH // 2)
    mask = token_mask(bounds, tokens, window, sink)
    monkeypatch.setattr(dit_module, "SeeEarlierChunks", lambda *_: DenseMask(mask))
    assert apart(dit(x, sigma, text, bounds=bounds), looped) <= TOLERANCE


def test_the_future_does_not_leak(dit):
    x, text = clip()
    bounds = chunk_bounds(NUM_FRAMES, 3)
    sigma = random_levels(bounds)
    before = dit(x, sigma, text, bounds=bounds)
    changed = x.clone()
    changed[:, 9:] += 10
    after = dit(changed, sigma, text, bounds=bounds)
    assert torch.equal(after[:, :9], before[:, :9])
    assert not torch.allclose(after[:, 9:], before[:, 9:])


def test_relative_sink_stands_right_before_the_window(dit):
    """One layer, so that keys depend on nothing but their own frame: recompute with the sink moved by hand."""
    model = random_dit(replace(TINY, num_layers=1))
    x, text = clip(batch=1)
    sigma = torch.zeros(1, NUM_FRAMES)
    policy = CachePolicy(window=6, sink=2, relative=True)
    streamed = stream(model, x, sigma, text, chunk_bounds(NUM_FRAMES, 1), policy)
    for last in range(6, NUM_FRAMES):
        kept = torch.cat([x[:, :2], x[:, last - 3 : last + 1]], 1)  # sink and window, back to back from frame 0
        bounds = [(i, i + 1) for i in range(6)]
        alone = model(kept, torch.zeros(1, 6), text, bounds=bounds)
        assert apart(streamed[:, last], alone[:, -1]) <= TOLERANCE
    absolute = stream(model, x, sigma, text, chunk_bounds(NUM_FRAMES, 1), CachePolicy(window=6, sink=2))
    assert torch.equal(absolute[:, :6], streamed[:, :6])
    assert (absolute[:, 7:] - streamed[:, 7:]).abs().max() > 1e-3


def test_a_stream_may_start_at_any_frame_number():
    """Attention depends on differences of position only, so frame 10 million is as good as frame 0. One layer, so that
    the keys do not remember how the stream began."""
    dit = random_dit(replace(TINY, num_layers=1))
    x, text = clip(batch=1, num_frames=6)
    sigma = torch.zeros(1, 6)
    outs = []
    for start in (0, 10_000_000):
        cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), CachePolicy(window=9))
        cache.num_frames = start
        # frames before the start were never written; a window this young would look at zeros, so fill the ring first
        for i in range(0, 9, 3):
            past = cache.at_hand(3)
            dit(x[:, :3] * (i + 1), sigma[:, :3], text, past=past)
            past.commit()
        outs.append(dit(x[:, 3:], sigma[:, 3:], text, past=cache.at_hand(3)))
    assert (outs[0] - outs[1]).abs().max() <= 1e-4


def test_streams_at_different_places_step_as_one_batch(dit):
    x, text = clip(batch=3)
    sigma = torch.zeros(3, NUM_FRAMES)
    starts = (0, 3, 7)  # frames each stream has committed already

    def prepared(row):
        cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), CachePolicy(window=7))
        for f in range(starts[row]):
            past = cache.at_hand(1)
            dit(x[row : row + 1, f : f + 1], sigma[:1, :1], text[row : row + 1], past=past)
            past.commit()
        return cache

    alone = [dit(x[r : r + 1, 7:10], sigma[:1, :3], text[r : r + 1], past=prepared(r).at_hand(3)) for r in range(3)]
    memory = dit_module.TextMemory.stack([dit.project_text(text[r : r + 1]) for r in range(3)])
    caches = [prepared(r) for r in range(3)]
    many = PastOfMany(cache.at_hand(3) for cache in caches)
    together = dit(x[:, 7:10], sigma[:, :3], memory, past=many)
    assert apart(together, torch.cat(alone)) <= TOLERANCE
    many.commit()
    assert [cache.num_frames for cache in caches] == [3, 6, 10]


@pytest.mark.parametrize("policy", [FULL, CachePolicy(window=7), CachePolicy(window=7, sink=2, relative=True)])
def test_snapshot_and_restore(dit, policy):
    x, text = clip(batch=1)
    sigma = torch.zeros(1, NUM_FRAMES)
    cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), policy, max_frames=NUM_FRAMES)

    def run(start, stop):
        out = []
        for f in range(start, stop):
            past = cache.at_hand(1)
            out.append(dit(x[:, f : f + 1], sigma[:, :1], text, past=past))
            past.commit()
        return torch.cat(out, 1)

    run(0, 9)
    state = cache.snapshot()
    first = run(9, 13)
    cache.restore(state)
    assert torch.equal(run(9, 13), first)


def test_gradients_reach_the_chunk_at_hand_and_not_the_past(dit):
    """The training roll-out's pass: same values as the hot path, the buffer untouched, the past a constant."""
    x, text = clip(batch=1)
    cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), CachePolicy(window=7, sink=1))
    for f in range(8):
        past = cache.at_hand(1)
        dit(x[:, f : f + 1], torch.zeros(1, 1), text, past=past)
        past.commit()
    now = x[:, 8:11].clone().requires_grad_()
    before = cache.snapshot()
    with_grad = dit(now, torch.full((1, 3), 0.5), text, past=cache.at_hand(3))
    assert torch.equal(cache.snapshot()["keys"], before["keys"])
    with_grad.sum().backward()
    assert now.grad.abs().sum() > 0
    without = dit(x[:, 8:11], torch.full((1, 3), 0.5), text, past=cache.at_hand(3))
    assert apart(with_grad, without) <= TOLERANCE


FORGETFUL = [
    CachePolicy(window=6),
    CachePolicy(window=4, sink=1),
    CachePolicy(window=5, sink=2, relative=True),
]


@pytest.mark.parametrize("policy", FORGETFUL, ids=str)
def test_a_cache_that_keeps_all_sees_what_its_window_leaves(dit, policy):
    x, text = clip()
    bounds = chunk_bounds(NUM_FRAMES, 3)
    sigma = random_levels(bounds)
    kept = stream(dit, x, sigma, text, bounds, policy, keep_all=True)
    assert apart(kept, stream(dit, x, sigma, text, bounds, policy)) <= TOLERANCE


@pytest.mark.parametrize("policy", [FULL, *FORGETFUL], ids=str)
def test_recomputation_sees_the_past_as_it_was(dit, policy):
    """Gradient checkpointing runs a chunk again after later chunks were committed."""
    x, text = clip(batch=1)

    def gradient(checkpointed):
        dit.checkpoint_blocks = checkpointed
        cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), policy, max_frames=9, keep_all=True)
        noise = x[:, 3:6].clone().requires_grad_()
        for start, chunk in ((0, x[:, :3]), (3, noise), (6, x[:, 6:9])):
            past = cache.at_hand(3)
            out = dit(chunk, torch.full((1, 3), 0.5), text, past=past)
            if start == 3:
                kept = out
            with torch.no_grad():
                dit(chunk.detach(), torch.zeros(1, 3), text, past=past)
            past.commit()
        kept.square().sum().backward()
        return noise.grad

    assert torch.equal(gradient(False), gradient(True))


def test_a_full_cache_says_what_to_do(dit):
    cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), max_frames=4)
    with pytest.raises(ValueError, match="give it a window"):
        cache.at_hand(5)
    with pytest.raises(ValueError, match="needs max_frames"):
        KVCache(CacheShape(1, 1, 2, 1))


def test_turning_complex_numbers_equals_turning_pairs(rng, monkeypatch):
    keys, rotation = torch.randn(1, 4 * 6, 2, 24, generator=rng), grid_rotation(4, 2, 3, 24, first_frames=[5])
    turned = rotate(keys, rotation)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert (turned - rotate(keys, rotation)).abs().max() <= 1e-6


def test_shifting_rotated_keys_equals_rotating_elsewhere(rng):
    keys = torch.randn(1, 4 * 6, 2, 24, generator=rng)
    here = rotate(keys, grid_rotation(4, 2, 3, 24, first_frames=[5]))
    there = rotate(keys, grid_rotation(4, 2, 3, 24, first_frames=[12]))
    assert (shift_in_time(here, 7) - there).abs().max() <= 2e-6


@pytest.mark.compile
def test_a_compiled_stream_stops_compiling_once_its_window_is_full(dit):
    from torch._dynamo.utils import counters

    x, text = clip(batch=1, num_frames=3)
    for block in dit.blocks:
        block.compile(dynamic=False)
    cache = KVCache(dit.cache_shape(HEIGHT, WIDTH), CachePolicy(window=6))
    memory = dit.project_text(text)
    graphs = []
    for _ in range(8):
        past = cache.at_hand(3)
        with torch.no_grad():
            dit(x, torch.full((1, 3), 0.5), memory, past=past)
        past.commit()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2:] == [graphs[2]] * 6
