"""Noise that moves with the view, and networks that know places in the world."""

from dataclasses import replace

import pytest
import torch

from causvid.cache import CachePolicy, KVCache
from causvid.errors import UserError
from causvid.render import ways_of_chunks
from causvid.rollout import commit_chunk
from causvid.rope import grid_rotation, rotate
from causvid.view_noise import ViewNoise, carry_rows, set_free, unknown_ways
from tiny_models import TINY, moving_model, random_dit, random_model

ALL = ViewNoise(share=1.0, pixels=8)
TRAVEL = torch.tensor([0.0, 1.0, 2.5, 2.5, 40.0, -3.25])


def own(frames=6, width=14, seed=0):
    return torch.randn(frames, 4, 6, width, generator=torch.Generator().manual_seed(seed))


# ---- noise ---------------------------------------------------------------------------------------------------------


def test_noise_goes_by_as_the_view_does():
    noise = ALL.carry(own(), TRAVEL, 1)
    assert torch.equal(noise[1][..., :-1], noise[0][..., 1:])  # what was one to the right
    assert torch.equal(noise[2], noise[3])
    half = float((noise[2][..., :-2] * noise[0][..., 2:]).mean())
    assert half == pytest.approx(0.5, abs=0.1)  # half a latent further: half of the canvas is the same


def test_every_frame_is_white_noise_of_the_same_loudness():
    for share in (0.0, 0.4, 1.0):
        noise = ViewNoise(share).carry(own(64, 40), torch.linspace(0, 99.7, 64), 3)
        assert float(noise.std()) == pytest.approx(1.0, abs=0.02) and abs(float(noise.mean())) < 0.02
        assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.02


def test_the_share_is_what_frames_have_in_common():
    still = torch.zeros(200)
    noise = ViewNoise(0.7).carry(own(200), still, 3)
    assert float((noise[1:] * noise[:-1]).mean()) == pytest.approx(0.7, abs=0.03)
    assert torch.equal(ViewNoise(0.0).carry(own(), TRAVEL, 3), own())


def test_bands_pass_at_their_own_speeds():
    noise = ViewNoise(1.0, parallax=(0.5, 1.0)).carry(own(2), torch.tensor([0.0, 2.0]), 1)
    assert torch.equal(noise[1, :, :3, :-1], noise[0, :, :3, 1:])
    assert torch.equal(noise[1, :, 3:, :-2], noise[0, :, 3:, 2:])


