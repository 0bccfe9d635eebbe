"""The judges' inputs, their separation from the generator's data, and that what they ship can be read back."""

import numpy as np
import pytest
import torch
from rich.progress import Progress

from causvid.errors import UserError
from causvid.evaluate import train_quality
from causvid.evaluate.judge_data import (
    SEED_RANGES,
    VALUES,
    augment,
    fingerprint,
    judge_scene,
    labels_of,
    rendered,
    stacks_of,
    to_input,
    track,
)
from causvid.evaluate.judges import Judge, at_64, grid, load_judge, shift_costs, steps_from
from causvid.evaluate.quality import SEEN, STACKS, WINDOW, QualityJudge, windows_of
from causvid.worlds.vista.sampling import SEEDS_PER_SPLIT, SPLITS, held_out, sample_scene


def test_judges_never_see_a_layout_of_the_generators_splits():
    highest = max(sample_scene(SEEDS_PER_SPLIT - 1, split).seed for split in SPLITS)
    ranges = sorted(SEED_RANGES.values())
    assert ranges[0] > highest
    assert all(b - a >= 1 << 40 for a, b in zip(ranges[:-1], ranges[1:]))
    prints = {fingerprint(purpose, 4) for purpose in SEED_RANGES}
    assert len(prints) == len(SEED_RANGES)


def test_judge_scenes_cover_every_value_and_the_held_out_combinations():
    scenes = [judge_scene(n, "report") for n in range(600)]
    for name, values in VALUES.items():
        if name in ("second", "second colour"):
            continue
        assert {vars(scene)[name] for scene, _ in scenes} == set(values)
    assert sum(bool(held_out(scene)) for scene, _ in scenes) > 30
    assert {start == 0 for _, start in scenes} == {True, False}
    in_view = [e.time - start / 12 for scene, start in scenes for e in scene.events]
    assert 0.5 <= min(in_view) and max(in_view) <= 5.5


def test_labels_and_cheap_tracks_agree_with_the_rendered_clip():
    for number in (3, 8):
        scene, frames, state = rendered("report", number)
        _, start = judge_scene(number, "report")
        labels, path = labels_of(scene, state, 64), track(scene, len(frames), start)
        np.testing.assert_allclose(path.place, labels.place, atol=1e-6)
        np.testing.assert_allclose(path.speed, labels.speed, atol=1e-6)
        assert (path.motion == labels.value["motion"]).all() and (path.camera == labels.value["camera"]).all()
        assert (path.settled == labels.settled).all()


def test_stacks_hold_three_neighbours_in_channels():
    frames = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    stacks = stacks_of(frames)
    assert stacks.shape == (2, 2, 2, 9)
    assert stacks[1, 0, 0].tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert to_input(stacks).shape == (2, 9, 2, 2)
    with pytest.raises(ValueError, match="stacks of 3"):
        stacks_of(frames[:2])


