"""Distances between two sets of feature vectors [N, D], and how varied one set is.

Report the MMD first: it is unbiased at any size. The Frechet distance shrinks as 1/n towards its true value, so compare
it only at equal n and next to the distance between two halves of the ground truth.
"""

from typing import NamedTuple

import numpy as np


def standardise(truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All sets in units of the ground truth's spread, dimension by dimension."""
    mean, std = truth.mean(0), truth.std(0)
    std = np.where(std > 1e-6 * max(1e-12, float(std.max())), std, 1.0)
    return [(features - mean) / std for features in (truth, *others)]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of Gaussians fitted to both sets."""
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root_a = _root(cov_a)
    cross = np.trace(_root(root_a @ cov_b @ root_a))  # tr (A B)^(1/2), by a symmetric matrix with the same eigenvalues
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def polynomial_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3; around zero, also below it, for equal distributions."""
    width, n, m = a.shape[1], len(a), len(b)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / width + 1) ** 3

    within_a, within_b = kernel(a, a), kernel(b, b)
    mean_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    mean_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(mean_a + mean_b - 2 * kernel(a, b).mean())


class Manifolds(NamedTuple):
    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(truth: np.ndarray, made: np.ndarray, neighbours: int = 5) -> Manifolds:
    """Precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020) with k-nearest-neighbour balls."""
    radius_truth, radius_made = _radius(truth, neighbours), _radius(made, neighbours)
    between = _distances(truth, made)
    inside_truth = between <= radius_truth[:, None]
    inside_made = between <= radius_made[None, :]
    return Manifolds(
        precision=float(inside_truth.any(0).mean()),
        recall=float(inside_made.any(1).mean()),
        density=float(inside_truth.sum(0).mean() / neighbours),
        coverage=float(inside_truth.any(1).mean()),
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))


def _radius(points: np.ndarray, neighbours: int) -> np.ndarray:
    if len(points) <= neighbours:
        raise ValueError(f"{len(points)} points have no {neighbours}-th neighbour")
    within = _distances(points, points)
    np.fill_diagonal(within, 0)  # rounding must not make a point its own neighbour at a distance
    return np.partition(within, neighbours, axis=1)[:, neighbours]


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Mean distance of two different members."""
    n = len(features)
    if n < 2:
        raise ValueError("a distance needs two")
    return float(_distances(features, features).sum() / (n * (n - 1)))


def vendi(features: np.ndarray) -> float:
    """The effective number of different members, 1 to n (cosine kernel). Compare only at equal n."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    values = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """1-Wasserstein distance of two samples of a number."""
    levels = (np.arange(512) + 0.5) / 512
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).mean())
