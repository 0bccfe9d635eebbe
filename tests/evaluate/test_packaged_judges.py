"""The shipped instruments on a few rendered clips: small enough for every run, large enough to notice a wrong file."""

from dataclasses import replace

import numpy as np
import pytest

from causvid.evaluate.alignment import items, overall, wanted
from causvid.evaluate.distortions import distort
from causvid.evaluate.judges import ROLES, WEIGHTS, load_judge
from causvid.evaluate.protocol import another_truth, fingerprint, prompts, truth
from causvid.evaluate.report import Anchors, column, evaluate
from causvid.evaluate.scoring import COLUMNS, agreement, from_arrays, load_instruments, read_clip, score, to_arrays
from causvid.evaluate.train_judges import measure_judge
from causvid.worlds import vista

COUNT = 8


@pytest.fixture(scope="module")
def instruments():
    return load_instruments()


@pytest.fixture(scope="module")
def clips():
    return [(p, truth(p)) for p in prompts("val", COUNT)]


PACKAGED = [role for role in ROLES if (WEIGHTS / f"judge_{role}.safetensors").exists()]


def test_the_judge_for_published_numbers_is_there():
    assert "report" in PACKAGED


@pytest.mark.parametrize("role", PACKAGED)
def test_captions_of_rendered_clips_are_read_back_and_exchanged_ones_agree_by_chance(clips, role, true_reading):
    """By chance: as often as what captions ask for happens to be in other scenes."""
    judge = load_judge(role)
    readings = [judge.read(frames) for _, frames in clips]
    right = [overall(items(wanted(p.caption), r)) for (p, _), r in zip(clips, readings)]
    turned = clips[COUNT // 2 :] + clips[: COUNT // 2]
    wrong = [overall(items(wanted(p.caption), r)) for (p, _), r in zip(turned, readings)]
    chance = [overall(items(wanted(p.caption), true_reading(other.scene))) for (p, _), (other, _) in zip(turned, clips)]
    assert np.mean(right) > 0.93
    assert np.mean(chance) < 0.4 and np.mean(wrong) == pytest.approx(np.mean(chance), abs=0.05)


def test_noise_does_not_read_as_snow(instruments, clips):
    p, frames = next((p, f) for p, f in clips if p.scene.weather == "clear" and not p.scene.events)
    noisy = distort(frames, "noise", 0.5, np.random.default_rng(0))[0]
    assert instruments.judge.read(frames).answer("weather") == "clear"
    assert instruments.judge.read(noisy).answer("weather") != "snow", p.caption


def test_the_oracle_agrees_with_the_judge_about_its_own_clip_and_not_about_another(instruments, clips):
    reads = [read_clip(instruments, frames) for _, frames in clips]
    others = reads[COUNT // 2 :] + reads[: COUNT // 2]
    own = [agreement(read) for read in reads]
    exchanged = [agreement(replace(read, opinion=other.opinion)) for read, other in zip(reads, others)]
    for name in ("light as the oracle's", "colour as the oracle's"):
        assert np.mean([row[name] for row in own]) > 0.95
        assert np.mean([row[name] for row in exchanged]) < 0.5
    assert agreement(from_arrays(to_arrays(reads[0]))) == own[0]


@pytest.mark.parametrize("role", PACKAGED)
def test_noise_does_not_read_as_motion(role):
    scene = vista.Scene(3, "meadow", "day", "clear", "bus", "red", "stays", "static")
    judge, still = load_judge(role), vista.render(scene, 48)[0]
    noisy = distort(still, "noise", 0.5, np.random.default_rng(0))[0]
    moving = vista.render(replace(scene, motion="drives", camera="follow"), 48)[0]
    for frames in (still, noisy):
        reading = judge.read(frames)
        assert (reading.answer("motion"), reading.answer("camera")) == ("stays", "static")
        assert np.abs(reading.speed).max() < 0.1 * np.abs(judge.read(moving).speed).max()


@pytest.mark.parametrize("name", ["blur", "noise", "saturation", "exposure"])
def test_the_frame_column_falls_with_every_spatial_flaw(instruments, clips, name):
    clean, spoilt = [], []
    for number, (prompt, frames) in enumerate(clips[:2]):
        true, other = read_clip(instruments, frames), another_truth(prompt)
        bad = distort(other, name, 0.8, np.random.default_rng(number))[0]
        clean.append(score(read_clip(instruments, other), prompt.caption, true)[0])
        spoilt.append(score(read_clip(instruments, bad), prompt.caption, true)[0])
    assert column(spoilt, "frame") < column(clean, "frame") - 0.03


@pytest.mark.parametrize("name", ["blur", "noise", "saturation", "exposure"])
def test_the_severity_in_space_is_the_strength(instruments, clips, name):
    """Of ramps, that of every moment."""
    told, true = [], []
    for number, (_, frames) in enumerate(clips[:6]):
        spoilt, severity = distort(frames, name, 0.6, np.random.default_rng(number))
        told.append([instruments.quality.read(f).spatial.mean() for f in (frames, spoilt)])
        true.append(severity.mean())
    clean, bad = np.mean(told, 0)
    assert clean < 0.05 and bad == pytest.approx(np.mean(true), abs=0.1)


def test_packaged_anchors_belong_to_the_packaged_instruments(instruments):
    anchors = Anchors.packaged()
    anchors.check(instruments.ids)
    _, count, print_of_prompts = anchors.about["prompts"].split()
    assert fingerprint(prompts("val", int(count))) == print_of_prompts
    for name in COLUMNS:
        assert anchors.floor(name) < anchors.ceiling[name] - 0.1


@pytest.mark.parametrize("name", ["flicker", "freeze", "shuffle", "drop", "jitter"])
def test_temporal_severity_rises_with_every_temporal_flaw(instruments, clips, name):
    rises = []
    for number, (_, frames) in enumerate(clips[:4]):
        spoilt = distort(frames, name, 0.8, np.random.default_rng(number))[0]
        rises.append((instruments.quality.read(spoilt).temporal - instruments.quality.read(frames).temporal).mean())
    assert np.mean(rises) > 0.15


def test_standstill_is_noticed_by_motion_and_not_rewarded(instruments, clips):
    report = evaluate([(p, np.repeat(f[:1], len(f), 0)) for p, f in clips[:2]], instruments)
    moving = evaluate(clips[:2], instruments)
    assert report.columns["temporal"].value < moving.columns["temporal"].value
    assert moving.metrics["DD*"].value == 1


def test_the_same_frames_give_the_same_numbers(instruments, clips):
    first, second = (read_clip(instruments, clips[0][1]) for _ in range(2))
    assert first.values == second.values
    for name, rows in first.reading.log_probs.items():
        np.testing.assert_array_equal(rows, second.reading.log_probs[name])


def test_held_out_clips_are_read(instruments):
    measured = measure_judge(instruments.judge, 4)
    assert measured["biome"] == measured["light"] == 1 and measured["place median px"] < 2
