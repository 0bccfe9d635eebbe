"""Prompts by number, and scripts: what a stream is told one after the other."""

from causvid.data.prompts import FIRST_SCENE, read_prompts, read_scripts
from causvid.worlds import vista
from causvid.worlds.vista.parsing import parse_caption


def test_a_share_of_the_clips_is_told_of_changes_when_they_come():
    whole, live = read_scripts("vista", 0, 0.0), read_scripts("vista", 0, 0.5)
    prompts = read_prompts("vista", 0)
    numbers = range(200)
    assert all(whole(n).at(0) == prompts(n) == whole(n).at(20) for n in numbers)
    changed = [n for n in numbers if live(n) != whole(n)]
    assert 60 < len(changed) < 140


def test_a_share_of_the_prompts_tells_of_a_change_of_light_weather_or_colour():
    def share(scripts):
        alone = [script.at(0) for script in map(scripts, range(300)) if len(script.cues) == 1]
        told = [{kind for kind, _ in parse_caption(prompt).events} for prompt in alone]
        return sum(bool(kinds & {"light", "weather", "colour"}) for kinds in told) / len(told)

    assert share(read_scripts("vista", 0, 0.3, 0.4)) > share(read_scripts("vista", 0, 0.3)) + 0.25


def test_cues_say_what_is_and_not_what_will_be():
    live = read_scripts("vista", 0, 1.0)
    seen = 0
    for number in range(60):
        scene, script = vista.sample_scene(FIRST_SCENE + number), live(number)
        starts = [0.0, *(event.time for event in scene.events)]
        assert all(abs(cue / 3 - start) <= 1 / 6 for (cue, _), start in zip(script.cues, starts, strict=True))
        for event in scene.events:
            frame = round(3 * event.time)  # three latent frames a second
            before, after = (parse_caption(script.at(at)) for at in (frame - 1, frame))
            assert not before.events and not after.events
            assert after.attributes[event.kind] == event.target != before.attributes.get(event.kind)
            seen += 1
    assert seen > 10
