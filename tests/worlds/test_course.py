"""Where prompts send the camera: the same ways as the renderer's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from causvid.worlds import vista
from causvid.worlds.vista.captions import caption
from causvid.worlds.vista.course import VistaCourse, travel
from causvid.worlds.vista.parsing import parse_known
from causvid.worlds.vista.truth import latent_frames


def rendered(scene, num_frames=21):
    """The renderer's way, in latents, at the times of latent frames."""
    _, state = vista.render(scene, 4 * num_frames - 3, 16, 28, 12)
    return state.camera_x[latent_frames(4 * num_frames - 3)] / (16 / 64) / 8


@pytest.mark.parametrize("camera", ["static", "pan left", "pan right", "follow"])
def test_a_view_goes_as_fast_as_the_renderers(camera):
    scenes = [replace(vista.sample_scene(seed), events=()) for seed in range(200)]
    scene = next(scene for scene in scenes if scene.camera == camera)
    words = [caption(scene, number, "train") for number in range(40)]
    told = next(text for text in words if "camera" in parse_known(text).attributes)
    way, truth = travel([(0, told)], 21, seed=0).numpy(), rendered(scene)
    np.testing.assert_allclose(way - way[0], truth - truth[0], atol=1e-4)


def test_a_sweeping_view_swings_as_the_renderers():
    way = travel([(0, "a red car in the city, the camera sweeps back and forth")], 200, seed=4).numpy()
    scene = next(s for s in map(vista.sample_scene, range(300)) if s.camera == "sweep" and not s.events)
    truth = rendered(scene, 60)
    assert np.ptp(way) == pytest.approx(np.ptp(truth), rel=0.05)
    crossings = lambda w: np.mean(np.diff(np.sign(w - w.mean())) != 0)  # noqa: E731
    assert crossings(way) == pytest.approx(crossings(truth), rel=0.2)


@pytest.mark.parametrize(
    "prompt, steps",
    [
        ("a red car drives through the city", [1.0]),  # who drives is followed
        ("a red car stays in the city, static camera", [0.0]),
        ("a blue ball bounces in the desert, the camera pans left", [-0.75]),
        ("a red car drives through the city, then the camera stands still", [1.0, 0.0]),
        ("a blue ball bounces in the desert, static camera, then the camera pans right", [0.0, 0.75]),
    ],
)
def test_what_a_prompt_tells_first_and_later(prompt, steps):
    way = torch.diff(travel([(0, prompt)], 21, seed=1))
    ends = [way[0], way[-1]] if len(steps) > 1 else [*way]
    wanted = steps if len(steps) > 1 else steps * len(way)
    way[0] /= 0.75  # a clip begins with a picture by itself
    assert torch.allclose(torch.stack(ends), torch.tensor(wanted), atol=1e-5)


def test_who_stops_is_no_longer_followed_and_another_camera_takes_a_second():
    course = VistaCourse(0).after("a red car drives through the city")
    _, course = course.advance(5)
    way, course = course.after("a red car stays in the city").advance(6)
    steps = torch.diff(way)
    assert steps[0] > 0.3 and steps[-1] == 0 and bool((torch.diff(steps) <= 0).all())
    way, _ = course.after("a red car at night").advance(3)  # says nothing of the camera: as before
    assert torch.equal(torch.diff(way), torch.zeros(2, dtype=way.dtype))


def test_parts_are_the_whole():
    course = whole = VistaCourse(3).after("a duck bobs on the sea, the camera sweeps back and forth, then it pans left")
    parts = []
    for size in (1, 3, 3, 7, 10):
        way, course = course.advance(size)
        parts.append(way)
    assert torch.equal(torch.cat(parts), whole.advance(24)[0])


def test_of_pictures_from_elsewhere_nothing_is_known_unless_words_tell():
    _, course = VistaCourse(2).after("a red car at night").advance(4)
    unknown = course.unknown()
    way, later = unknown.advance(3)
    assert (
        not unknown.is_known and bool((way == way[0]).all()) and float(way[0]) == pytest.approx(float(course.place) / 8)
    )
    assert not later.after("a blue car at night").is_known
    assert later.after("a blue car, the camera pans left").is_known
    assert VistaCourse(2).after("a red car drives in the city").unknown().is_known


def test_a_camera_that_is_left_open_is_drawn_by_the_seed():
    cameras = {VistaCourse(seed).after("a blue ball bounces in the desert").camera for seed in range(60)}
    assert cameras == {"static", "pan left", "pan right", "sweep"}
    again = [VistaCourse(7).after("a blue ball bounces in the desert").camera for _ in range(3)]
    assert len(set(again)) == 1
