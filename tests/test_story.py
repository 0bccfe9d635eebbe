"""A prompt that tells what comes later is the same as its parts, asked for one after the other by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from causvid.render import render, verify
from causvid.session import Session
from causvid.story import PART, first_words
from causvid.take import Take
from causvid.text import Understood
from causvid.worlds.vista import course
from tiny_models import HashText, random_model

TOLD = "a red car, then night falls, then it snows"
PARTS = ("a red car", "night falls", "it snows")
CLIP = np.random.default_rng(0).integers(0, 256, (22, 24, 40, 3), dtype=np.uint8)


def test_views_turn_when_the_next_part_is_told():
    assert course.PART == PART  # worlds are below streams and cannot ask them


class StoryText(HashText):
    def understand(self, prompt):
        parts = tuple(prompt.split(", then "))
        return Understood(prompt, story=parts if len(parts) > 1 else ())


@pytest.fixture(scope="module")
def teller():
    return replace(random_model(), text=StoryText())


def latents(session, count):
    return [session.next_chunk().latents for _ in range(count)]


def equal(made, expected):
    return all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def asked_by_hand(model, parts, chunks, total, blend):
    session, out = model.session(parts[0], seed=4), []
    for index in range(total):
        if index in chunks:
            session.set_prompt(parts[1 + chunks.index(index)], blend=blend)
        out += latents(session, 1)
    return out


@pytest.mark.parametrize(
    ("chunk", "first_chunk", "chunks", "blend"), [(3, None, [2, 5], 2), (3, 1, [3, 5], 2), (1, None, [7, 14], 6)]
)
def test_every_part_is_told_when_the_one_before_has_had_its_time(teller, chunk, first_chunk, chunks, blend):
    rollout = replace(teller.cfg.rollout, chunk=chunk, first_chunk=first_chunk)
    model = replace(teller, cfg=replace(teller.cfg, rollout=rollout))
    session = model.session(TOLD, seed=4)
    made = latents(session, chunks[-1] + 2)
    assert equal(made, asked_by_hand(model, PARTS, chunks, chunks[-1] + 2, blend))
    told = [event for event in session.history.events if event.value.get("told")]
    assert [(event.chunk, event.value["text"]) for event in told] == list(zip(chunks, PARTS[1:]))
    starts = session.take().starts()
    for part, event in enumerate(told, start=1):
        assert abs(starts[event.chunk] - part * PART) <= chunk / 2


def test_a_part_waits_until_the_one_before_has_taken_over(teller):
    session = teller.session("a bus", seed=4)
    session.set_prompt(TOLD, mode="recache", blend=4)
    latents(session, 9)
    told = [event.chunk for event in session.history.events if event.value.get("told")]
    assert told == [3 + 2, 3 + 5] and [cut.chunk for cut in session.history.cuts] == [0, 3]


def test_the_first_part_is_shown_whatever_the_size_of_a_chunk(teller):
    model = replace(teller, cfg=replace(teller.cfg, rollout=replace(teller.cfg.rollout, chunk=12)))
    session = model.session(TOLD)
    latents(session, 3)
    assert [event.chunk for event in session.history.events[1:]] == [1, 2]


def test_told_all_at_once_it_is_one_prompt(teller):
    session = teller.session(TOLD, seed=4, story=False)
    session.set_prompt("a bus, then rain")
    made = latents(session, 6)
    assert [event.kind for event in session.history.events] == ["start", "prompt"]
    plain = random_model().session(TOLD, seed=4)
    plain.set_prompt("a bus, then rain")
    assert equal(made, latents(plain, 6))
    again = Session.resume(session.take(), teller)
    again.set_prompt("a bus, then rain")
    latents(again, 6)
    assert not any(event.value.get("told") for event in again.history.events), "it stays as it was begun"


def test_another_prompt_ends_a_story_and_may_tell_one(teller):
    session = teller.session(TOLD, seed=4)
    latents(session, 3)
    session.set_prompt("a bus, then rain, then fog", blend=2)
    latents(session, 7)
    told = [(event.chunk, event.value["text"]) for event in session.history.events]
    assert told[1:] == [(2, "night falls"), (3, "a bus, then rain, then fog"), (6, "rain"), (9, "fog")]


def test_a_prompt_that_waits_goes_before_a_part_that_is_due(teller):
    session = teller.session(TOLD, seed=4)
    latents(session, 2)
    session.set_prompt("a bus")
    latents(session, 5)
    assert [event.value["text"] for event in session.history.events] == [TOLD, "a bus"]


def test_what_is_given_takes_no_time_of_a_story(teller):
    session = teller.session(TOLD, seed=4)
    given = session.extend(CLIP)
    latents(session, given + 3)
    (told,) = (event for event in session.history.events if event.value.get("told"))
    assert given == 2 and told.chunk == given + 2


def test_gone_back_forked_parked_saved_and_made_again_it_is_the_same_story(teller, tmp_path):
    session = teller.session(TOLD, seed=4)
    made = latents(session, 8)
    session.rewind(7)
    assert equal(latents(session, 4), made[1:5])
    twin = session.fork()
    session.park()
    take = Take.load(session.save(tmp_path / "a.take"))
    for other in (session, twin, Session.resume(take, teller)):
        assert equal(latents(other, 3), made[5:])
    again = Session.resume(take, teller).take()
    assert (
        again.prompts() == [TOLD] * 2 + [PARTS[1]] * 3 and again.prompts(told=True) == [PARTS[0]] * 2 + [PARTS[1]] * 3
    )
    assert verify(twin.take(), teller).equal
    assert equal([chunk.latents for chunk in render(twin.take(), teller)], made)


class NamingText(StoryText):
    """Names a tint where none is named: pictures from elsewhere take that back."""

    def settle(self, parts, seed, before):
        return tuple(f"tint {part}" for part in parts)


@pytest.mark.parametrize("begun", [2, 4])
def test_pictures_from_elsewhere_do_not_end_a_story(teller, begun):
    """Whichever part is told by then, the others are told after it."""
    session = replace(teller, text=NamingText()).session(TOLD, seed=4)
    latents(session, begun)
    session.restyle(0.8)
    session.push(np.concatenate([CLIP] * 5))
    assert session.asked_prompt == (TOLD if begun == 2 else "night falls")
    latents(session, 7)
    told = [(event.chunk, first_words(event.value)) for event in session.history.events if event.kind == "prompt"]
    after = [(2, "a red car"), (4, "night falls"), (7, "it snows")]
    assert told == (after if begun == 2 else [(2, "tint night falls"), (4, "night falls"), (6, "it snows")])


def test_a_take_is_made_again_as_it_was_told(teller):
    """Also if its prompt would be taken apart otherwise now, or could not be then."""
    plain = random_model()
    for maker, reader in ((teller, plain), (plain, teller)):
        session = maker.session(TOLD, seed=4)
        made = latents(session, 7)
        assert equal([chunk.latents for chunk in render(session.take(), reader)], made)
        assert verify(session.take(), reader).equal
        again = Session.resume(session.take(), reader)
        assert equal(latents(again, 1), latents(session, 1))
