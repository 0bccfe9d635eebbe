"""Pixels and truth: pure functions of the scene, the size and the frame number."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from causvid.errors import UserError
from causvid.worlds import vista
from causvid.worlds.vista.canvas import View
from causvid.worlds.vista.foreground import has_foreground
from causvid.worlds.vista.motion import walk
from causvid.worlds.vista.scene import EVENT_SECONDS, LANES, LEGAL_MOTIONS, MOTIONS, TRAVELS, Event, Second
from causvid.worlds.vista.tracks import CAMERA_SPEEDS, Switch, Tracks
from causvid.worlds.vista.truth import KIND, latent_frames, patch_classes

BUSY = vista.Scene(
    11,
    "sea",
    "sunset",
    "clear",
    "boat",
    "red",
    "sails",
    "pan right",
    Second("bird", "white", "flies"),
    (
        Event(1.0, "light", "night"),
        Event(2.0, "colour", "blue"),
        Event(4.0, "weather", "snow"),
        Event(7.5, "camera", "sweep"),
    ),
)
STOP = Event(1.0, "motion", "stays")
CITY = vista.Scene(4, "city", "dawn", "rain", "bus", "yellow", "drives", "follow", None, (STOP,))


def test_a_clip_is_uint8_of_the_size_asked_for():
    for height, width in ((64, 112), (64, 64), (48, 80), (130, 200)):
        frames, state = vista.render(BUSY, 3, height, width)
        assert frames.shape == (3, height, width, 3) and frames.dtype == np.uint8
        assert state.hero_x.shape == (3,) and state.patches is None


@pytest.mark.parametrize("scene", [BUSY, CITY, *(vista.sample_scene(seed) for seed in (5, 12))])
def test_any_window_of_an_endless_clip_is_the_clip_there(scene):
    whole, truth = vista.render(scene, 110, 32, 56)  # longer than one piece
    part, partial = vista.render(scene, 20, 32, 56, start_frame=85)
    assert np.abs(whole[85:105].astype(int) - part).max() <= 1
    for name in ("hero_x", "hero_y", "camera_x", "hero_visible", "light_angle"):
        assert np.allclose(vars(truth)[name][85:105], vars(partial)[name], atol=1e-5), name


def test_a_frame_rate_only_samples_the_same_motion():
    fast, slow = vista.render(BUSY, 21, 32, 56, fps=24)[0], vista.render(BUSY, 11, 32, 56, fps=12)[0]
    assert np.abs(fast[::2].astype(int) - slow).max() <= 1


def test_another_process_draws_the_same_pixels():
    code = (
        "import hashlib; from causvid.worlds import vista;"
        "print(hashlib.sha256(vista.render(vista.sample_scene(9), 5)[0].tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}).stdout.strip()  # fmt: skip
    assert there == hashlib.sha256(vista.render(vista.sample_scene(9), 5)[0].tobytes()).hexdigest()


REFERENCE = Path(__file__).parent / "pixels.npz"  # written by `python tests/worlds/test_vista_render.py`


def _reference_clips():
    """Two frames, ten seconds apart, of scenes that show every biome, light and weather."""
    scenes = [BUSY, CITY, *(vista.sample_scene(seed) for seed in (2, 8, 18, 32, 40, 55))]
    return scenes, np.stack([vista.render(scene, 2, fps=0.1, start_frame=1)[0] for scene in scenes])


def test_pixels_never_change():
    """Within one grey level, on any machine and by any NumPy."""
    scenes, pixels = _reference_clips()
    for name in ("biome", "light", "weather"):
        shown = {vars(s)[name] for s in scenes} | {e.target for s in scenes for e in s.events if e.kind == name}
        assert shown >= {*{"biome": vista.BIOMES, "light": vista.LIGHTS, "weather": vista.WEATHERS}[name]}, name
    with np.load(REFERENCE) as file:
        assert np.abs(pixels.astype(int) - file["pixels"]).max() <= 1


def test_importing_the_world_needs_no_torch():
    code = "import sys; import causvid.worlds.vista.sheet; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    "change", [{"weather": "snow"}, {"light": "night"}, {"colour": "green"}, {"second": None}, {"biome": "forest"}]
)
def test_changing_one_attribute_leaves_the_rest_in_place(change):
    base = vista.Scene(21, "meadow", "day", "clear", "rabbit", "pink", "hops", "sweep", Second("ufo", "blue", "floats"))
    before, after = vista.render(base, 30, 32, 56)[1], vista.render(replace(base, **change), 30, 32, 56)[1]
    for name in ("hero_x", "hero_y", "camera_x", "motion_weights"):
        assert np.array_equal(vars(before)[name], vars(after)[name]), name
    if "second" not in change:
        assert np.array_equal(before.second_x, after.second_x)


def test_another_colour_only_paints_the_hero():
    scene = vista.Scene(21, "meadow", "day", "clear", "rabbit", "pink", "hops", "static")
    one, other = (vista.render(replace(scene, colour=c), 10)[0].astype(int) for c in ("pink", "green"))
    changed = np.abs(one - other).max(-1) > 40
    hero = np.pad(vista.class_maps(scene, 10) == KIND["hero"], ((0, 0), (1, 1), (1, 1)))
    near = np.maximum.reduce([np.roll(hero, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    assert changed.sum() > 2000 and near[:, 1:-1, 1:-1][changed].all()


@pytest.mark.parametrize("scene", [BUSY, CITY, vista.sample_scene(3), vista.sample_scene(6, "compose")])
def test_class_maps_agree_with_the_tracks(scene):
    maps, state = vista.class_maps(scene, 40), vista.render(scene, 40)[1]
    for i in range(0, 40, 5):
        rows, columns = np.nonzero(maps[i] == KIND["hero"])
        if state.hero_visible[i] > 0.98:
            assert abs(columns.mean() - state.hero_x[i]) < 5 and abs(rows.mean() - state.hero_y[i]) < 8
            assert len(rows) > 100


def test_visibility_is_the_share_of_the_hero_that_is_left():
    seed = next(seed for seed in range(100) if has_foreground(seed))
    scene = vista.Scene(seed, "forest", "day", "clear", "bus", "red", "drives", "follow")
    maps, state = vista.class_maps(scene, 160), vista.render(scene, 160)[1]
    area = (maps == KIND["hero"]).sum((1, 2))
    assert state.hero_visible.min() < 0.85 and state.hero_visible.max() > 0.999
    assert np.allclose(area / area[state.hero_visible > 0.999].mean(), state.hero_visible, atol=0.06)


def test_patches_are_counted_from_the_class_maps():
    state = vista.render(BUSY, 81, patch=16)[1]
    expected = patch_classes(vista.class_maps(BUSY, 81)[latent_frames(81)], 16)
    assert state.patches.shape == (21, 4, 7) and np.array_equal(state.patches, expected)
    assert np.array_equal(vista.patch_truth(BUSY), expected)
    assert {KIND["hero"], KIND["water"], KIND["sky"]} <= set(expected.ravel())


def test_latent_frames_follow_the_codec():
    assert latent_frames(81).tolist()[:3] == [0, 3, 7] and len(latent_frames(81)) == 21
    assert latent_frames(1).tolist() == [0]


def test_settled_is_false_exactly_during_events():
    state = vista.render(BUSY, 120, 16, 28)[1]
    busy = np.zeros(120, bool)
    for time, kind, _ in BUSY.events:
        busy |= (state.time > time) & (state.time < time + EVENT_SECONDS[kind])
    assert np.array_equal(state.settled, ~busy)


def test_attributes_in_force_follow_the_events():
    state = vista.render(BUSY, 120, 16, 28)[1]
    assert state.attributes(0) == {
        "light": "sunset", "weather": "clear", "colour": "red", "motion": "sails", "camera": "pan right"
    }  # fmt: skip
    after = BUSY.after_events()
    assert state.attributes(119) == {name: vars(after)[name] for name in state.attributes(0)}
    assert CITY.after_events().camera == "static"  # stopping stops the camera


def test_distance_is_the_integral_of_speed():
    switch = Switch("static", 1.0)
    for time, value in ((1.0, "follow"), (3.2, "static"), (5.0, "pan left")):
        switch.add(time, value)
    t = np.linspace(0, 8, 16001)
    speeds = np.array([CAMERA_SPEEDS[v] for v in switch.values])
    speed = speeds @ switch.weights(t)
    summed = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(t))])
    assert np.allclose(switch.integral(speeds, t), summed, atol=1e-4)
    assert np.allclose(switch.weights(t).sum(0), 1)


def test_the_light_angle_only_grows():
    for seed in range(10):
        state = vista.render(vista.sample_scene(seed, "timeline"), 30, 16, 28, fps=1)[1]
        assert np.diff(state.light_angle).min() >= 0


def _track(hero: str, motion: str, camera: str, t: np.ndarray):
    biome = "sea" if LANES[hero] == "water" else "meadow"
    scene = vista.Scene(31, biome, "day", "clear", hero, "red", motion, camera)
    weights = np.zeros((len(MOTIONS), len(t)))
    weights[MOTIONS.index(motion)] = 1
    return walk(hero, weights, Tracks(scene, t), View(64, 112).wide, "hero")


@pytest.mark.parametrize("hero", vista.HEROES)
def test_ten_minutes_look_like_the_first_seconds(hero):
    """Nobody leaves, and the first and the last five minutes have the same distribution."""
    t = np.arange(0, 600, 1 / 12)
    for motion in LEGAL_MOTIONS[hero]:
        path = _track(hero, motion, "follow" if motion in TRAVELS else "sweep", t)
        assert path.x.min() > 4 and path.x.max() < 108 and path.y.min() > 5 and path.y.max() < 58, motion
        for series in (path.x, path.y, path.facing):
            early, late = series[: len(t) // 2], series[len(t) // 2 :]
            assert abs(early.mean() - late.mean()) < 1 and abs(early.std() - late.std()) < 1, motion


@pytest.mark.parametrize("hero", vista.HEROES)
def test_heroes_are_large_enough_to_be_seen(hero):
    biome = "sea" if LANES[hero] == "water" else "meadow"
    scene = vista.Scene(31, biome, "day", "clear", hero, "red", LEGAL_MOTIONS[hero][-1], "static")
    rows, columns = np.nonzero(vista.class_maps(scene, 1)[0] == KIND["hero"])
    assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 64 // 3 and np.ptp(rows) >= 12


def test_rain_repeats_with_the_codecs_groups():
    """On a scene where nothing else moves, frame k + 4 is frame k."""
    scene = vista.Scene(8, "desert", "day", "rain", "car", "red", "stays", "static")
    frames = vista.render(scene, 9)[0].astype(int)[:, 45:]  # below the drifting clouds
    assert np.abs(frames[4:] - frames[:-4]).max() <= 1
    assert np.abs(frames[1:] - frames[:-1]).max() > 10


def test_a_larger_picture_shows_the_same_scene():
    small, large = vista.render(BUSY, 2, 64, 112)[0], vista.render(BUSY, 2, 128, 224)[0]
    averaged = large.reshape(2, 64, 2, 112, 2, 3).mean((2, 4))
    assert np.abs(averaged - small).mean() < 6


@pytest.mark.parametrize(
    ("asked", "message"),
    [((0, 64, 112, 12, 0, 0), "one frame"), ((5, 8, 8, 12, 0, 0), "16x16"), ((5, 64, 112, 12, 0, 15), "divides")],
)
def test_impossible_renders_say_what_to_ask_for(asked, message):
    with pytest.raises(UserError, match=message):
        vista.render(BUSY, *asked)


if __name__ == "__main__":
    np.savez_compressed(REFERENCE, pixels=_reference_clips()[1])
