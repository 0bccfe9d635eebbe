"""Solvers on a flow whose answer is known: data N(mean, spread^2), for which the ODE maps noise linearly to data."""

import pytest
import torch

from causvid import flow, sample
from causvid.errors import UserError

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


def test_renewed_noise_forgets_where_it_began_and_ends_in_the_data():
    rng = torch.Generator().manual_seed(1)
    x, grid = torch.zeros(4096, 1, 1, 1, 1, dtype=torch.float64), flow.sigma_grid(200)

    def made(renewal):
        return sample.euler(
            gaussian_velocity, x, grid, renewal=renewal, noise=lambda k: torch.randn(x.shape, generator=rng)
        )

    assert made(sample.ODE).std() == 0  # one beginning, one end
    clips = made(sample.Renewal(eta=1.0))
    assert clips.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert clips.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_noise_is_asked_for_by_number_after_every_step_down_to_a_level():
    x, grid, asked = torch.randn(1, 2, 1, 2, 2), [1.0, 0.8, 0.5, 0.4, 0.0], []

    def noise(number):
        asked.append(number)
        return torch.zeros_like(x)

    def made(sigmas, start, **options):
        return sample.euler(gaussian_velocity, start, sigmas, **options)

    assert torch.equal(made(grid, x, renewal=sample.ODE, noise=noise), made(grid, x)) and not asked
    renewal = sample.Renewal(eta=1.0, until=0.5)
    high = made(grid[:3], x, renewal=renewal, noise=noise)
    assert asked == [1, 2]
    torch.testing.assert_close(made(grid, x, renewal=renewal, noise=noise), made(grid[2:], high))
    assert sample.Renewal(1.0).share(0.5, 0.0) == 0.0 and sample.Renewal(1.0).share(1.0, 0.9) == 1.0


def test_the_share_that_is_renewed_is_that_of_the_reverse_process():
    sigma, after = 0.8, 0.6
    before, later = sigma / (1 - sigma), after / (1 - after)  # deviations of noise per data, as in EDM
    up = (later**2 * (before**2 - later**2) / before**2) ** 0.5
    assert sample.Renewal(1.0).share(sigma, after) == pytest.approx(up / later)
    assert sample.Renewal(0.5).share(sigma, after) == pytest.approx(0.5 * up / later)
    assert sample.Renewal(9.0).share(sigma, after) == 1.0


@pytest.mark.parametrize("wrong", [{"eta": -1.0}, {"eta": float("nan")}, {"eta": float("inf")}, {"until": 1.5}])
def test_impossible_renewals_are_refused(wrong):
    with pytest.raises(UserError, match="eta of 0 or more"):
        sample.Renewal(**wrong)


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
