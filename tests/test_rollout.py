from dataclasses import replace

import pytest
import torch

from causvid import flow
from causvid.cache import FULL, CachePolicy, PastOfMany
from causvid.chunks import chunk_bounds
from causvid.errors import UserError
from causvid.models.dit import TextMemory
from causvid.noise import chunk_noise
from causvid.rollout import Rollout, RolloutConfig, denoise_chunk

CFG = RolloutConfig(sigmas=(1.0, 0.9, 0.6, 0.0), chunk=3, max_frames=24)
SHAPE = (4, 6, 10)


def prompt(seed):
    return torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))


def run(model, texts, cfg=CFG, seeds=(0,)):
    rollout = Rollout(model, cfg, SHAPE, seeds=seeds)
    return torch.cat([rollout.step(text) for text in texts], 1)


def without_a_cache(model, texts, cfg, seed):
    """Algorithm 2 by recomputing the whole past at every pass under the block-causal mask."""
    sizes = [cfg.first_chunk or cfg.chunk] + [cfg.chunk] * (len(texts) - 1)
    bounds = chunk_bounds(sum(sizes), cfg.chunk, cfg.first_chunk)
    done = torch.zeros(1, 0, *SHAPE)
    for index, (start, stop) in enumerate(bounds):
        sigmas = cfg.first_sigmas if index == 0 and cfg.first_sigmas else cfg.sigmas
        x = chunk_noise(seed, index, 0, (stop - start, *SHAPE))[None]
        for step, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
            clip = torch.cat([done, x], 1)
            levels = torch.cat([torch.zeros(1, start), torch.full((1, stop - start), sigma)], 1)
            v = model(
                clip, levels, texts[0], bounds=bounds[: index + 1], window=cfg.policy.window, sink=cfg.policy.sink
            )[:, start:]
            x = flow.x0_from_velocity(x, v, levels[:, start:])
            if sigma_next:
                eps = chunk_noise(seed, index, step + 1, (stop - start, *SHAPE))[None]
                x = flow.add_noise(x, eps, torch.full((1, stop - start), sigma_next))
        done = torch.cat([done, x], 1)
    return done


@pytest.mark.parametrize(
    "cfg",
    [
        CFG,
        replace(CFG, chunk=1),
        replace(CFG, first_chunk=1),
        replace(CFG, first_chunk=2, first_sigmas=(1.0, 0.5, 0.0)),
        replace(CFG, policy=CachePolicy(window=7, sink=1)),
    ],
)
def test_rollout_equals_recomputation_without_a_cache(dit, cfg):
    text = prompt(1)
    streamed = run(dit, [text] * 4, cfg, seeds=(5,))
    assert (streamed - without_a_cache(dit, [text] * 4, cfg, 5)).abs().max() <= 2e-5


def test_the_seed_decides_everything_and_rows_do_not_meet(dit):
    text = prompt(1)
    both = run(dit, [text.expand(2, -1, -1)] * 3, seeds=(3, 4))
    assert torch.equal(run(dit, [text] * 3, seeds=(3,)), run(dit, [text] * 3, seeds=(3,)))
    assert (both[:1] - run(dit, [text] * 3, seeds=(3,))).abs().max() <= 1e-5
    assert not torch.allclose(both[:1], both[1:])


def test_a_chunk_is_handed_out_before_its_clean_pass(dit):
    calls = []
    dit.register_forward_pre_hook(lambda m, args: calls.append(args[1].max().item()))
    rollout = Rollout(dit, CFG, SHAPE)
    rollout.step(prompt(1))
    assert calls == pytest.approx([1.0, 0.9, 0.6])  # no pass at 0 yet
    rollout.settle()
    rollout.settle()
    assert calls[3:] == [0.0]
    eager = Rollout(dit, CFG, SHAPE)
    first = eager.step(prompt(1))
    eager.settle()
    lazy = Rollout(dit, CFG, SHAPE)
    assert torch.equal(lazy.step(prompt(1)), first)
    assert torch.equal(lazy.step(prompt(1)), eager.step(prompt(1)))


