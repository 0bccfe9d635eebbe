"""Distribution matching with distributions whose scores are known, and the numbers that watch over a run."""

import pytest
import torch

from causvid import flow
from causvid.stages.dmd_losses import critic_loss, dmd_gradient, signs_of_life, spread, student_loss
from causvid.stages.replay import Replay
from tiny_distillation import gaussian

SHAPE = (64, 1, 1, 4, 4)


def levels(rng):
    return flow.draw_score_sigma(SHAPE[0], rng, shift=3.0)[:, None]


def test_the_students_mean_walks_to_the_datas(rng):
    """Teacher N(-1, 1); the student is noise plus a mean, its critic exact. Nothing here is learned but the mean."""
    mean = torch.tensor(3.0, requires_grad=True)
    path = [3.0]
    for _ in range(120):
        x0 = torch.randn(SHAPE, generator=rng) + mean
        eps = torch.randn(SHAPE, generator=rng)
        gradient = dmd_gradient(x0, gaussian(-1.0), gaussian(mean.item()), None, None, levels(rng), eps, 1.0)
        (step,) = torch.autograd.grad(student_loss(x0, gradient), mean)
        with torch.no_grad():
            mean -= 0.1 * step
        path.append(mean.item())
    assert path[1] < 3.0 and path[-1] == pytest.approx(-1.0, abs=0.05)
    assert max(later - earlier for earlier, later in zip(path, path[1:])) < 0.02  # downhill all the way


def test_there_is_nothing_to_learn_from_a_critic_that_equals_the_teacher(rng):
    x0, eps = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng)
    same = dmd_gradient(x0, gaussian(0.5), gaussian(0.5), None, None, levels(rng), eps, 1.0)
    assert same.abs().max() == 0
    other = dmd_gradient(x0, gaussian(0.5), gaussian(1.5), None, None, levels(rng), eps, 1.0)
    assert (other > 0).all()  # too large everywhere: descending the gradient makes it smaller


def test_the_derivative_of_the_loss_is_the_gradient(rng):
    x0 = torch.randn(SHAPE, generator=rng, requires_grad=True)
    gradient = torch.randn(SHAPE, generator=rng)
    (derivative,) = torch.autograd.grad(student_loss(x0, gradient), x0)
    torch.testing.assert_close(derivative, gradient / x0.numel(), atol=0, rtol=1e-6)


def test_the_gradient_is_measured_in_the_teachers_distance(rng):
    """critic - teacher over mean |x - teacher|, per clip; guidance is on the teacher alone."""
    x0, eps, sigma = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng), levels(rng)
    asked = []

    def teacher(x_t, sigma, text):
        asked.append(text)
        return gaussian(1.0 if text == "words" else 0.0)(x_t, sigma, text)

    gradient = dmd_gradient(x0, teacher, gaussian(2.0), "words", "none", sigma, eps, 3.0)
    assert asked == ["words", "none"]
    x_t = flow.add_noise(x0, eps, sigma)
    predicted = {m: flow.x0_from_velocity(x_t, gaussian(m)(x_t, sigma, None), sigma) for m in (0.0, 1.0, 2.0)}
    real = 3 * predicted[1.0] - 2 * predicted[0.0]
    size = (x0 - real).abs().flatten(1).mean(dim=1).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(gradient, (predicted[2.0] - real) / size, atol=1e-4, rtol=1e-4)
    assert not gradient.requires_grad


def test_a_guide_takes_the_place_of_the_teacher_without_caption(rng):
    """Of three Gaussians: the teacher at 1 under words, a guide at 0 without."""
    x0, eps, sigma = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng), levels(rng)

    def told(x_t, sigma, text):
        return gaussian({"words": 1.0, "none": 0.0}[text])(x_t, sigma, text)

    def teacher(x_t, sigma, text):
        assert text == "words"
        return told(x_t, sigma, text)

    alone = dmd_gradient(x0, told, gaussian(2.0), "words", "none", sigma, eps, 3.0)
    guided = dmd_gradient(x0, teacher, gaussian(2.0), "words", "none", sigma, eps, 3.0, gaussian(0.0))
    assert torch.equal(alone, guided)
    assert not torch.equal(
        guided, dmd_gradient(x0, teacher, gaussian(2.0), "words", "none", sigma, eps, 3.0, gaussian(-1.0))
    )


def test_the_critics_loss_is_least_where_it_is_right(rng):
    x0 = torch.randn(4096, 1, 1, 2, 2, generator=rng) + 2
    eps, sigma = torch.randn(x0.shape, generator=rng), torch.rand(4096, 1, generator=rng).clamp(0.05, 0.95)
    losses = [critic_loss(gaussian(m), x0, None, sigma, eps) for m in (1.8, 2.0, 2.2)]
    assert losses[0].shape == (4096, 1)
    assert losses[1].mean() < losses[0].mean() and losses[1].mean() < losses[2].mean()


def test_signs_of_life():
    """Values 0, 1, 3, 4 in one chunk and 8, 9 in the next: the step into the new chunk is 4."""
    frames = torch.tensor([0.0, 1, 3, 4, 8, 9]).reshape(1, 6, 1, 1, 1)
    life = signs_of_life(frames, [4])
    assert life["motion"] == pytest.approx(9 / 5) and life["std"] == pytest.approx(float(frames.std()))
    assert life["seams"] == pytest.approx(4 / ((2 + 1 + 1) / 3))  # the step out of the first frame is not counted
    assert "seams" not in signs_of_life(frames, [])
    assert signs_of_life(torch.ones(1, 6, 1, 1, 1), [3])["motion"] == 0
    assert signs_of_life(frames.reshape(6, 1, 1, 1, 1), []) == {"std": frames.std(), "motion": 0}  # single frames


def test_spread_tells_a_collapse(rng):
    prompts = torch.randn(6, 2, 1, 4, 4, generator=rng).repeat_interleave(2, dim=0)
    assert spread(prompts) == 0  # both seeds alike
    assert spread(torch.randn(12, 2, 4, 8, 8, generator=rng)) == pytest.approx(1.0, abs=0.1)  # deaf to the prompt
    assert 0.05 < spread(prompts + 0.1 * torch.randn(12, 2, 1, 4, 4, generator=rng)) < 0.3


def test_replay_holds_the_newest_with_their_text_and_ways(rng):
    replay = Replay(4, (1, 1, 1, 1), (1, 1), torch.device("cpu"))
    for first in (0, 2, 4):
        numbers = torch.tensor([first, first + 1.0])
        replay.put(numbers.reshape(2, 1, 1, 1, 1), -numbers.reshape(2, 1, 1), 2 * numbers[:, None])
    videos, texts, ways = replay.draw(4, rng)
    assert sorted(videos.flatten().tolist()) == [2, 3, 4, 5] and torch.equal(texts.flatten(), -videos.flatten())
    assert torch.equal(ways.flatten(), 2 * videos.flatten())
    assert replay.draw(7, rng)[0].shape[0] == 7
    again = Replay(4, (1, 1, 1, 1), (1, 1), torch.device("cpu"))
    again.load_state_dict(replay.state_dict())
    draws = [r.draw(3, torch.Generator().manual_seed(1))[0] for r in (replay, again)]
    assert torch.equal(*draws) and again.size == 4
