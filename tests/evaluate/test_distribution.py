"""Distances between sets, where the answer is known on paper."""

import numpy as np
import pytest

from causvid.evaluate import distribution


@pytest.fixture
def gaussians():
    rng = np.random.default_rng(0)
    return tuple(_whitened(rng.standard_normal((3000, 4))) for _ in range(2))


def _whitened(x):
    """Mean 0 and covariance 1 exactly, so that closed forms hold for the sample itself."""
    x = x - x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_distance_of_gaussians_has_a_closed_form(gaussians):
    a, b = gaussians
    moved = b * np.array([1, 1, 2, 3]) + np.array([1.0, 0, 0, 2])
    expected = 1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2
    assert distribution.frechet_distance(a, moved) == pytest.approx(expected)
    assert distribution.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_correlated_features():
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((3, 3))
    a = rng.standard_normal((20_000, 3))
    # for commuting covariances C and C^2/.. take B = 4A: tr(A + 4A - 2*2A) = tr(A)
    assert distribution.frechet_distance(a @ mix, 2 * a @ mix) == pytest.approx(
        np.trace(np.cov(a @ mix, rowvar=False)) + ((a @ mix).mean(0) ** 2).sum(), rel=1e-6
    )


def test_mmd_is_unbiased_and_sees_a_shift(gaussians):
    a, b = gaussians
    small = [distribution.polynomial_mmd(a[i : i + 50], b[i : i + 50]) for i in range(0, 3000, 50)]
    assert abs(np.mean(small)) < 3 * np.std(small) / np.sqrt(len(small))
    assert distribution.polynomial_mmd(a[:300], b[:300] + 1) > 10 * np.std(small)


def test_manifolds_see_dropped_and_invented_modes():
    rng = np.random.default_rng(2)
    centres = np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    truth = np.concatenate([c + rng.standard_normal((100, 2)) for c in centres])
    again = np.concatenate([c + rng.standard_normal((100, 2)) for c in centres])
    same = distribution.manifold_scores(truth, again)
    assert min(same) > 0.9
    collapsed = distribution.manifold_scores(truth, again[:200])
    assert collapsed.recall < 0.6 and collapsed.coverage < 0.6 and collapsed.precision > 0.9
    wild = distribution.manifold_scores(truth, np.concatenate([again, again + 200]))
    assert wild.precision == pytest.approx(same.precision / 2, abs=0.02)


def test_pairwise_distance_and_vendi():
    assert distribution.mean_pairwise_distance(np.array([[0.0], [3.0], [6.0]])) == pytest.approx((3 + 6 + 3) / 3)
    assert distribution.vendi(np.eye(8)) == pytest.approx(8)
    assert distribution.vendi(np.ones((8, 3))) == pytest.approx(1)
    with pytest.raises(ValueError):
        distribution.mean_pairwise_distance(np.zeros((1, 3)))


def test_wasserstein_of_a_shift_is_the_shift(gaussians):
    a, _ = gaussians
    assert distribution.wasserstein(a[:, 0], a[:, 0] + 1.5) == pytest.approx(1.5)


def test_standardise_leaves_constant_dimensions_alone():
    truth = np.array([[1.0, 5], [3.0, 5]])
    mine, other = distribution.standardise(truth, np.array([[2.0, 6]]))
    assert mine[:, 0] == pytest.approx([-1, 1])
    assert other == pytest.approx(np.array([[0, 1]]))
