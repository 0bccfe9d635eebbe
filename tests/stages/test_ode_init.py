"""The student's first weights: what the losses are zero for, what a chunk sees, exact resume."""

from dataclasses import replace

import pytest
import torch

from causvid import flow
from causvid.cache import FULL, CachePolicy
from causvid.checkpoints import load_dit
from causvid.chunks import chunk_bounds
from causvid.errors import UserError
from causvid.stages import ode_init, ode_pairs
from causvid.stages.ode_init import Sitting, behind_clean_past, consistency_error, regression_error
from causvid.stages.sources import Draws, Network
from tiny_distillation import (
    CLIP,
    GALLERY,
    MODEL,
    OPTIM,
    STUDENT,
    assert_same_weights,
    init_config,
    pairs_config,
    weights_of,
    write_world,
)
from tiny_models import random_dit

CPU = torch.device("cpu")
LEVELS = torch.tensor(STUDENT.sigmas)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = write_world(tmp_path_factory.mktemp("world"))
    ode_pairs.train(pairs_config(folder), folder / "pairs")
    return folder


def random_states(rng):
    states = torch.randn(3, 5, *CLIP, generator=rng)
    index = torch.randint(5, (3, CLIP[0]), generator=rng)
    return states, index


def test_a_perfect_predictor_has_no_error(rng):
    states, index = random_states(rng)
    end = states[:, -1]

    def perfect(x_t, sigma, text):
        return (x_t - end) / flow.per_frame(sigma.clamp_min(1e-6), x_t)

    error, sigma = regression_error(perfect, states, LEVELS, index, None)
    assert error.max() < 1e-10 and torch.equal(sigma, LEVELS[index])


def test_every_frame_is_the_state_at_its_level_and_clean_ones_do_not_count(rng):
    states, index = random_states(rng)
    seen = []

    def silent(x_t, sigma, text):
        seen.append(x_t)
        return torch.zeros_like(x_t)

    error, _ = regression_error(silent, states, LEVELS, index, None)
    for b in range(3):
        for t in range(CLIP[0]):
            assert torch.equal(seen[0][b, t], states[b, index[b, t], t])
            distance = (states[b, index[b, t], t] - states[b, -1, t]).square().mean()
            assert error[b, t] == pytest.approx(0.0 if index[b, t] == 4 else distance.item(), rel=1e-5)


def test_one_part_of_the_truth_is_consistent_with_itself(rng):
    """If all data is one clip, the exact velocity is known, every teacher step stays on its line, and the network that
    always answers with that clip has no error; one that does not answer so has some."""
    x0, eps = torch.randn(2, *CLIP, generator=rng), torch.randn(2, *CLIP, generator=rng)
    index = torch.randint(8, (2, CLIP[0]), generator=rng)
    grid = torch.tensor(flow.sigma_grid(8, 3.0))

    def exact(x_t, sigma, text):
        return flow.velocity_from_x0(x_t, x0, sigma.clamp_min(1e-6))

    arguments = (x0, eps, grid[index], grid[index + 1], None)
    assert consistency_error(exact, exact, exact, *arguments).max() < 1e-9
    silent = consistency_error(lambda x, s, t: torch.zeros_like(x), exact, exact, *arguments)
    assert silent.min() > 1e-3


def test_the_last_step_of_consistency_is_tied_to_the_data(rng):
    """Where a teacher step ends at 0, the target network has no say."""
    x0, eps = torch.randn(1, *CLIP, generator=rng), torch.randn(1, *CLIP, generator=rng)
    sigma, zero = torch.full((1, CLIP[0]), 0.3), torch.zeros(1, CLIP[0])
    teacher = lambda x, s, t: flow.velocity(x0, eps)  # noqa: E731
    student = lambda x, s, t: 2 * x  # noqa: E731
    errors = [
        consistency_error(student, target, teacher, x0, eps, sigma, zero, None)
        for target in (lambda x, s, t: x, lambda x, s, t: x * 100)
    ]
    assert torch.equal(*errors)
    x_t = flow.add_noise(x0, eps, sigma)
    wanted = (flow.x0_from_velocity(x_t, 2 * x_t, sigma) - x0).square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(errors[0], wanted)


def test_behind_a_clean_past_each_chunk_sees_finished_ones(rng):
    """The loop with a cache == for each chunk, a masked pass over the true past at level 0 and the chunk at its own."""
    model = random_dit(MODEL)
    x_t, history = torch.randn(2, *CLIP, generator=rng), torch.randn(2, *CLIP, generator=rng)
    sigma, text = torch.rand(2, CLIP[0], generator=rng), torch.randn(2, 6, 16, generator=rng)
    bounds = chunk_bounds(CLIP[0], 2)
    model.requires_grad_(True)
    v = behind_clean_past(Network(model, "float32"), history, bounds, FULL)(x_t, sigma, text)
    for index, (start, stop) in enumerate(bounds):
        clip = torch.cat([history[:, :start], x_t[:, start:stop]], dim=1)
        level = torch.cat([torch.zeros(2, start), sigma[:, start:stop]], dim=1)
        direct = model(clip, level, text, bounds=bounds[: index + 1])[:, start:]
        torch.testing.assert_close(v[:, start:stop], direct, atol=1e-5, rtol=1e-5)
    assert v.requires_grad