def test_keeping_the_past_under_a_new_prompt(dit):
    """Two prompts in one stream == recomputation: every committed chunk was seen under its own words."""
    a, b = prompt(1), prompt(2)
    streamed = run(dit, [a, a, b])
    rollout = Rollout(dit, CFG, SHAPE)
    for chunk in (streamed[:, :3], streamed[:, 3:6]):
        rollout.feed(chunk, a)
    assert torch.equal(rollout.step(b), streamed[:, 6:])
    assert not torch.allclose(run(dit, [a, a, a])[:, 6:], streamed[:, 6:])


@pytest.mark.parametrize("policy", [FULL, CachePolicy(window=12), CachePolicy(window=12, sink=2, relative=True)])
def test_recache_equals_having_made_the_past_under_the_new_prompt(dit, policy):
    a, b = prompt(1), prompt(2)
    cfg = replace(CFG, policy=policy)
    rollout = Rollout(dit, cfg, SHAPE)
    past = [rollout.step(a) for _ in range(3)]
    rollout.recache(b)
    fresh = Rollout(dit, cfg, SHAPE)
    for chunk in past:
        fresh.feed(chunk, b)
    after = rollout.step(b)
    assert torch.equal(after, fresh.step(b))
    kept = Rollout(dit, cfg, SHAPE)
    for chunk in past:
        kept.feed(chunk, a)
    assert not torch.allclose(kept.step(b), after)


