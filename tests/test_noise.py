import torch

from causvid.noise import chunk_noise, mix, seeded


def test_hash_is_the_published_splitmix64():
    """First outputs of the generator from state 0 and 1234567, from its reference implementation."""
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(1234567) == 6457827717110365317


def test_noise_depends_on_every_argument_and_on_nothing_else():
    shape = (2, 3, 4)
    a = chunk_noise(1, 2, 3, shape)
    torch.randn(100)
    assert torch.equal(chunk_noise(1, 2, 3, shape), a)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)):
        assert not torch.equal(chunk_noise(*other, shape), a)


def test_noise_is_standard_normal_and_uncorrelated_between_draws():
    many = torch.stack([chunk_noise(7, chunk, draw, (4000,)) for chunk in range(4) for draw in range(4)])
    assert many.mean().abs() < 0.01 and abs(many.std().item() - 1) < 0.01
    correlation = torch.corrcoef(many) - torch.eye(16)
    assert correlation.abs().max() < 0.08


def test_negative_and_huge_seeds_work():
    assert seeded(-1).initial_seed() != seeded(2**80).initial_seed()
