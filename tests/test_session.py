"""A stream in every mode: what was rewound, forked, parked, saved or made again is equal to the last bit."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from causvid.cache import CachePolicy
from causvid.codecs.steady import SteadyStream
from causvid.errors import UserError
from causvid.noise import chunk_noise
from causvid.pixels import frames_from_video
from causvid.render import render, render_with_teacher, verify
from causvid.rollout import Rollout
from causvid.session import Session
from causvid.sources import MotionStrength, Source, encode_clip, encode_image, levels_from, measure_motion
from causvid.story import first_words
from causvid.take import Event, Take
from tiny_models import moving_model, random_model

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (48, 80, 3), dtype=np.uint8)
CLIP = RNG.integers(0, 256, (30, 24, 40, 3), dtype=np.uint8)


def chunks(session, count):
    return [session.next_chunk() for _ in range(count)]


def same(a, b):
    return all(
        torch.equal(x.latents, y.latents) and np.array_equal(x.frames, y.frames) for x, y in zip(a, b, strict=True)
    )


def everything(session):
    """A stream that goes through every mode and event; its chunks."""
    out = chunks(session, 2)
    session.set_prompt("a blue bus at night", mode="keep")
    out += chunks(session, 2)
    session.set_prompt("a red bus at dawn", blend=3)
    out += chunks(session, 4)
    session.set_prompt("it snows", mode="recache")
    out += chunks(session, 2)
    session.restyle(0.8, of="a lamp")
    session.push(CLIP)
    out += chunks(session, 1)
    session.restyle("motion", of=None)
    out += chunks(session, 1)
    session.restyle(None)
    session.change(steps=2, seed=11)
    out += chunks(session, 2)
    session.change(window=6, sink=1)
    out += chunks(session, 2)
    session.set_prompt("a new shot", mode="flush")
    out += chunks(session, 2)
    session.begin_with_image(IMAGE)
    out += chunks(session, 2)
    session.extend(CLIP[:22])
    out += chunks(session, 4)
    session.set_prompt("a red bus at dawn", mode="recache", blend=2)
    return out + chunks(session, 3)


@pytest.fixture(scope="module", params=[random_model, moving_model])
def make_model(request):
    """Of networks that know nothing of the view, and of such that are told how it moves."""
    return request.param


@pytest.fixture
def either(make_model):
    return make_model()


@pytest.fixture(scope="module")
def whole(make_model):
    """(model, session, its chunks) of `everything`."""
    model = make_model()
    session = model.session("a red car", seed=5)
    return model, session, everything(session)


# ---- modes -------------------------------------------------------------------------------------------------------


def test_every_mode_in_one_stream(whole):
    _, session, made = whole
    kinds = [chunk.kind for chunk in made]
    assert kinds.count("restyled") == 2 and kinds.count("given") == 1 + 2
    assert [chunk.index for chunk in made] == list(range(len(made)))
    assert [event.kind for event in session.history.events].count("cut") == 2
    assert all(np.isfinite(chunk.drift) for chunk in made)


def test_a_stream_shows_its_latents_as_steady_as_its_model_says():
    model = moving_model()
    made = chunks(model.session("a red car", seed=2), 3)
    plain, steady = model.codec.decode_stream(), SteadyStream(model.codec.decode_stream(), 4, model.cfg.steady)
    for chunk in made:
        latents = chunk.latents.to(model.codec.dtype)
        shown, halting = frames_from_video(steady(latents)), frames_from_video(plain(latents))
        assert np.array_equal(chunk.frames, shown) and not np.array_equal(chunk.frames, halting)


@pytest.mark.parametrize("first_chunk", [None, 1])
@pytest.mark.parametrize(("how", "count"), [("first", 1), ("fill", 3)])
def test_an_image_is_the_first_frame_and_the_past_of_what_follows(model, how, count, first_chunk):
    model = replace(model, cfg=replace(model.cfg, rollout=replace(model.cfg.rollout, first_chunk=first_chunk)))
    session = model.session("a red car", seed=3)
    session.begin_with_image(IMAGE, how)
    first, second = chunks(session, 2)
    expected = encode_image(model.codec, IMAGE, (24, 40), 3, how)
    assert first.kind == "given" and torch.equal(first.latents, expected) and expected.shape[1] == count
    assert first.frames.shape == (1 + 4 * (count - 1), 24, 40, 3)
    by_hand = Rollout(model.need_student(), model.cfg.rollout, model.latent_shape, seeds=(3,))
    by_hand.feed(expected, model.remember("a red car"))
    assert torch.equal(second.latents, by_hand.step(model.remember("a red car")))
    with pytest.raises(UserError, match="first or fill"):
        session.begin_with_image(IMAGE, "middle")


@pytest.mark.parametrize("num_frames", [1, 9, 13, 22, 30])
def test_a_video_is_continued_after_its_last_frame(model, num_frames):
    session = model.session("a red car")
    given = session.extend(CLIP[:num_frames])
    made = chunks(session, given + 1)
    assert [chunk.kind for chunk in made] == ["given"] * given + ["made"]
    parts = encode_clip(model.codec, CLIP[:num_frames], (24, 40), 3)
    whole = torch.cat(parts, 1)
    usable = num_frames - (num_frames - 1) % 4
    assert whole.shape[1] == 1 + (usable - 1) // 4
    assert [p.shape[1] for p in parts[1:]] == [3] * (len(parts) - 1)
    assert torch.equal(torch.cat([chunk.latents for chunk in made[:-1]], 1), whole)
    assert torch.equal(whole[:, -1:, :3], model.codec.encode(_video(CLIP[num_frames - 1 : num_frames]))[:, :, :3])


def _video(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 127.5 - 1


def test_drawing_anew_is_a_step_from_the_noised_source(model):
    first = replace(model.cfg.rollout, first_sigmas=(1.0, 0.99, 0.0))  # of what is made from nothing
    model = replace(model, cfg=replace(model.cfg, rollout=first))
    session = model.session("a red car", seed=2)
    session.restyle(0.7, of=None)
    assert session.num_missing_frames == 9 and not session.can_step
    with pytest.raises(UserError, match="9 frames and 0 have come"):
        session.next_chunk()
    session.push(CLIP[:8])
    session.push(CLIP[8])
    assert session.can_step
    chunk = session.next_chunk()
    rollout = Rollout(model.need_student(), model.cfg.rollout, model.latent_shape, seeds=(2,))
    start = model.codec.encode(_video(CLIP[:9]))
    sigmas = (0.7, *[s for s in model.cfg.rollout.sigmas if s < 0.7])
    assert torch.equal(chunk.latents, rollout.step(model.remember("a red car"), start=start, sigmas=sigmas))
    assert chunk.strength == 0.7 and session.num_missing_frames == 12
    assert torch.equal(session.take().sources[0], start)


@pytest.mark.parametrize("of", ["a blue bus", ""])
def test_an_edit_adds_to_the_source_what_tells_the_prompts_apart(model, of):
    session = model.session("a red car", seed=2)
    session.restyle(0.7, of=of)
    session.push(CLIP)
    network, prompt = model.need_student(), model.embed(["a red car"])
    shown = model.embed([of]) if of else model.no_text()
    sources = model.codec.encode(_video(CLIP[:21])).split(3, 1)
    by_hand = Rollout(network, model.cfg.rollout, model.latent_shape)
    sigmas = (0.7, *(s for s in model.cfg.rollout.sigmas if s < 0.7))
    for index, (chunk, source) in enumerate(zip(chunks(session, 2), sources)):
        x, past = source, by_hand.cache.at_hand(3)
        for step, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:])):
            level = torch.full(x.shape[:2], sigma)
            noised = (1 - sigma) * source + sigma * chunk_noise(2, index, step, tuple(x.shape[1:]))[None]
            with torch.no_grad():
                apart = network(noised + x - source, level, prompt, past=past) - network(noised, level, shown)
            x = x + (after - sigma) * apart
        assert (chunk.latents - x).abs().max() < 2e-5 and (x - source).abs().max() > 1e-2
        by_hand.feed(chunk.latents, model.remember("a red car"))
        by_hand.settle()


def test_an_edit_that_asks_for_what_is_there_changes_nothing(model):
    session = model.session("a red car", seed=2)
    session.restyle(1.0, of="a red car")
    session.push(CLIP[:9])
    assert torch.allclose(session.next_chunk().latents, model.codec.encode(_video(CLIP[:9])), atol=1e-5)


def test_a_source_that_joins_later_stays_in_step(model):
    """Frame i of the source decides frame i of what comes out: here shown by a strength of nearly 0."""
    session = model.session("a red car")
    session.next_chunk()
    session.restyle(1e-4, of=None)
    session.push(CLIP[:24])
    frames = np.concatenate([chunk.frames for chunk in chunks(session, 2)])
    assert frames.shape[0] == 24
    # the box codec shows the mean colour of the last frame of each group of four
    latents = torch.cat([record.source for record in session.history.records[1:]], 1)
    boxes = torch.nn.functional.avg_pool2d(_video(CLIP[3:24:4])[0], 4)
    assert (latents[0, :, :3] - boxes).abs().max() < 1e-6


def test_levels_below_a_strength():
    sigmas = (1.0, 0.9, 0.6, 0.3, 0.0)
    assert levels_from(0.7, sigmas) == (0.7, 0.6, 0.3, 0.0)
    assert levels_from(0.6, sigmas) == (0.6, 0.3, 0.0)
    assert levels_from(1.0, sigmas) == sigmas


def test_more_motion_means_less_noise():
    still = np.zeros((9, 8, 8, 3), np.uint8)
    half = still.copy()
    half[1::2] = 255
    assert measure_motion(still) == 0 and measure_motion(still[:1]) == 0 and measure_motion(half) == 1
    cfg = MotionStrength(still=0.9, moving=0.5, full_motion=0.1, memory=0.5)
    assert cfg.next(0.0, None) == (0.9, 0.0)
    assert cfg.next(1.0, None) == (0.5, 1.0)
    strength, smooth = cfg.next(0.1, 0.0)
    assert strength == pytest.approx(0.7) and smooth == pytest.approx(0.05)


def test_live_frames_that_wait_too_long_are_dropped(model):
    source = Source(model.codec, (24, 40), limit=12)
    source.push(CLIP[:20])
    assert len(source) == 12 and source.num_dropped == 8
    latents, _ = source.take(3, clip_starts=False)
    boxes = torch.nn.functional.avg_pool2d(_video(CLIP[11:20:4])[0], 4)
    assert (latents[0, :, :3] - boxes).abs().max() < 1e-6


def test_blending_arrives_and_passes_through_the_middle(model):
    session = model.session("a red car")
    session.next_chunk()
    session.set_prompt("a blue bus", blend=4)
    chunks(session, 5)
    a, b = model.embed(["a red car"]), model.embed(["a blue bus"])
    rows = [record.after.words.rows for record in session.history.records]
    for row, share in zip(rows, (0, 0.25, 0.5, 0.75, 1, 1)):
        assert torch.allclose(row, a + share * (b - a), atol=1e-6)
    assert torch.equal(rows[-1], b)
    switched = model.session("a red car")
    switched.next_chunk()
    switched.set_prompt("a blue bus", blend=0)
    switched.next_chunk()
    assert torch.equal(switched.history.records[1].after.words.rows, b)


@pytest.mark.parametrize("mode", ["keep", "recache", "flush"])
def test_prompt_modes_are_those_of_the_roll_out(model, mode):
    session = model.session("a red car", seed=4)
    chunks(session, 2)
    session.set_prompt("a blue bus", mode=mode)
    assert session.prompt == "a blue bus"
    made = session.next_chunk()
    a, b = model.remember("a red car"), model.remember("a blue bus")
    rollout = Rollout(model.need_student(), model.cfg.rollout, model.latent_shape, seeds=(4,))
    rollout.step(a), rollout.step(a)
    if mode == "recache":
        rollout.recache(b)
    elif mode == "flush":
        rollout.flush()
    assert torch.equal(made.latents, rollout.step(b))
    assert len(made.frames) == (9 if mode == "flush" else 12)


def test_settings_are_told_as_soon_as_they_are_asked_for(model):
    session = model.session("a red car")
    session.change(seed=4, steps=2)
    session.set_prompt("a blue bus")
    assert (session.seed, session.asked.options.steps, session.prompt) == (4, 2, "a blue bus")
    assert session.now.seed == 0
    session.next_chunk()
    assert session.now == session.asked and session.now.seed == 4


def test_settings_must_go_with_those_that_wait(model):
    session = model.session("a red car", window=24)
    session.next_chunk()
    session.change(window=6)
    with pytest.raises(UserError, match="window"):
        session.change(sink=9)
    session.next_chunk()
    assert (session.now.options.window, session.now.options.sink) == (6, None)


def test_a_larger_window_is_filled_from_the_chunks_of_the_shot(model):
    session = model.session("a red car", window=6)
    made = chunks(session, 4)
    session.change(window=9, sink=2)
    after = session.next_chunk()
    cfg = session.rollout.cfg
    assert cfg.policy == CachePolicy(window=9, sink=2)
    rollout = Rollout(model.need_student(), cfg, model.latent_shape)
    for chunk in [made[0], *made[1:]]:
        rollout.feed(chunk.latents, model.remember("a red car"))
    rollout.settle()
    rollout.chunk_index = 4
    assert torch.equal(after.latents, rollout.step(model.remember("a red car")))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.set_prompt("x", mode="melt"), "no prompt mode"),
        (lambda s: s.set_prompt("x", mode="flush", blend=2), "cannot be blended"),
        (lambda s: s.set_prompt("x", blend=-1), "0 to 64"),
        (lambda s: s.set_prompt("  "), "empty"),
        (lambda s: s.change(tempo=3), "no setting tempo"),
        (lambda s: s.change(window=4, sink=3), "window"),
        (lambda s: s.change(steps="many"), "whole number"),
        (lambda s: s.change(seed=0.5), "whole number"),
        (lambda s: s.restyle(1.5), "at most 1"),
        (lambda s: s.push(CLIP), "restyle"),
        (lambda s: s.rewind(1), "cannot go back"),
        (lambda s: s.begin_with_image(IMAGE.astype(float)), "uint8"),
    ],
)
def test_mistakes_are_told_at_once_and_change_nothing(model, call, match):
    session = model.session("a red car")
    with pytest.raises(UserError, match=match):
        call(session)
    assert same(chunks(session, 2), chunks(model.session("a red car"), 2))
    assert len(session.history.events) == 1


# ---- time travel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment_bytes", [0, 1 << 20, 128 << 20])
def test_rewound_and_continued_is_as_if_never_rewound(make_model, moment_bytes):
    """Whatever is kept for going back quickly, from every place, with every kind of event on the way."""
    model = make_model()
    session = Session(model, "a red car", seed=5, moment_bytes=moment_bytes)
    expected = everything(session)
    events = list(session.history.events)
    for keep in (23, 20, 19, 17, 14, 12, 10, 9, 6, 3):
        session.rewind(session.num_chunks - keep)
        missing = [event for event in events if event.chunk >= keep]
        twin = session.fork()
        for stream in (session, twin):
            redo = list(missing)
            for index in range(keep, keep + 3):
                while redo and redo[0].chunk <= index:
                    event = redo.pop(0)
                    if event.kind != "source":
                        stream.repeat(event)
                chunk = expected[index] if index < len(expected) else None
                if chunk is None:
                    continue
                if chunk.kind == "given":
                    stream.give(chunk.latents)
                made = stream.next_chunk() if chunk.kind != "restyled" else None
                if made is None:
                    break
                assert same([made], [chunk]), (keep, index)


def test_rewinding_to_the_start_keeps_what_was_asked_there(either):
    session = either.session("a red car", seed=1)
    session.set_prompt("a blue bus")
    first = chunks(session, 3)
    session.rewind(3)
    assert session.num_chunks == 0 and session.prompt == "a blue bus"
    assert same(chunks(session, 3), first)
    session.rewind(0)
    assert session.num_chunks == 3


def test_going_back_within_a_video_keeps_the_rest_of_it(either):
    session = either.session("a red car", seed=1)
    before = chunks(session, 1)
    given = session.extend(np.concatenate([CLIP] * 2))
    first = chunks(session, given + 1)
    assert given == 5 and [chunk.kind for chunk in first] == ["given"] * 5 + ["made"]
    for played, back in ((0, 3), (1, 2), (4, 4)):
        chunks(session, played)
        session.rewind(back)
    assert session.num_chunks == 3 and same(chunks(session, 4), first[2:])
    session.rewind(6)
    assert [chunk.kind for chunk in chunks(session, 2)] == ["made"] * 2, "it was asked for after that"
    session.rewind(3)
    assert same(chunks(session, 1), before)


@pytest.mark.parametrize("begun", [False, True])
def test_going_back_takes_a_second_video_away_and_leaves_the_first(model, begun):
    session = model.session("a red car", seed=1)
    session.next_chunk()
    session.extend(np.concatenate([CLIP] * 2))
    first = chunks(session, 3)
    session.extend(CLIP[::-1])
    chunks(session, int(begun))
    session.rewind(2 + begun)
    again = chunks(session, 3)
    assert same(again[:2], first[1:]) and again[2].kind == "made"


def test_rewinding_to_before_a_source_ends_it(either):
    session = either.session("a red car", seed=1)
    first = chunks(session, 2)
    session.restyle(0.9)
    session.push(CLIP)
    chunks(session, 1)
    session.rewind(3)
    assert not session.restyles and same(chunks(session, 2), first)


@pytest.mark.parametrize("of", ["a blue bus", "", None])
def test_a_source_that_was_rewound_is_followed_as_before(either, of):
    session = either.session("a red car", seed=1)
    session.restyle(0.9, of=of)
    session.push(CLIP)
    first = chunks(session, 2)
    session.rewind(1)
    assert session.restyles and session.asked.of == of
    session.follow(session.take().sources[0], session.take().chunks[0])  # a chunk's own source again, in another place
    twin = either.session("a red car", seed=1)
    twin.restyle(0.9, of=of)
    twin.push(CLIP[:9])
    assert same(chunks(twin, 1), first[:1])
    twin.follow(twin.take().sources[0], twin.take().chunks[0])
    assert same(chunks(session, 1), chunks(twin, 1))


def test_a_fork_is_its_parent_until_they_part(either):
    parent = either.session("a red car", seed=1)
    chunks(parent, 6)
    child = parent.fork()
    assert same(chunks(parent, 2), chunks(child, 2))
    child.set_prompt("a blue bus", mode="recache")
    ours, theirs = chunks(parent, 2), chunks(child, 2)
    assert not torch.equal(ours[0].latents, theirs[0].latents)
    alone = either.session("a red car", seed=1)
    assert same(chunks(alone, 10)[8:], ours), "the parent does not notice"
    assert parent.num_chunks == child.num_chunks == 10
    assert [e.kind for e in parent.history.events] == ["start"]


@pytest.mark.parametrize("options", [{}, {"window": 6, "sink": 1}, {"window": 9, "sink": 3, "relative": True}])
def test_a_parked_stream_wakes_as_it_was(either, options):
    session, expected = either.session("a red car", **options), either.session("a red car", **options)
    chunks(session, 9), chunks(expected, 9)
    session.park()
    assert session.is_parked
    assert same(chunks(session, 2), chunks(expected, 2))


def test_waking_after_a_long_time_costs_what_matters_and_no_more(either):
    """The window times the layers, not the length of the stream; and still every bit."""
    session = either.session("a red car", window=6, sink=1)
    expected = either.session("a red car", window=6, sink=1)
    chunks(session, 30), chunks(expected, 30)
    session.park()
    passes = []
    hook = either.need_student().register_forward_pre_hook(lambda *_: passes.append(1))
    made = session.next_chunk()
    hook.remove()
    needed = 1 + 6 * 3 // 3  # the sink's chunk, and window x layers frames in chunks of three
    assert len(passes) == needed + 4
    assert same([made], [expected.next_chunk()])


# ---- what words leave open ---------------------------------------------------------------------------------------


def told(session):
    return [first_words(e.value) for e in session.history.events if e.kind in ("start", "prompt")]


def test_what_a_prompt_leaves_open_is_named_and_kept():
    session = moving_model().session("a red car", seed=4)
    chunks(session, 1)
    session.set_prompt("tint9 bus")
    session.set_prompt("a blue bus")
    session.change(seed=5)
    chunks(session, 1)
    assert told(session) == ["tint1 a red car", "tint9 bus", "tint9 a blue bus"]
    assert session.prompt == session.asked_prompt == "a blue bus"
    named = moving_model().session("tint1 a red car", seed=4, story=False)
    assert torch.equal(named._embed("tint1 a red car"), session.history.records[0].after.words.rows)
    assert told(named) == ["tint1 a red car"] and named.history.events[0].value["story"] == []
    plain = moving_model().session("a red car", seed=4, story=False)
    plain.set_prompt("a blue bus")
    chunks(plain, 1)
    assert told(plain) == ["a red car", "a blue bus"]


@pytest.mark.parametrize("bring", ["image", "video", "source"])
@pytest.mark.parametrize("begun", [False, True])
def test_pictures_from_elsewhere_show_what_words_leave_open(bring, begun):
    session = moving_model().session("a red car", seed=4)
    chunks(session, 2 * begun)
    if bring == "image":
        session.begin_with_image(IMAGE)
    elif bring == "video":
        session.extend(CLIP[:22])
    else:
        session.restyle(0.8, of="a lamp")
        session.push(np.concatenate([CLIP] * 2))
    chunks(session, 2)
    session.set_prompt("a blue bus")
    chunks(session, 1)
    assert told(session) == ["tint1 a red car"] * begun + ["a red car", "a blue bus"]
    session.restyle(None)
    session.set_prompt("a new shot", mode="flush")
    chunks(session, 1)
    session.set_prompt("a green bus")
    chunks(session, 1)
    assert told(session)[-2:] == ["tint1 a new shot", "tint1 a green bus"]


# ---- takes ---------------------------------------------------------------------------------------------------------


def test_a_take_shows_and_makes_the_same_again_after_a_restart(whole, make_model, tmp_path):
    _, session, made = whole
    path = session.save(tmp_path / "a.take")
    take, other = Take.load(path), make_model()
    shown = list(take.replay(other))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(shown, made, strict=True))
    assert [a.prompt for a in shown] == [b.prompt for b in made]
    assert list(take.replay(other, 3, 5))[1].index == 4
    verdict = verify(take, other)
    assert verdict.equal and verdict.num_chunks == len(made) - 3, str(verdict)
    assert same(list(render(take, other)), made)


def test_a_take_shown_from_its_middle_is_decoded_from_the_beginning_of_that_shot(whole, make_model):
    _, session, made = whole
    take, model = session.take(), make_model()
    for start in range(len(made)):
        turns = list(take.replay_in_turns(model, start))
        shot = max(i for i, chunk in enumerate(take.chunks) if chunk.begins_shot and i <= start)
        assert turns[: start - shot] == [None] * (start - shot) and None not in turns[start - shot :]
        shown = turns[start - shot :]
        assert [a.index for a in shown] == list(range(start, len(made)))
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(shown, made[start:], strict=True))
    assert not list(take.replay(model, len(made))) and not list(take.replay(model, 3, 3))


def times_given_way(session, passes):
    """How often, on the way through them."""
    count = 0
    with torch.no_grad(), contextlib.suppress(StopIteration):
        wanted = next(passes)
        while True:
            count += wanted is None
            wanted = passes.send(None if wanted is None else wanted.run(session.model.need_student()))
    return count


def test_others_have_their_turn_while_a_decoder_sees_a_shot_again(either):
    session = Session(either, "a red car", moment_bytes=0)
    chunks(session, 2)
    session.set_prompt("a blue bus", mode="flush")
    made = chunks(session, 7)
    resumed = Session.resume(session.take(), either)
    twin = resumed.fork()
    assert times_given_way(session, session.rewind_passes(2)) == 5
    assert times_given_way(session, session.chunk_passes()) == 0
    assert torch.equal(session.history.records[-1].latents, made[-2].latents)
    assert times_given_way(resumed, resumed.chunk_passes()) == 7
    after = chunks(session, 3)
    assert same(after[:1], made[-1:]) and same(after[2:], chunks(resumed, 1)) and same(after[1:], chunks(twin, 2))


def test_going_back_that_was_broken_off_is_made_up_for(either):
    session, expected = Session(either, "a red car", moment_bytes=0), either.session("a red car")
    chunks(session, 5), chunks(expected, 4)
    passes = session.rewind_passes(1)
    with torch.no_grad():
        assert next(passes) is None
    passes.close()
    assert same(chunks(session, 2), chunks(expected, 2))


def test_a_take_is_continued_as_if_it_had_never_been_saved(whole, make_model, tmp_path):
    model, session, _ = whole
    take = Take.load(session.save(tmp_path / "a.take"))
    resumed, parent = Session.resume(take, make_model()), session.fork()
    assert resumed.prompt == parent.prompt and resumed.num_chunks == parent.num_chunks
    for stream in (resumed, parent):
        stream.set_prompt("a blue bus", mode="recache")
    assert same(chunks(resumed, 3), chunks(parent, 3))
    again = Take.load(resumed.save(tmp_path / "b.take"))
    assert verify(again, model).equal


@pytest.mark.parametrize("begun", [False, True])
def test_what_waits_for_the_next_chunk_is_saved(either, begun, tmp_path):
    session = either.session("a red car", seed=3)
    chunks(session, 2 * begun)
    session.set_prompt("a blue bus", mode="recache")
    session.change(seed=9, window=6)
    resumed = Session.resume(Take.load(session.save(tmp_path / "a.take")), either)
    assert resumed.prompt == "a blue bus" and resumed.will_recache
    assert (resumed.seed, resumed.asked.options.window) == (9, 6)
    assert resumed.take().events == session.take().events
    assert same(chunks(resumed, 3), chunks(session, 3))
    assert resumed.take().events == session.take().events
    assert verify(session.take(), either).equal


@pytest.mark.parametrize("bring", ["image", "source"])
def test_pictures_that_wait_are_not_saved_and_words_beside_them_are(either, bring):
    session = either.session("a red car", story=False)
    chunks(session, 2)
    if bring == "image":
        session.begin_with_image(IMAGE)
    else:
        session.restyle(0.9)
        session.push(CLIP)
    session.set_prompt("a blue bus")
    resumed, expected = Session.resume(session.take(), either), either.session("a red car", story=False)
    chunks(expected, 2)
    expected.set_prompt("a blue bus")
    assert same(chunks(resumed, 2), chunks(expected, 2)) and resumed.asked.strength is None
    assert verify(resumed.take(), either).equal


def test_a_take_that_was_changed_is_found_out(whole):
    model, session, _ = whole
    take = session.take()
    changed = [latents.clone() for latents in take.latents]
    changed[4][0, 0, 0, 0, 0] += 0.5
    bad = Take(**{**take.__dict__, "latents": tuple(changed)})
    verdict = verify(bad, model)
    assert 4 in verdict.different and verdict.max_difference == pytest.approx(0.5, abs=0.3)
    assert "differ" in str(verdict)


def test_a_take_rendered_with_other_steps_follows_the_same_events(whole):
    model, session, made = whole
    other = list(render(session.take(), model, steps=1))
    assert [c.prompt for c in other] == [c.prompt for c in made] and [c.kind for c in other] == [c.kind for c in made]
    assert not torch.equal(other[0].latents, made[0].latents)
    given = [i for i, chunk in enumerate(made) if chunk.kind == "given"]
    assert all(torch.equal(other[i].latents, made[i].latents) for i in given)


def test_a_take_rendered_by_a_student_of_other_chunks_has_the_same_length():
    model = random_model()
    session = model.session("a red car")
    chunks(session, 3)
    session.set_prompt("a blue bus")
    chunks(session, 2)
    finer = list(render(session.take(), random_model(chunk=1)))
    assert len(finer) == 15
    assert [c.prompt for c in finer] == ["a red car"] * 9 + ["a blue bus"] * 6


@pytest.mark.parametrize("after", [0, 1, 6])
def test_what_was_given_is_given_to_a_student_of_other_chunks(after):
    """Wherever it lies: in the middle of what would be one chunk, and at the end."""
    session = random_model(chunk=1).session("a red car")
    chunks(session, 5)
    parts = session.extend(CLIP[:9])
    chunks(session, parts)
    session.begin_with_image(IMAGE)
    chunks(session, 1 + after)
    take, made = session.take(), list(render(session.take(), random_model()))
    given = [chunk for chunk in made if chunk.kind == "given"]
    assert [latents.shape[1] for latents in take.latents[5:9]] == [1] * 4
    assert all(torch.equal(a.latents, b) for a, b in zip(given, take.latents[5:9], strict=True))
    assert [len(chunk.frames) for chunk in given] == [1, 4, 4, 1], "two shots, as they were"
    assert 0 <= sum(chunk.latents.shape[1] for chunk in made) - take.num_latents < 3


def test_the_teacher_refines_a_take_clip_by_clip(whole):
    model, session, made = whole
    take, told = session.take(), []
    refined = list(render_with_teacher(take, model, strength=0.5, steps=3, on_step=lambda *step: told.append(step)))
    assert sum(len(part.frames) for part in refined) == sum(len(chunk.frames) for chunk in made)
    assert told[-1][0] == told[-1][1]
    nothing = list(render_with_teacher(take, model, strength=1e-5, steps=3, guidance=1.0))
    frames = np.concatenate([part.frames for part in nothing]).astype(int)
    assert np.abs(frames - np.concatenate([chunk.frames for chunk in made])).max() <= 1
    with pytest.raises(UserError, match="at most 1"):
        next(render_with_teacher(take, model, strength=2))


def test_a_take_is_small_and_tells_about_itself(whole, tmp_path):
    _, session, made = whole
    path = session.save(tmp_path / "a.take")
    latents = sum(chunk.latents.numel() for chunk in made) * 4
    assert path.stat().st_size < 1.3 * latents + 20_000
    info = Take.load(path).info()
    assert info["seed"] == 5 and info["chunks"] == len(made) and info["exact"]
    assert info["seconds"] == pytest.approx(sum(len(chunk.frames) for chunk in made) / 12, abs=0.01)
    json.dumps(info)


def _damage(header=None, latents=None, **changed):
    def apply(about, tensors):
        if header is not None:
            header(about)
        if latents is not None:
            tensors["latents"] = latents(tensors["latents"])
        tensors |= changed
        return about, tensors

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        _damage(latents=lambda t: t[:-1]),
        _damage(latents=lambda t: t * float("nan")),
        _damage(latents=lambda t: t.double()),
        _damage(extra=torch.zeros(1)),
        _damage(header=lambda h: h.update(format="else")),
        _damage(header=lambda h: h.update(events=[])),
        _damage(header=lambda h: h["events"][0].update(kind="explode")),
        _damage(header=lambda h: h["events"][0]["value"].pop("text")),
        _damage(header=lambda h: h["events"].append({"chunk": 2, "time": 0, "kind": "prompt", "value": {"text": 3}})),
        _damage(header=lambda h: h["events"][0]["value"].update(story=["a red car", 3])),
        _damage(header=lambda h: h["events"][0]["value"].update(story=["a red car"] * 100)),
        _damage(header=lambda h: h["chunks"][0].update(num_latents=-1)),
        _damage(header=lambda h: h["cuts"].append({"chunk": 9**9})),
        _damage(header=lambda h: h.update(cuts=[])),
        _damage(header=lambda h: h.update(cuts=[{"chunk": 1}])),
        _damage(header=lambda h: h.pop("latent_shape")),
    ],
)
def test_damaged_takes_are_refused_in_words(model, tmp_path, damage):
    session = model.session("a red car")
    chunks(session, 2)
    path = session.save(tmp_path / "a.take")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["take"])
        tensors = {"latents": file.get_tensor("latents")}
    about, tensors = damage(about, tensors)
    save_file(tensors, tmp_path / "b.take", {"take": json.dumps(about)})
    with pytest.raises(UserError, match="damaged take"):
        Take.load(tmp_path / "b.take")


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        ("prompt", {"text": "x", "mode": "melt"}, "no prompt mode"),
        ("prompt", {"text": "  "}, "empty"),
        ("settings", {"tempo": 3}, "no setting tempo"),
        ("settings", {"window": 4, "sink": 3}, "window"),
        ("source", {"strength": 2}, "at most 1"),
    ],
)
@pytest.mark.parametrize("at", [1, 2])
def test_what_a_take_asks_for_is_read_when_it_is_opened(model, kind, value, match, at):
    """Also what waits for the chunk after its last one."""
    session = model.session("a red car")
    chunks(session, 2)
    take = session.take()
    with pytest.raises(UserError, match=match):
        Session.resume(replace(take, events=(*take.events, Event(at, 1.0, kind, value))), model)


def test_a_prompt_in_a_take_need_not_say_how_it_takes_hold(model):
    session = model.session("a red car")
    chunks(session, 2)
    take = session.take()
    resumed = Session.resume(replace(take, events=(*take.events, Event(2, 1.0, "prompt", {"text": "a bus"}))), model)
    assert not resumed.will_recache and resumed.prompt == "a bus"
    session.set_prompt("a bus")
    assert same(chunks(resumed, 1), chunks(session, 1))


def test_files_that_are_no_takes_are_refused(model, tmp_path):
    for name, content in {"empty": b"", "text": b"hello" * 100, "short": b"\xff" * 16}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a take"):
            Take.load(tmp_path / name)
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(UserError, match="not a take"):
        Take.load(tmp_path / "weights")
    with pytest.raises(UserError, match="no take"):
        Take.load(tmp_path / "absent")
    session = model.session("a red car")
    session.next_chunk()
    small = random_model()
    small.resize(16, 24)
    with pytest.raises(UserError, match="latents of"):
        Session.resume(session.take(), small)