def test_a_canvas_is_the_same_whoever_looks_at_it_and_when():
    whole = ALL.carry(own(), TRAVEL, 5, 2)
    parts = [ALL.carry(own()[i : i + 2], TRAVEL[i : i + 2], 5, 2) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(ALL.carry(own(), TRAVEL, 5, 3), whole)


def test_noise_of_an_unknown_view_stays_as_it_is():
    ways = torch.stack([TRAVEL, unknown_ways(1, len(TRAVEL))[0]])
    noise = torch.stack([own(seed=1), own(seed=2)])
    moved = carry_rows(ALL, noise, ways, [(1,), (2,)])
    assert torch.equal(moved[1], noise[1]) and torch.equal(moved[0], ALL.carry(noise[0], TRAVEL, 1))
    assert carry_rows(None, noise, ways, []) is noise and carry_rows(ALL, noise, None, []) is noise
    share = set_free(torch.zeros(4000, 3), 0.25, torch.Generator().manual_seed(0)).isnan()
    assert float(share.float().mean()) == pytest.approx(0.25, abs=0.03) and torch.equal(share.all(1), share.any(1))


def test_impossible_shares_are_refused():
    with pytest.raises(UserError, match="share of 0 to 1"):
        ViewNoise(1.5)


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def moving():
    return random_dit(replace(TINY, parallax=(0.3, 1.0)))


def clip(frames=6, batch=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, text = torch.randn(batch, frames, 4, 8, 12, generator=rng), torch.randn(batch, 5, 8, generator=rng)
    return x, torch.rand(batch, frames, generator=rng), text, 3 * torch.randn(batch, frames, generator=rng)


def test_only_differences_of_places_count(moving):
    x, sigma, text, travel = clip()
    seen = moving(x, sigma, text, travel=travel)
    torch.testing.assert_close(moving(x, sigma, text, travel=travel + 1024), seen, atol=1e-4, rtol=1e-4)
    assert (moving(x, sigma, text) - seen).abs().max() > 1e-3
    torch.testing.assert_close(moving(x, sigma, text, travel=torch.full_like(travel, 3)), moving(x, sigma, text))
    torch.testing.assert_close(moving(x, sigma, text, travel=unknown_ways(2, 6)), moving(x, sigma, text))


def test_what_stands_in_the_world_is_as_near_as_in_a_view_that_rests():
    """Attention from one frame to the next: the head that goes along finds a place at its old column, the other where
    the picture shows it. Inside a frame both know columns as they are."""
    q, k = torch.randn(2, 1, 1, 2, 24, generator=torch.Generator().manual_seed(0))
    turned = grid_rotation(2, 4, 6, 24, ways=torch.tensor([[[0.0, 0.0], [0.0, 2.0]]]))  # two patches, for the second
    rest = grid_rotation(2, 4, 6, 24)

    def scores(rotation, a, b):
        pick = lambda at: type(rotation)(rotation.cos[:, at : at + 1], rotation.sin[:, at : at + 1])  # noqa: E731
        return (rotate(q, pick(a)) * rotate(k, pick(b))).sum((0, 1, 3))

    token = lambda frame, row, column: (frame * 4 + row) * 6 + column  # noqa: E731
    seen = scores(turned, token(0, 3, 4), token(1, 3, 2))
    torch.testing.assert_close(seen[0], scores(rest, token(0, 3, 4), token(1, 3, 2))[0])
    torch.testing.assert_close(seen[1], scores(rest, token(0, 3, 4), token(1, 3, 4))[1])
    assert (seen[1] - scores(rest, token(0, 3, 4), token(1, 3, 2))[1]).abs() > 1e-3
    inside = scores(turned, token(1, 0, 5), token(1, 3, 2))
    torch.testing.assert_close(inside, scores(rest, token(1, 0, 5), token(1, 3, 2)))


def test_every_head_has_its_share():
    with pytest.raises(ValueError, match="one share for each of 2 heads, got 3"):
        random_dit(replace(TINY, parallax=(0.0, 0.5, 1.0)))


@pytest.mark.parametrize("policy", [CachePolicy(), CachePolicy(window=4), CachePolicy(window=5, sink=2)])
def test_cached_equals_masked_where_the_view_moves(moving, policy):
    x, _, text, travel = clip(frames=8)
    sigma = torch.zeros(2, 8)
    bounds = [(0, 2), (2, 4), (4, 6), (6, 8)]
    masked = moving(x, sigma, text, bounds=bounds, window=policy.window, sink=policy.sink, travel=travel)
    cache = KVCache(moving.cache_shape(8, 12), policy, batch=2, max_frames=8)
    for start, stop in bounds:
        past = cache.at_hand(stop - start, travel[:, start:stop])
        made = moving(x[:, start:stop], sigma[:, start:stop], text, past=past)
        torch.testing.assert_close(made, masked[:, start:stop], atol=1e-5, rtol=1e-5)
        commit_chunk(moving, x[:, start:stop], text, past)


# ---- models --------------------------------------------------------------------------------------------------------


def test_a_model_whose_words_tell_no_way_is_refused_in_a_sentence():
    model = moving_model()
    model.text = type(model.text).__mro__[1]()
    with pytest.raises(UserError, match="cannot tell how the view moves"):
        model.session("a red car")


def test_a_teachers_clip_goes_where_its_prompt_sends_it():
    """The same words to the network and the same seed; only the way differs."""
    model = moving_model()
    a = model.sample_latents("a red car", seed=1)
    words = model.embed(["a red car"])
    model.embed = lambda prompts: words
    assert torch.equal(model.sample_latents("a red car", seed=1), a)
    assert (model.sample_latents("a blue bus", seed=1) - a).abs().max() > 0.01


def test_a_student_that_knows_no_places_is_run_as_if_nothing_moved():
    """Whatever its teacher learnt."""
    told = moving_model()
    told.student_source = lambda: random_dit(seed=1)
    plain = replace(told.cfg, view_noise=None)
    a = told.session("a red car", seed=1).next_chunk()
    told.cfg = plain
    assert torch.equal(told.session("a red car", seed=1).next_chunk().latents, a.latents)
    take = told.session("a red car", seed=1).take()
    assert ways_of_chunks(take, moving_model()) == [] and ways_of_chunks(take, told) is None
    plainly = random_model()
    assert ways_of_chunks(take, plainly) is None
    assert plainly._student is None  # refining needs no student: it may be large
    told.student_source = told.teacher_source
    told._student = None
    chunks = []
    for cfg in (plain, moving_model().cfg):
        told.cfg = cfg
        chunks.append(told.session("a red car", seed=1).next_chunk().latents)
    assert (chunks[0] - chunks[1]).abs().max() > 0.01
