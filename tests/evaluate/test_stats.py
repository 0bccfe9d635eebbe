"""Intervals against published values and against simulation."""

import numpy as np
import pytest

from causvid.evaluate import stats


@pytest.mark.parametrize("share, n, half", [(0.9, 128, 0.053), (0.9, 256, 0.037), (0.9, 1024, 0.018)])
def test_wilson_widths(share, n, half):
    interval = stats.wilson(round(share * n), n)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, abs=0.001)


def test_bootstrap_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = stats.bootstrap(values)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)


def test_bootstrap_leaves_out_what_does_not_apply():
    assert stats.bootstrap([1.0, float("nan"), 3.0]).value == 2
    assert np.isnan(stats.bootstrap([float("nan")]).value)


def test_pairing_removes_what_prompts_share():
    rng = np.random.default_rng(1)
    prompts = rng.normal(0, 5, 200)
    a, b = prompts + 0.3 + rng.normal(0, 0.5, 200), prompts + rng.normal(0, 0.5, 200)
    paired = stats.paired_bootstrap(a, b)
    assert 0 < paired.low < 0.3 < paired.high
    assert paired.high - paired.low < 0.3 * (stats.bootstrap(a).high - stats.bootstrap(a).low)
    with pytest.raises(ValueError, match="same prompts"):
        stats.paired_bootstrap(a, b[:-1])


def test_mcnemar_is_the_sign_test_of_the_discordant():
    a = [True] * 8 + [False] * 2 + [True] * 5
    b = [False] * 8 + [True] * 2 + [True] * 5
    assert stats.mcnemar(a, b) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert stats.mcnemar(a, a) == 1


def test_holm_matches_the_hand_calculation():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_survival_counts_the_censored_as_alive():
    times, shares = stats.survival([1, 2, 2, 5], [True, True, False, False])
    assert times.tolist() == [1, 2]
    assert shares == pytest.approx([0.75, 0.5])
