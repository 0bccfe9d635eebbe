"""With a judge that makes no errors, every true caption scores one and every false part of a caption is found."""

import numpy as np
import pytest

from causvid.evaluate.alignment import SHORTEST, all_right, items, locate, overall, still_score, wanted
from causvid.evaluate.judge_data import VALUES
from causvid.evaluate.protocol import SUITES, fingerprint, prompts
from causvid.worlds.vista.captions import caption
from causvid.worlds.vista.sampling import sample_scene
from causvid.worlds.vista.scene import EVENT_SECONDS, Event, Scene


@pytest.mark.parametrize("suite", SUITES)
def test_the_clip_of_a_caption_has_everything_right(suite, true_reading):
    for prompt in prompts(suite, 60):
        reading = true_reading(prompt.scene)
        found = items(wanted(prompt.caption), reading)
        wrong = [item for item in found if not item.right]
        assert not wrong, (prompt.caption, prompt.scene, wrong)
        assert overall(found) > 0.97
        assert still_score(wanted(prompt.caption), reading) > 0.9  # eight instants may fall into a transition


def test_exchanged_captions_score_near_chance(true_reading):
    listed = prompts("val", 120)
    right = [overall(items(wanted(p.caption), true_reading(p.scene))) for p in listed]
    wrong = [overall(items(wanted(q.caption), true_reading(p.scene))) for p, q in zip(listed, listed[1:] + listed[:1])]
    hits = [all_right(items(wanted(q.caption), true_reading(p.scene))) for p, q in zip(listed, listed[1:] + listed[:1])]
    assert np.mean(wrong) < 0.4 < 0.97 < np.mean(right)
    assert np.mean(hits) < 0.03


def test_a_caption_without_its_event_in_the_clip_fails(true_reading):
    still = Scene(seed=5, light="day", hero="bus", colour="red", motion="stays", camera="static")
    found = {
        i.name: i for i in items(wanted("a red bus stands still in the daytime, then night falls"), true_reading(still))
    }
    assert not found["light after"].right
    assert found["colour"].right and found["light before"].right


def test_an_event_whose_target_was_there_all_along_fails_before(true_reading):
    night = Scene(seed=5, light="night", hero="bus", colour="red", motion="stays", camera="static")
    found = {i.name: i for i in items(wanted("a red bus, then night falls"), true_reading(night))}
    assert found["light after"].right and not found["light before"].right


def test_the_order_of_events_counts(true_reading):
    events = (Event(1.0, "colour", "blue"), Event(4.0, "weather", "snow"))
    scene = Scene(seed=9, hero="car", colour="red", motion="stays", camera="static", weather="clear", events=events)
    told = "a red car stands still in clear weather, then it turns blue, then it starts to snow"
    turned = "a red car stands still in clear weather, then it starts to snow, then it turns blue"
    reading = true_reading(scene)
    assert all_right(items(wanted(told), reading)) == 1
    assert overall(items(wanted(turned), reading)) < overall(items(wanted(told), reading))


def test_setting_off_takes_the_camera_along():
    want = wanted("a red car stands still, static camera, then it starts driving")
    assert [phase["camera"] for phase in want.phases] == ["static", "follow"]
    want = wanted("a red car, then it starts hopping")
    assert [phase["camera"] for phase in want.phases] == [None, None]


@pytest.mark.parametrize("seed", range(40))
def test_events_are_located_where_they_happen(seed, true_reading):
    scene = sample_scene(seed, "val")
    if not scene.events or any(e.kind in ("motion", "camera") for e in scene.events):
        return
    want = wanted(caption(scene, seed, drop=0.0))
    stretches = locate(want, true_reading(scene))
    for event, before, after in zip(scene.events, stretches[:-1], stretches[1:]):
        middle = (event.time + EVENT_SECONDS[event.kind] / 2) * 4  # stacks
        assert before.stop <= middle + 3 and after.start >= middle - 3, (scene.events, stretches)
        assert before.stop - before.start >= SHORTEST


def test_prompts_are_frozen_and_extend():
    assert prompts("val", 5) == prompts("val", 9)[:5]
    assert fingerprint(prompts("val", 4)) == fingerprint(prompts("val", 4)) != fingerprint(prompts("compose", 4))
    assert len({p.noise_seed for suite in SUITES for p in prompts(suite, 32)}) == 32 * len(SUITES)
    with pytest.raises(ValueError, match="suites are"):
        prompts("train")


def test_the_probability_of_a_stretch_is_the_normalised_geometric_mean(true_reading):
    reading = true_reading(Scene(seed=1))
    p = np.array([[0.5, 0.25, 0.25, 0], [0.125, 0.5, 0.375, 0]]) + 1e-12
    reading.log_probs["light"][:2] = np.log(p)
    expected = np.sqrt(p[0] * p[1])
    assert reading.probabilities("light", slice(0, 2)) == pytest.approx(expected / expected.sum())
    assert reading.answer("light", slice(0, 2)) == VALUES["light"][1]
