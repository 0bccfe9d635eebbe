"""Optimizers against closed forms."""

import math

import pytest
import torch
from torch import nn

from causvid.training.ema import EMA
from causvid.training.monitors import LossBySigma
from causvid.training.optim import Muon, OptimConfig, build_optimizers, learning_rate, orthogonalize


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_orthogonalizing_keeps_directions_and_levels_singular_values(shape, rng):
    """U S V' becomes about U V': same singular vectors, values near one whatever they were."""
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=rng))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=rng))
    values = torch.logspace(0, -2, min(shape))
    levelled = u.T @ orthogonalize(3.0 * u @ torch.diag(values) @ v.T) @ v
    on_diagonal = levelled.diagonal()
    assert on_diagonal.min() > 0.6 and on_diagonal.max() < 1.25
    assert (levelled - torch.diag(on_diagonal)).abs().max() < 1e-4


def test_a_batch_of_matrices_is_each_of_them(rng):
    stack = torch.randn(3, 8, 12, generator=rng)
    for single, together in zip(stack, orthogonalize(stack)):
        torch.testing.assert_close(orthogonalize(single), together, atol=1e-5, rtol=1e-4)


def test_a_muon_step_has_the_size_of_an_adamw_step(rng):
    """Root mean square about 0.2 lr, whatever the shape and the scale of the gradient; decay shrinks the weight."""
    for shape in [(32, 32), (16, 64)]:
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = 1e3 * torch.randn(shape, generator=rng)
        Muon([weight], lr=0.1).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.25)
        assert float((weight.detach() * weight.grad).sum()) < 0
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_muon_gets_the_matrices_of_blocks_and_adamw_the_rest(dit):
    dit.requires_grad_(True)
    optimizers = build_optimizers(OptimConfig(lr=1e-3), [dit])
    names = {id(p): name for name, p in dit.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for o in optimizers.values() for group in o.param_groups]
    others, vectors, matrices = groups
    assert sorted([*others, *vectors, *matrices]) == sorted(names.values())
    assert all(name.startswith("blocks.") for name in matrices) and len(matrices) == 3 * 10
    assert "head.head.weight" in others and "patch_embedding.weight" in others and "blocks.0.modulation" in others
    assert all(dict(dit.named_parameters())[name].ndim == 1 for name in vectors)
    assert list(build_optimizers(OptimConfig(lr=1e-3, muon=False), [dit])) == ["adamw"]


def test_learning_rate():
    cfg = OptimConfig(lr=2.0, warmup=4, decay_from=0.5, decay_to=0.1)
    assert [learning_rate(cfg, step, 0.0) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert learning_rate(cfg, 99, 0.5) == 2.0
    assert learning_rate(cfg, 99, 0.75) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert learning_rate(cfg, 99, 1.0) == pytest.approx(0.2)
    assert learning_rate(OptimConfig(lr=2.0, warmup=0), 99, 1.0) == 2.0


def test_the_average_is_the_closed_form():
    """Weights n at update n, decay d_n = min(d, (1+n)/(10+n)): the sum of n (1-d_n) d_{n+1} ... d_N."""
    trained, averages = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(averages.weight)
    ema = EMA(averages, decay=0.3)
    for n in range(1, 8):
        nn.init.constant_(trained.weight, float(n))
        ema.update(trained)
    decays = [min(0.3, (1 + n) / (10 + n)) for n in range(1, 8)]
    expected = sum(n * (1 - decays[n - 1]) * math.prod(decays[n:]) for n in range(1, 8))
    assert float(averages.weight) == pytest.approx(expected, rel=1e-5) and decays[0] < 0.3 == decays[-1]
    assert not any(p.requires_grad for p in averages.parameters())


def test_loss_by_sigma():
    watch = LossBySigma()
    watch.add(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.1, 0.2], [0.9, 1.0]]))
    assert watch.read() == {"loss_sigma_0": 1.5, "loss_sigma_3": 4.0}
    assert watch.read() == {}
