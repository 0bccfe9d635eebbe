"""Written-out attention and compiled blocks are the same network."""

import pytest
import torch

from causvid.cache import KVCache
from causvid.rollout import commit_chunk
from causvid.stages.sources import Network
from causvid.training.cpu import AttentionByProducts, compile_blocks, fast_training
from tiny_models import random_dit


def gradients(dit, rng) -> tuple[torch.Tensor, list[torch.Tensor]]:
    rng.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, 6, generator=rng)
    v = dit(x, torch.rand(2, 3, generator=rng), torch.randn(2, 5, 8, generator=rng))
    parameters = list(dit.parameters())
    return v, list(torch.autograd.grad(v.square().sum(), parameters))


def test_products_equal_the_kernel_with_gradients(dit, rng):
    dit.requires_grad_(True)
    by_kernel = gradients(dit, rng)
    with AttentionByProducts():
        by_products = gradients(dit, rng)
    torch.testing.assert_close(by_products, by_kernel, atol=1e-3, rtol=1e-4)

    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert "Attention" in attend(q, q, q).grad_fn.name()
    with AttentionByProducts():
        assert "Attention" not in attend(q, q, q).grad_fn.name()
        # masks are left to the kernel
        masked = attend(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril())
    torch.testing.assert_close(masked[:, :, 0], q[:, :, 0])


def test_bfloat16_is_near_float32(dit, rng):
    dit.requires_grad_(True)
    exact, _ = gradients(dit, rng)
    with fast_training(torch.device("cpu"), torch.float32):
        assert torch.equal(gradients(dit, rng)[0], exact)
    with fast_training(torch.device("cpu"), torch.bfloat16):
        rough, _ = gradients(dit, rng)
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_layers_give_the_same_gradients(dtype, rng):
    """To the last bit, although the backward pass has left the autocast and the written-out attention behind."""

    def of(recompute: bool) -> tuple[torch.Tensor, ...]:
        dit = random_dit().requires_grad_(True)
        dit.checkpoint_blocks = recompute
        x, text = torch.randn(2, 3, 4, 4, 6, generator=rng.manual_seed(0)), torch.randn(2, 5, 8, generator=rng)
        sigma = torch.rand(2, 3, generator=rng)
        for sight in ({}, {"bounds": [(0, 1), (1, 3)]}):
            network = Network(dit, dtype, sight)
            network(x, sigma, text).square().sum().backward()
            past = KVCache(dit.cache_shape(4, 6), batch=2, max_frames=3).at_hand(1)
            commit_chunk(network, x[:, :1], text, past)
            network(x[:, 1:], sigma[:, 1:], text, past=past).square().sum().backward()
        return tuple(p.grad for p in dit.parameters())

    for kept, again in zip(of(False), of(True)):
        assert torch.equal(kept, again)


@pytest.mark.compile
@pytest.mark.slow
def test_compiled_blocks(dit, rng):
    dit.requires_grad_(True)
    plain = gradients(dit, rng)
    compile_blocks(dit)
    with fast_training(torch.device("cpu"), torch.float32):
        compiled = gradients(dit, rng)
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=1e-4)
