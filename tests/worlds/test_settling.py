"""What prompts leave open, named."""

import pytest

import causvid
from causvid.worlds import vista
from causvid.worlds.vista.captions import caption
from causvid.worlds.vista.parsing import parse_known
from causvid.worlds.vista.scene import COLOURS
from causvid.worlds.vista.settling import settle


def test_captions_say_the_same_and_a_colour():
    named = 0
    for seed in range(300):
        text = caption(vista.sample_scene(seed), seed, "train")
        (out,) = settle([text], seed)
        before, after = parse_known(text), parse_known(out)
        if "colour" in before.attributes:
            assert out == text
            continue
        named += 1
        assert after.attributes == before.attributes | {"colour": after.attributes["colour"]}, (text, out)
        assert after.events == before.events and after.others == before.others
        assert settle([out], seed) == (out,)
    assert named > 50


@pytest.mark.parametrize(
    "text, before, told",
    [
        ("a car at night", "a yellow car at noon", "a yellow car at night"),
        ("a car at night", "an orange car at noon, then it turns blue", "a blue car at night"),
        ("an old bus", "an orange bus", "an old orange bus"),
        ("a bus", "an orange bus", "an orange bus"),
        ("a green car", "a yellow car", "a green car"),
        ("then it snows", "a yellow car", "then it snows"),
        ("", "a yellow car", ""),
    ],
)
def test_what_was_told_before_counts(text, before, told):
    assert settle([text], 3, before) == (told,)


def test_parts_of_a_story_are_of_one_colour():
    first, second = settle(["a car at noon", "a car at night"], 5)
    assert parse_known(first).attributes["colour"] == parse_known(second).attributes["colour"]


def test_the_seed_chooses():
    chosen = {parse_known(settle(["a duck on the sea"], seed)[0]).attributes["colour"] for seed in range(100)}
    assert chosen == set(COLOURS)
    assert settle(["a duck"], 1, "a red car") == settle(["a duck"], 1)


def test_what_is_told_is_read_as_it_is():
    """By the packaged encoder, also where the prompt had to be rephrased."""
    text = causvid.load("vista").text
    for prompt in ("a ship at night", "a kitten in the snow", "a car at noon, then night falls"):
        understood = text.understand(prompt)
        for part in text.settle(understood.story or (understood.text,), 3, ""):
            again = text.understand(part)
            assert again.text == part and not again.unknown and not again.story
            assert "colour" in parse_known(part).attributes


def test_the_teacher_is_told_what_is_left_open_as_a_stream_is():
    model = causvid.load("vista")
    options = {"seconds": 0.1, "steps": 1, "guidance": 1.0, "seed": 6}
    named = model.sample("a car at noon", **options)
    told = model.session("a car at noon", seed=6).history.events[0].value["story"][0]
    assert told == model.names("a car at noon", 6) != "a car at noon"
    assert (named == model.sample(told, named=False, **options)).all()
    assert (named != model.sample("a car at noon", named=False, **options)).any()
