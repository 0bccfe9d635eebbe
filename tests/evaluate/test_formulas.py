"""The published rows come out of the published constants."""

import numpy as np
import pytest

from causvid.evaluate import formulas

CAUSVID = {
    "subject consistency": 97.53, "background consistency": 97.19, "temporal flickering": 96.24,
    "motion smoothness": 98.05, "dynamic degree": 92.69, "aesthetic quality": 64.15, "imaging quality": 68.88,
    "object class": 92.99, "multiple objects": 72.15, "human action": 99.80, "color": 80.17,
    "spatial relationship": 64.65, "scene": 56.58, "appearance style": 24.27, "temporal style": 25.33,
    "overall consistency": 27.51,
}  # fmt: skip


def test_totals_give_the_published_row():
    raw = {name: value / 100 for name, value in CAUSVID.items()}
    total, quality, semantic = formulas.totals(raw)
    assert (round(100 * total, 2), round(100 * quality, 2)) == (84.27, 85.65)
    assert 100 * semantic == pytest.approx(78.75, abs=0.011)  # the raw row is rounded


def test_a_missing_dimension_counts_as_zero_and_can_make_a_total_negative():
    assert formulas.totals({}).quality < 0
    assert formulas.totals({}).semantic == pytest.approx(-(0.0009 / 0.2846) / 9)


def test_columns_are_weighted_as_in_the_paper():
    raw = {"subject consistency": 0.9, "background consistency": 0.8, "motion smoothness": 1.0, "dynamic degree": 0.5}
    assert formulas.column("temporal", raw) == pytest.approx((0.9 + 0.8 + 1.0 + 0.25) / 3.5)
    assert formulas.column("text", {"overall consistency": 0.275, "clip score": 0.327}) == pytest.approx(0.301)
    with pytest.raises(KeyError):
        formulas.column("frame", {"imaging quality": 0.5})


def test_consistency_has_its_closed_forms():
    still = np.ones((5, 3))
    assert formulas.consistency(still) == pytest.approx(1)
    turning = np.array([[1.0, 0], [0, 1], [-1, 0]])  # orthogonal to the one before; opposite to the first counts as 0
    assert formulas.consistency(turning) == 0
    assert formulas.consistency(np.array([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize("length, expected", [(16, [0, 2, 4, 6, 8, 10, 12, 14]), (3, [0, 1, 2, 2, 2, 2, 2, 2])])
def test_mid_frames(length, expected):
    assert formulas.mid_frames(length, 8).tolist() == expected


def test_scores_between_floor_and_ceiling():
    assert formulas.calibrate(0.7, 0.2, 0.9) == pytest.approx(100 * 5 / 7)
    assert formulas.calibrate(1.0, 0.2, 0.9) == 100
    assert formulas.calibrate(30, 50, 10) == 50  # where less is better
    with pytest.raises(ValueError, match="cannot tell"):
        formulas.calibrate(1, 2, 2)


def test_two_sided_punishes_both_directions_equally():
    assert formulas.two_sided(2, 4) == pytest.approx(formulas.two_sided(8, 4)) == pytest.approx(0.5)
    assert formulas.two_sided(4, 4) == 1
