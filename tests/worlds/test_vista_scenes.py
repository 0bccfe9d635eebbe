"""Scenes, streams, splits and timelines."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from causvid.errors import UserError
from causvid.worlds import vista
from causvid.worlds.vista.sampling import HELD_BIOME_LIGHT, HELD_BIOME_WEATHER, HELD_HERO_COLOUR, SPLITS
from causvid.worlds.vista.scene import BIOMES, COLOURS, HEROES, LANES, LIGHTS, NEXT_LIGHTS, WEATHERS
from causvid.worlds.vista.streams import Stream, splitmix64


def test_splitmix64_gives_the_published_numbers():
    # The reference generator's first outputs from state 0; its state grows by the golden step each time.
    step = 0x9E3779B97F4A7C15
    found = [splitmix64(k * step & (2**64 - 1)) for k in range(3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_arrays_and_integers_are_scrambled_alike():
    states = [0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF]
    assert splitmix64(np.array(states, np.uint64)).tolist() == [splitmix64(state) for state in states]


def test_streams_are_uniform_and_independent_of_each_other():
    hero, sky = ([Stream(seed, name).uniform() for seed in range(3000)] for name in ("hero", "sky"))
    assert abs(np.mean(hero) - 0.5) < 0.02 and abs(np.var(hero) - 1 / 12) < 0.005
    assert abs(np.corrcoef(hero, sky)[0, 1]) < 0.05


def test_a_cell_does_not_know_its_neighbours():
    stream = Stream(3, "trees")
    few, many = stream.cells(np.arange(-2, 1), 2), stream.cells(np.arange(-50, 50), 5)
    assert np.array_equal(few, many[48:51, :2])


def test_scenes_never_change():
    """Weights, judges and published numbers refer to scenes by their seed."""
    scenes = [vista.sample_scene(seed, split).to_json() for split in SPLITS for seed in range(40)]
    assert hashlib.sha256("\n".join(scenes).encode()).hexdigest() == SCENES_SHA256


SCENES_SHA256 = "c393238798fcab162ab1c582247f1e93950b40c2c4a57c550e53dc0f8b39e6a9"


@pytest.mark.parametrize("split", SPLITS)
def test_json_brings_a_scene_back(split):
    for seed in range(20):
        scene = vista.sample_scene(seed, split)
        assert vista.Scene.from_json(json.dumps(json.loads(scene.to_json()))) == scene


def test_training_never_shows_what_is_held_out():
    scenes = [vista.sample_scene(seed) for seed in range(2000)]
    assert not any(vista.held_out(scene) for scene in scenes)
    for value, names in (
        (HEROES, "hero"),
        (BIOMES, "biome"),
        (COLOURS, "colour"),
        (LIGHTS, "light"),
        (WEATHERS, "weather"),
    ):
        assert {vars(scene)[names] for scene in scenes} == set(value)


def test_held_out_pairs_appear_in_time_too():
    base = vista.Scene(1, biome="forest", light="sunset", hero="rabbit", colour="red", motion="hops", camera="static")
    assert vista.held_out(base) == set()
    assert vista.held_out(replace(base, events=(vista.Event(1, "light", "night"),))) == {"biome light"}
    assert vista.held_out(replace(base, events=(vista.Event(1, "colour", "blue"),))) == {"hero colour"}
    assert vista.held_out(replace(base, second=vista.Second("ufo", "white", "floats"))) == {"hero colour"}
    late = replace(base, biome="sea", hero="duck", motion="bobs")
    late = replace(late, colour="pink", events=(vista.Event(1, "weather", "rain"), vista.Event(3, "light", "night")))
    assert vista.held_out(late) == {"order"}


@pytest.mark.parametrize(
    ("split", "rules"), [("compose", None), ("order", {"order"}), ("val", set()), ("revisit", set())]
)
def test_splits_hold_what_their_rule_says(split, rules):
    for seed in range(200):
        broken = vista.held_out(vista.sample_scene(seed, split))
        assert bool(broken - {"order"}) if rules is None else broken == rules


def test_every_value_keeps_most_of_its_partners():
    for pairs, first, second in (
        (HELD_HERO_COLOUR, HEROES, COLOURS),
        (HELD_BIOME_LIGHT, BIOMES, LIGHTS),
        (HELD_BIOME_WEATHER, BIOMES, WEATHERS),
    ):
        for position, values, partners in ((0, first, second), (1, second, first)):
            for value in values:
                lost = sum(pair[position] == value for pair in pairs)
                assert lost <= len(partners) / 3, value


def test_splits_share_no_layout():
    seeds = [{vista.sample_scene(number, split).seed for number in range(50)} for split in SPLITS]
    assert len(set.union(*seeds)) == 50 * len(SPLITS)


def test_water_heroes_are_at_sea_and_ground_heroes_are_not():
    for seed in range(500):
        scene = vista.sample_scene(seed)
        lanes = {LANES[scene.hero]} | ({LANES[scene.second.hero]} if scene.second else set())
        assert ("water" if scene.biome != "sea" else "ground") not in lanes
        assert len(lanes) == (2 if scene.second else 1)


def test_timelines_switch_every_few_seconds_and_the_sun_never_runs_back():
    for seed in range(50):
        timeline = vista.sample_timeline(seed, 60.0)
        starts = [start for start, _ in timeline]
        gaps = np.diff(starts)
        assert len(starts) >= 8 and gaps.min() >= 4 - 1e-3 and gaps.max() <= 8 + 1e-3
        for (_, before), (_, after) in zip(timeline[:-1], timeline[1:]):
            assert before != after
            assert after.light == before.light or after.light in NEXT_LIGHTS[before.light]


def test_a_timeline_joins_into_the_scene_it_came_from():
    for seed in range(8):
        whole = vista.sample_scene(seed, "timeline")
        joined = vista.timeline_scene(vista.sample_timeline(seed))
        tracks = [vista.render(scene, 4, 16, 28, fps=0.2)[1] for scene in (whole, joined)]
        assert np.allclose(tracks[0].camera_x, tracks[1].camera_x)
        assert [tracks[0].attributes(k) for k in range(4)] == [tracks[1].attributes(k) for k in range(4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"biome": "moon"}, "choose one of meadow"),
        ({"second": vista.Second("bird", "blue", "bites")}, "second motion"),
        ({"events": (vista.Event(2.0, "light", "night"), vista.Event(1.0, "weather", "rain"))}, "sort them"),
        ({"events": (vista.Event(2.0, "biome", "sea"),)}, "event kind"),
    ],
)
def test_a_wrong_scene_says_what_to_choose(change, message):
    with pytest.raises(UserError, match=message):
        vista.Scene(1, **change)


def test_a_wrong_split_or_seed_says_so():
    with pytest.raises(UserError, match="choose one of train"):
        vista.sample_scene(1, "test")
    with pytest.raises(UserError, match="smaller"):
        vista.sample_scene(2**31)
    with pytest.raises(UserError, match="more than light"):
        vista.timeline_scene([(0.0, vista.Scene(1)), (4.0, vista.Scene(1, hero="bus"))])
