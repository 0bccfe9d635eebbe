"""The untrained reading of rendered clips: what it says must be true, and noise must not pass for snow."""

from dataclasses import replace

import numpy as np
import pytest

from causvid.evaluate import oracle
from causvid.evaluate.distortions import distort
from causvid.worlds.vista.render import render
from causvid.worlds.vista.scene import COLOURS, LIGHTS, Scene

BUS = Scene(seed=(1 << 50) + 1, biome="city", light="day", hero="bus", colour="red", motion="drives", camera="follow")


def clip(scene, num_frames=12):
    frames, state = render(scene, num_frames)
    return frames, np.stack([state.hero_x, state.hero_y], 1) / 64


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("weather", ["clear", "snow"])
def test_the_light_is_read_off_the_sky(light, weather):
    frames, _ = clip(replace(BUS, light=light, weather=weather), 4)
    assert oracle.read_light(frames)[0] == light


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("weather", ["clear", "fog"])
def test_paint_is_read_where_the_hero_is(colour, weather):
    frames, places = clip(replace(BUS, colour=colour, weather=weather), 4)
    paint = oracle.read_paint(frames, places, "day")
    assert paint.colour == colour and paint.confidence > 0.2
    assert np.abs(paint.place - places).max() * 64 < 5


def test_snow_falls_and_noise_does_not():
    snow, clear = clip(replace(BUS, weather="snow"))[0], clip(BUS)[0]
    noisy = distort(clear, "noise", 0.6, np.random.default_rng(0))[0]
    assert oracle.falling(snow) > 4 * max(oracle.falling(noisy), oracle.falling(clear), 0.02)


def test_the_track_shows_what_smoothness_does_not():
    """Shuffled and repeated frames and colour drift, at the same strength."""
    scene = replace(BUS, hero="ball", motion="bounces", camera="static", colour="blue", biome="desert")
    frames, places = clip(scene, 40)
    clean = oracle.track_quality(oracle.read_paint(frames, places, "day"))
    quality = {}
    for name in ("shuffle", "drop", "saturation", "blur"):
        spoilt = distort(frames, name, 0.6, np.random.default_rng(1))[0]
        quality[name] = oracle.track_quality(oracle.read_paint(spoilt, places, "day"))
    assert quality["shuffle"]["acceleration"] > 2 * clean["acceleration"]
    assert quality["drop"]["acceleration"] > 1.4 * clean["acceleration"]
    assert quality["saturation"]["area variation"] > 1.3 * clean["area variation"]
    assert quality["blur"]["acceleration"] == pytest.approx(clean["acceleration"], rel=0.35)
    with pytest.raises(ValueError, match="three frames"):
        oracle.track_quality(oracle.read_paint(frames[:2], places[:2], "day"))