@pytest.mark.parametrize("sink", [0, 2, 4])
def test_recache_after_the_window_has_rolled_keeps_what_is_in_sight(dit, sink):
    cfg = replace(CFG, policy=CachePolicy(window=9, sink=sink, relative=True))
    rollout = Rollout(dit, cfg, SHAPE)
    made = [rollout.step(prompt(1)) for _ in range(7)]
    rollout.recache(prompt(2))
    num_sink = -(-sink // 3)
    num_recent = -(-(9 - sink) // 3)
    fresh = Rollout(dit, cfg, SHAPE)
    for chunk in made[:num_sink] + made[len(made) - num_recent :]:
        fresh.feed(chunk, prompt(2))
    fresh.settle()
    fresh.chunk_index = rollout.chunk_index
    assert torch.equal(rollout.step(prompt(2)), fresh.step(prompt(2)))


def test_flush_starts_a_new_shot(dit):
    cfg = replace(CFG, first_chunk=1)
    rollout = Rollout(dit, cfg, SHAPE)
    rollout.step(prompt(1))
    assert rollout.step(prompt(1)).shape[1] == 3
    rollout.flush()
    again = rollout.step(prompt(2))
    assert again.shape[1] == 1
    fresh = Rollout(dit, cfg, SHAPE)
    fresh.chunk_index = 2
    assert torch.equal(fresh.step(prompt(2)), again)


def test_supplied_noise_and_a_clean_start(dit):
    text = prompt(1)
    noise = chunk_noise(0, 0, 0, (3, *SHAPE))[None]
    expected = Rollout(dit, CFG, SHAPE).step(text)
    assert torch.equal(Rollout(dit, CFG, SHAPE, seeds=(0,)).step(text, noise=noise), expected)
    # begun from a clean chunk at a level of nearly nothing, it stays that chunk
    clean = torch.randn(1, 3, *SHAPE)
    kept = Rollout(dit, CFG, SHAPE).step(text, start=clean, sigmas=(1e-5, 0.0))
    assert (kept - clean).abs().max() < 1e-3
    assert (Rollout(dit, CFG, SHAPE).step(text, start=clean, sigmas=(1.0, 0.9, 0.6, 0.0)) - expected).abs().max() == 0


def test_training_rollout_keeps_the_gradient_of_one_step_only(dit):
    dit.requires_grad_(True)
    text = prompt(1)
    x = torch.randn(1, 3, *SHAPE)

    def draw(step):
        return chunk_noise(9, 0, step, (1, 3, *SHAPE))

    for step in range(3):
        out = denoise_chunk(dit, x, CFG.sigmas, text, draw, grad_step=step)
        assert out.requires_grad
    # the gradient of the last step equals that of one plain call on the same input
    with torch.no_grad():
        state = denoise_chunk(dit, x, (1.0, 0.9, 0.0), text, draw)
    level = torch.full((1, 3), 0.6)
    state = flow.add_noise(state, draw(2), level)
    direct = flow.x0_from_velocity(state, dit(state, level, text), level)
    torch.testing.assert_close(direct, out, atol=1e-6, rtol=0)
    grads = [torch.autograd.grad(o.square().sum(), dit.head.head.weight)[0] for o in (direct, out)]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)


def test_numbers_of_steps():
    grid = replace(CFG, sigmas=tuple(flow.sigma_grid(4, 5.0)), shift=5.0)
    assert grid.with_steps(2).sigmas == tuple(flow.sigma_grid(2, 5.0))
    assert grid.with_steps(4) is grid
    with pytest.raises(UserError, match="its own list of 3 steps"):
        CFG.with_steps(2)
    with pytest.raises(UserError, match="at least 1"):
        grid.with_steps(0)


def test_streams_answered_by_hand_equal_streams_that_run_alone(dit):
    """Two streams at different places in time, their passes gathered into one batch, whatever kind they are."""
    cfg = replace(CFG, policy=CachePolicy(window=9))
    texts = [dit.project_text(prompt(seed)) for seed in (1, 2)]
    alone = [run(dit, [text] * 4, cfg, (seed,)) for seed, text in enumerate(texts)]

    def stream(seed, text):
        rollout = Rollout(dit, cfg, SHAPE, seeds=(seed,))
        made = []
        for _ in range(4):
            made.append((yield from rollout.step_passes(text)))
        return torch.cat(made, 1)

    streams, wanted, done = {}, {}, {}
    for turn in range(100):
        if turn in (0, 5):  # the second one joins in the middle of the first one's second chunk
            key = len(streams)
            streams[key] = stream(key, texts[key])
            wanted[key] = next(streams[key])
        keys = list(wanted)
        x, sigma, past = (
            torch.cat([wanted[k].x for k in keys]),
            torch.cat([wanted[k].sigma for k in keys]),
            PastOfMany([wanted[k].past for k in keys]),
        )
        for key, v in zip(keys, dit(x, sigma, TextMemory.stack([wanted[k].text for k in keys]), past=past).split(1)):
            try:
                wanted[key] = streams[key].send(v)
            except StopIteration as end:
                done[key] = end.value
                del wanted[key]
        if not wanted:
            break
    assert all((done[key] - alone[key]).abs().max() <= 2e-5 for key in (0, 1))


@pytest.mark.parametrize("policy", [FULL, CachePolicy(window=9), CachePolicy(window=9, sink=2, relative=True)])
def test_a_saved_moment_is_that_moment(dit, policy):
    cfg = replace(CFG, policy=policy)
    stream = Rollout(dit, cfg, SHAPE)
    for _ in range(4):
        stream.step(prompt(1))
    moment = stream.save()
    onwards = [stream.step(prompt(2)) for _ in range(3)]
    stream.load(moment)
    other = Rollout(dit, cfg, SHAPE)
    other.load(moment)
    for expected in onwards:
        assert torch.equal(stream.step(prompt(2)), expected)
        assert torch.equal(other.step(prompt(2)), expected)


@pytest.mark.parametrize("policy", [CachePolicy(window=6), CachePolicy(window=7, sink=3, relative=True)])
def test_a_window_forgets_completely(dit, policy):
    """Leaving out chunks that are old enough changes no bit; leaving out younger ones does."""
    cfg = replace(CFG, policy=policy)
    stream = Rollout(dit, cfg, SHAPE)
    made = [stream.step(prompt(1)) for _ in range(12)]
    expected = stream.step(prompt(1))
    needed = -(-stream.frames_that_matter() // 3)
    num_sink = -(-policy.sink // 3)

    def shortened(num_kept):
        other = Rollout(dit, cfg, SHAPE)
        for chunk in made[:num_sink]:
            other.feed(chunk, prompt(1))
        skipped = len(made) - num_sink - num_kept
        other.skip(3 * skipped)
        other.chunk_index += skipped
        for chunk in made[len(made) - num_kept :]:
            other.feed(chunk, prompt(1))
        return other.step(prompt(1))

    assert num_sink + needed < len(made)
    assert torch.equal(shortened(needed), expected)
    assert not torch.equal(shortened(1), expected)