def test_layers_that_are_computed_again_see_the_same_clean_past(rng):
    model = random_dit(MODEL).requires_grad_(True)
    x_t, history = torch.randn(2, *CLIP, generator=rng), torch.randn(2, *CLIP, generator=rng)
    sigma, text = torch.rand(2, CLIP[0], generator=rng), torch.randn(2, 6, 16, generator=rng)
    velocity = behind_clean_past(
        Network(model, "float32"), history, chunk_bounds(CLIP[0], 1), CachePolicy(3, sink=1, relative=True)
    )
    gradients = []
    for model.checkpoint_blocks in (False, True):
        gradients.append(torch.autograd.grad(velocity(x_t, sigma, text).square().sum(), list(model.parameters())))
    for kept, computed_again in zip(*gradients):
        assert torch.equal(kept, computed_again)


@pytest.mark.parametrize("changes", [{}, {"past": "clean"}, {"method": "consistency", "past": "clean"}], ids=str)
def test_resumed_equals_uninterrupted(world, tmp_path, changes):
    cfg = init_config(world, data=str(world / "latents"), **changes)
    straight = ode_init.train(cfg, tmp_path / "straight", steps=4, gallery=GALLERY)
    sitting = Sitting(cfg, tmp_path / "halved", CPU, GALLERY)
    for step in range(3):  # killed after the third, with a checkpoint after the second
        sitting.take_step(step / 4)
        if step == 1:
            sitting.save()
    resumed = ode_init.train(cfg, tmp_path / "halved", steps=4, gallery=GALLERY)
    assert_same_weights(straight, resumed)
    assert_same_weights(*(tmp_path / run / "checkpoints/step-00000004" for run in ("straight", "halved")))
    moved = weights_of(world / "weights")["teacher.head.head.weight"] - weights_of(straight)["student.head.head.weight"]
    assert moved.abs().max() > 1e-4


def test_what_a_run_hands_on_is_a_student_with_its_words(world, tmp_path):
    weights = ode_init.train(init_config(world), tmp_path, steps=1, gallery=GALLERY)
    assert load_dit(weights / "student.safetensors").cfg == MODEL
    assert (weights / "text.safetensors").read_bytes() == (world / "weights/text.safetensors").read_bytes()
    assert (tmp_path / "samples/step-00000001.png").stat().st_size > 1000
    again = Sitting(init_config(world, start=str(weights)), tmp_path / "second", CPU, GALLERY)
    assert torch.equal(again.student.head.head.weight, load_dit(weights / "student.safetensors").head.head.weight)


def test_a_sheet_that_fails_costs_no_weights(world, tmp_path):
    def fail(latents):
        raise MemoryError

    with pytest.raises(MemoryError):
        ode_init.train(init_config(world), tmp_path, steps=1, gallery=replace(GALLERY, decode=fail))
    assert load_dit(tmp_path / "weights/student.safetensors").cfg == MODEL


@pytest.mark.parametrize("past", ["noisy", "clean"])
def test_parts_of_a_batch_add_up(world, tmp_path, past):
    """Each is read by itself."""
    norms = []
    for accumulate in (1, 2):
        cfg = init_config(world, batch=4, accumulate=accumulate, past=past)
        sitting, asked = Sitting(cfg, tmp_path / str(accumulate), CPU, GALLERY), []
        read = sitting.pairs.batch
        sitting.pairs.batch = lambda place, size, seed, read=read, asked=asked: (
            asked.append((place, size)) or read(place, size, seed)
        )
        sitting.take_step(0.0)
        assert asked == [(start, 4 // accumulate) for start in range(0, 4, 4 // accumulate)]
        norms.append([value.clone() for value in sitting.student.state_dict().values()])
    for one, two in zip(*norms):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=0)  # Adam's first step is as large as its rate, 1e-3


@pytest.mark.parametrize("past", ["noisy", "clean"])
def test_the_error_falls_on_one_batch(world, tmp_path, past):
    cfg = init_config(world, past=past, optim=replace(OPTIM, lr=1e-2))
    sitting = Sitting(cfg, tmp_path, CPU, GALLERY)
    batch = sitting.pairs.batch(0, 2, 0)
    sitting.pairs.batch = lambda *args: batch

    def error():
        draws = Draws((99,), 2, slice(0, 2), CPU)
        with torch.no_grad():
            return float(sitting.regression(batch, draws)[0])

    before = error()
    for _ in range(25):
        sitting.take_step(0.5)
    assert error() < 0.6 * before


def test_mistakes_are_told(world, tmp_path):
    other = replace(STUDENT, sigmas=(1.0, 0.5, 0.0))
    with pytest.raises(UserError, match="make pairs for this student"):
        ode_init.train(init_config(world, student=other), tmp_path / "a", steps=1, gallery=GALLERY)
    with pytest.raises(UserError, match="set pairs to a folder"):
        ode_init.train(init_config(world, pairs=None), tmp_path / "b", steps=1, gallery=GALLERY)
    with pytest.raises(UserError, match="do not split into 3 parts"):
        ode_init.train(init_config(world, accumulate=3), tmp_path / "c", steps=1, gallery=GALLERY)
    with pytest.raises(UserError, match=r"has no student: it holds no student.safetensors"):
        ode_init.train(init_config(world, start=str(world / "weights")), tmp_path / "d", steps=1, gallery=GALLERY)
