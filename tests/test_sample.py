"""Solvers on a flow whose answer is known: data N(mean, spread^2), for which the ODE maps noise linearly to data."""

import pytest
import torch

from causvid import flow, sample

MEAN, SPREAD = 1.5, 0.3


def gaussian_velocity(x_t, sigma):
    """E[eps - x0 | x_t] for x0 ~ N(MEAN, SPREAD^2)."""
    s = flow.per_frame(sigma, x_t)
    variance = (1 - s) ** 2 * SPREAD**2 + s**2
    deviation = (x_t - (1 - s) * MEAN) / variance
    x0 = MEAN + (1 - s) * SPREAD**2 * deviation
    return s * deviation - x0


def error(solver, num_steps, shift=1.0):
    x = torch.randn(64, 2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = solver(gaussian_velocity, x, flow.sigma_grid(num_steps, shift))
    return (out - (MEAN + SPREAD * x)).square().mean().sqrt().item()


def test_euler_is_first_order_and_heun_second():
    assert error(sample.euler, 64) / error(sample.euler, 128) == pytest.approx(2, rel=0.1)
    assert error(sample.heun, 64) / error(sample.heun, 128) == pytest.approx(4, rel=0.15)
    assert error(sample.heun, 50) < 1e-3 < error(sample.euler, 50) < 0.05


def test_guidance_of_one_never_calls_the_empty_prompt():
    calls = []

    def model(x_t, sigma, text):
        calls.append(text)
        return x_t * 0 + (2.0 if text == "yes" else 1.0)

    x, sigma = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1)
    assert sample.guided(model, "yes", "no", 1.0)(x, sigma).item() == 2
    assert calls == ["yes"]
    assert sample.guided(model, "yes", "no", 3.0)(x, sigma).item() == 1 + 3 * (2 - 1)


def test_a_guide_answers_where_there_is_no_caption_and_only_there():
    x, sigma = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1)
    answers = {("model", "yes"): 2.0, ("guide", "no"): -1.0}  # anything else is a mistake

    def network(name):
        return lambda x_t, sigma, text: x_t * 0 + answers[name, text]

    field = sample.guided(network("model"), "yes", "no", 3.0, network("guide"))
    assert field(x, sigma).item() == -1 + 3 * (2 + 1)
    assert sample.guided(network("model"), "yes", "no", 1.0, network("guide"))(x, sigma).item() == 2


def test_sampling_with_guidance_in_steps_is_one_guidance_after_the_other():
    def model(x_t, sigma, text):
        return 0.5 * x_t + (1.0 if text == "yes" else 0.25)

    x, grid = torch.randn(1, 2, 1, 2, 2), [1.0, 0.9, 0.8, 0.4, 0.0]
    steps = flow.GuidanceSteps(((1.0, 4.0), (0.8, 1.5)))
    high = sample.euler(sample.guided(model, "yes", "no", 4.0), x, grid[:3])
    expected = sample.euler(sample.guided(model, "yes", "no", 1.5), high, grid[2:])
    torch.testing.assert_close(sample.euler(sample.guided(model, "yes", "no", steps), x, grid), expected)


@pytest.mark.parametrize("solver", [sample.euler, sample.heun])
def test_trajectories_hold_the_states_of_the_levels_asked_for(solver):
    x = torch.randn(2, 3, 1, 2, 2)
    grid = flow.sigma_grid(48, 5.0)
    student = flow.sigma_grid(4, 5.0)
    states = sample.trajectory(solver, gaussian_velocity, x, grid, student)
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], solver(gaussian_velocity, x, grid))
    # the state at a kept level is where a shorter run over the same grid ends
    assert torch.equal(states[2], solver(gaussian_velocity, x, grid[:25]))


def test_levels_off_the_grid_are_refused():
    with pytest.raises(ValueError, match="not on the grid of 50 steps"):
        sample.trajectory(
            sample.euler, gaussian_velocity, torch.zeros(1, 1, 1, 1, 1), flow.sigma_grid(50, 5.0), [0.9375]
        )
