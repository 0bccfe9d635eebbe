import math

import pytest
import torch

from causvid import flow
from causvid.errors import UserError


@pytest.fixture
def pair(rng):
    return torch.randn(2, 3, 4, 5, 6, generator=rng), torch.randn(2, 3, 4, 5, 6, generator=rng)


def test_conversions_are_each_others_inverse(pair, rng):
    x0, eps = pair
    sigma = torch.rand(2, 3, generator=rng) * 0.98 + 0.01
    x_t, v = flow.add_noise(x0, eps, sigma), flow.velocity(x0, eps)
    torch.testing.assert_close(flow.x0_from_velocity(x_t, v, sigma), x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.eps_from_velocity(x_t, v, sigma), eps, atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.velocity_from_x0(x_t, x0, sigma), v, atol=1e-4, rtol=1e-4)


def test_ends_of_the_path_are_data_and_noise(pair):
    x0, eps = pair
    assert torch.equal(flow.add_noise(x0, eps, torch.zeros(2, 3)), x0)
    assert torch.equal(flow.add_noise(x0, eps, torch.ones(2, 3)), eps)


def test_each_frame_has_its_own_level(pair):
    x0, eps = pair
    x_t = flow.add_noise(x0, eps, torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.25]]))
    assert torch.equal(x_t[0, 0], x0[0, 0]) and torch.equal(x_t[0, 1], eps[0, 1])
    assert torch.equal(x_t[1, 0], eps[1, 0]) and torch.equal(x_t[1, 2], 0.75 * x0[1, 2] + 0.25 * eps[1, 2])


def test_working_dtype_is_kept(pair):
    x0, eps = (x.bfloat16() for x in pair)
    sigma = torch.full((2, 3), 0.5)
    assert flow.add_noise(x0, eps, sigma).dtype == torch.bfloat16
    assert flow.x0_from_velocity(x0, eps, sigma).dtype == torch.bfloat16


def test_guidance_of_one_is_none_and_other_forms_convert(pair):
    (cond, uncond), sigma = pair, torch.full((2, 3), 0.5)
    assert torch.allclose(flow.guide(cond, uncond, 1.0, sigma), cond, atol=1e-6)
    w = 3.5  # cond + w (cond - uncond)
    torch.testing.assert_close(flow.guide(cond, uncond, 1 + w, sigma), cond + w * (cond - uncond), atol=1e-5, rtol=1e-5)


def test_guidance_in_steps_is_that_of_each_frames_level(pair):
    cond, uncond = pair
    steps = flow.GuidanceSteps(((1.0, 3.0), (0.8, 2.0), (0.25, 1.0)))
    sigma, expected = torch.tensor([[1.0, 0.81, 0.8], [0.5, 0.25, 0.0]]), [[3.0, 3.0, 2.0], [2.0, 1.0, 1.0]]
    guided = flow.guide(cond, uncond, steps, sigma)
    for row, frames in enumerate(expected):
        for t, guidance in enumerate(frames):
            alone = flow.guide(cond[row, t], uncond[row, t], guidance, sigma[row, t])
            torch.testing.assert_close(guided[row, t], alone)
    assert flow.guide(cond.bfloat16(), uncond.bfloat16(), steps, sigma).dtype == torch.bfloat16
    assert f"{steps:g}" == "3, 2 from 0.8 down, 1 from 0.25 down"


@pytest.mark.parametrize("steps", [(), ((0.9, 3.0),), ((1.0, 3.0), (1.0, 2.0)), ((1.0, 3.0), (0.0, 2.0))])
def test_steps_of_guidance_fall_from_level_one(steps):
    with pytest.raises(UserError, match="steps of guidance"):
        flow.GuidanceSteps(steps)


@pytest.mark.parametrize(
    ("shift", "expected"), [(8, [1000, 960, 888.8889, 727.2727, 0]), (5, [1000, 937.5, 833.3333, 625, 0])]
)
def test_warped_step_lists(shift, expected):
    sigmas = flow.sigmas_from_timesteps([1000, 750, 500, 250, 0], warp_shift=shift)
    assert [1000 * s for s in sigmas] == pytest.approx(expected, abs=1e-3)
    # the warped list of evenly spaced entries is the shifted grid
    assert sigmas == pytest.approx(flow.sigma_grid(4, shift))


def test_published_three_step_list_lies_on_the_fifty_step_grid():
    grid = flow.sigma_grid(50, 8)
    assert 1000 * grid[36] == pytest.approx(756.7568, abs=1e-4)
    assert 1000 * grid[44] == pytest.approx(521.7391, abs=1e-4)
    assert flow.sigmas_from_timesteps([1000, 757, 522, 0]) == [1.0, 0.757, 0.522, 0.0]


def test_forty_eight_steps_hit_the_levels_of_shift_five():
    grid = flow.sigma_grid(48, 5)
    assert [1000 * grid[i] for i in (12, 24, 36)] == pytest.approx([937.5, 833.3333, 625], abs=1e-3)


@pytest.mark.parametrize(
    ("timestep", "shift", "sigma"),
    [(757, 8, 0.7567568), (522, 8, 0.5217391), (0, 8, 0.0079444), (0, 5, 0.0049801)],
)
def test_table_lookup_of_other_code(timestep, shift, sigma):
    entries = 50 if timestep else 1000
    assert flow.sigma_from_table(timestep, shift, entries) == pytest.approx(sigma, abs=5e-7)


def test_thousand_entry_table_finds_the_fifty_step_levels():
    assert flow.sigma_from_table(757, 8) == pytest.approx(0.7567568, abs=5e-7)
    assert flow.sigma_from_table(522, 8) == pytest.approx(0.5217391, abs=5e-7)


def test_shift_of_one_is_identity_and_order_is_kept():
    u = torch.linspace(0, 1, 11)
    assert torch.equal(flow.shift_sigma(u, 1.0), u)
    shifted = flow.shift_sigma(u, 8.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:] > shifted[:-1]).all()


@pytest.mark.parametrize("bad", [[], [0], [500, 750], [1000, 1000], [1001, 500]])
def test_step_lists_that_do_not_fall_are_refused(bad):
    with pytest.raises(ValueError, match="fall strictly"):
        flow.sigmas_from_timesteps(bad)


@pytest.mark.parametrize(("shift", "share"), [(8, 0.140), (5, 0.093)])
def test_score_levels_are_shifted_then_clamped(shift, share, rng):
    sigma = flow.draw_score_sigma(200_000, rng, shift=shift)
    assert sigma.min() >= 0.02 and sigma.max() == pytest.approx(0.98)
    assert (sigma == sigma.max()).float().mean().item() == pytest.approx(share, abs=0.004)
    median = 889 if shift == 8 else 833
    assert 1000 * sigma.median().item() == pytest.approx(median, abs=3)


def test_logit_normal_levels(rng):
    sigma = flow.draw_logit_normal((50_000,), rng, mean=0.0, std=1.0)
    assert 0 < sigma.min() and sigma.max() < 1
    assert torch.logit(sigma).mean().abs() < 0.02 and torch.logit(sigma).std() == pytest.approx(1.0, abs=0.02)


def test_timestep_features_are_cosines_then_sines_of_a_thousand_sigma():
    features = flow.timestep_features(torch.tensor([0.25]), 8)[0]
    for i in range(4):
        angle = 250 * 10_000 ** (-i / 4)
        assert features[i].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert features[4 + i].item() == pytest.approx(math.sin(angle), abs=1e-6)
