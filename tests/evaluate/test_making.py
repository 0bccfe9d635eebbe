"""The protocol's clips of a random model: lengths, pairing of noise, and prompts that change in time."""

import numpy as np

from causvid.evaluate.making import clips, seeds_of_a_prompt, stream, student_maker, teacher_maker
from causvid.evaluate.protocol import prompts


def test_the_same_prompt_has_the_same_noise_for_every_model(model):
    listed = prompts("val", 2)
    first, second = (list(clips(student_maker(model, 21), listed)) for _ in range(2))
    for (p, a), (q, b) in zip(first, second):
        assert p == q and a.shape == (21, 24, 40, 3)
        np.testing.assert_array_equal(a, b)
    other = student_maker(model, 21)(listed[0].caption, listed[0].noise_seed + 1)
    assert (other != first[0][1]).any()


def test_a_teachers_clip_has_the_asked_length(model):
    assert teacher_maker(model, 21, steps=2)("a red car", 1).shape == (21, 24, 40, 3)


def test_a_stream_obeys_a_change_of_prompt_only_from_then_on(model):
    kept = stream(model, [(0.0, "a red car")], 60, seed=3)
    changed = stream(model, [(0.0, "a red car"), (2.0, "a blue duck")], 60, seed=3)
    differ = np.flatnonzero((kept != changed).any((1, 2, 3)))
    assert 24 <= differ[0] <= 40


def test_seeds_of_a_prompt_differ(model):
    ((_, made, true),) = seeds_of_a_prompt(student_maker(model, 9), prompts("val", 1), 2)
    assert len(made) == len(true) == 2 and true[0].shape[0] == 9
    assert (made[0] != made[1]).any() and (true[0] != true[1]).any()