@pytest.mark.parametrize("shift", [-3, 0, 2])
def test_shift_costs_are_lowest_at_the_true_shift(shift):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (64, 140, 3), dtype=np.uint8)
    frames = np.stack([wide[:, 10 + k : 106 + k] for k in (0, -shift // 2 if shift % 2 == 0 else 0, -shift)])
    costs = shift_costs(to_input(stacks_of(frames)))[0]
    assert (costs.argmin(1) == 6 + shift).all()


@pytest.mark.parametrize("role", ["report", "select"])
@pytest.mark.parametrize("width", [64, 112])
def test_a_judge_reads_both_shapes_and_gives_distributions(role, width):
    frames = np.random.default_rng(0).integers(0, 255, (20, 64, width, 3), dtype=np.uint8)
    reading = Judge(role).eval().read(frames)
    for name, values in VALUES.items():
        assert reading.log_probs[name].shape == (6, len(values))
        np.testing.assert_allclose(np.exp(reading.log_probs[name]).sum(1), 1, rtol=1e-4)
    assert reading.place.shape == (6, 2) and reading.features.shape[0] == 6


def test_the_two_judges_are_different_networks():
    names = [set(Judge(role).state_dict()) for role in ("report", "select")]
    assert len(names[0] & names[1]) < 0.5 * min(map(len, names))
    assert all(sum(p.numel() for p in Judge(role).parameters()) < 700_000 for role in ("report", "select"))
    with pytest.raises(ValueError, match="report and select"):
        Judge("both")


def test_larger_pictures_are_brought_to_the_judges_height():
    assert at_64(torch.zeros(1, 9, 128, 224)).shape[-2:] == (64, 112)
    assert at_64(torch.zeros(1, 9, 64, 100)).shape[-2:] == (64, 100)


def test_cells_are_in_picture_heights():
    cells = grid(2, 4)
    assert cells.tolist()[0] == [0.25, 0.25] and cells.tolist()[-1] == [1.75, 0.75]


def test_augmentation_changes_pictures_and_not_their_range():
    x = to_input(stacks_of(rendered("report", 1, num_frames=24)[1]))
    rng = torch.Generator().manual_seed(1)
    y = augment(x.repeat(4, 1, 1, 1), rng)
    assert y.shape == (32, 9, 64, 112) and y.abs().max() <= 1
    assert ((y - x.repeat(4, 1, 1, 1)).flatten(1).abs().mean(1) > 0.002).sum() > 24


def test_steps_centre_the_track():
    place = torch.rand(2, 9, 2)
    steps = steps_from(place, torch.ones(2, 9), torch.zeros(2, 9), torch.eye(11)[:2])
    moved = steps_from(place + 0.1, torch.ones(2, 9), torch.zeros(2, 9), torch.eye(11)[:2])
    torch.testing.assert_close(steps[..., :4], moved[..., :4])
    assert steps.shape == (2, 9, 20)


@pytest.mark.parametrize(
    "length, starts", [(13, [0]), (25, [0, 12]), (30, [0, 12, 17]), (81, [0, 12, 24, 36, 48, 60, 68])]
)
def test_windows_cover_the_clip(length, starts):
    frames = np.arange(length, dtype=np.uint8)[:, None, None, None]
    windows = windows_of(frames)
    assert windows.shape[:2] == (len(starts), WINDOW)
    assert windows[:, 0].ravel().tolist() == starts
    assert set(windows.ravel().tolist()) == set(range(length))


def test_a_short_clip_goes_back_and_forth():
    windows = windows_of(np.arange(5, dtype=np.uint8)[:, None, None, None])
    assert windows.ravel().tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_distance_from_clean_is_one_for_the_median():
    judge = QualityJudge()
    features = torch.randn(400, 96, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 96)
    judge.fit_clean(features)
    assert judge.distance(features).median() == pytest.approx(1, abs=0.01)
    assert judge.distance(features + 5).min() > 1.5


def test_the_severity_in_space_is_learnt_by_its_head_alone(monkeypatch):
    """From what it saw once: windows with flaws that it has the severity of, stack by stack."""
    clips = np.stack([rendered("quality", number, num_frames=40)[1] for number in range(6)])
    torch.manual_seed(0)
    judge = QualityJudge().eval()
    monkeypatch.setattr(train_quality, "HEAD_STEPS", 400)
    with Progress(disable=True) as progress:
        seen, severity = train_quality.see_spoilt(judge, clips, 1, 60.0, progress, [])
    assert seen.shape == (len(clips) * train_quality.WINDOWS * STACKS, SEEN) and len(severity) == len(seen)
    assert 0.05 < (severity == 0).float().mean() < 0.6 and severity.max() <= 1
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    train_quality.train_spatial(judge, (seen, severity), 1)
    error = (judge.spatial(seen)[:, 0].sigmoid() - severity).abs().mean()
    assert error < 0.5 * (severity - severity.mean()).abs().mean()
    changed = {name for name, value in judge.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("spatial.")}


def test_a_spoilt_pictures_severity_is_that_of_its_stacks():
    clip = rendered("quality", 1, num_frames=40)[1]
    assert np.array_equal(train_quality.per_stack(np.arange(WINDOW)), 1.0 + 2 * np.arange(STACKS))
    for number in range(12):
        window, severity = train_quality.spoil_picture(clip, number)
        again, same = train_quality.spoil_picture(clip, number)
        assert np.array_equal(window, again) and np.array_equal(severity, same)
        untouched = any(np.array_equal(window, clip[i : i + WINDOW]) for i in range(len(clip) - WINDOW + 1))
        assert not untouched or severity.max() == 0


def test_a_missing_weight_file_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_judge("report", tmp_path / "none.safetensors")
