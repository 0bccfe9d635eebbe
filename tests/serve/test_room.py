"""Who may come in and who makes room: memory that is bounded and comes back, and a device that becomes slower."""

import contextlib
import dataclasses
import errno
import gc
import itertools
import time
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from causvid.errors import UserError
from causvid.inputs import MAX_WAITING
from causvid.serve.engine import Engine, EngineConfig
from causvid.serve.frames import digest
from causvid.serve.jobs import Results, movie_of
from causvid.serve.lanes import Job, Stream
from causvid.serve.room import Full
from causvid.session import Session, StreamOptions
from live_server import running
from tiny_models import random_model

CFG = EngineConfig(max_playing=4, max_sessions=6, warm_up=False, threads=1)


@contextlib.contextmanager
def engine_of(model=None, **changes):
    engine = Engine(model or random_model(), dataclasses.replace(CFG, **changes))
    engine.start()
    engine.ready.wait()
    try:
        yield engine
    finally:
        engine.stop()


def watched(engine, seed=0, pace=None):
    """A stream that plays, and the list that grows with its news."""
    stream, news = engine.open("a red car", seed, StreamOptions()).result(20), []
    stream.listener = lambda _, kind, what: news.append((kind, what))
    stream.pace = pace
    engine.play(stream).result(20)
    return stream, news


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.01)


def storages(*things):
    """Bytes of all tensors that can be reached from some values, each storage once."""
    sizes, waiting, seen = {}, list(things), set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            sizes[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        elif dataclasses.is_dataclass(thing):
            waiting += [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    return sum(sizes.values())


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_session_knows_what_it_holds():
    """Counted as it grows, against a walk through everything it has; and after it went back, or freed its cache."""
    session = random_model().session("a red car", seed=1)
    assert session.nbytes == 0, "nothing is allocated before the first chunk"

    def walked():
        cache = 0 if session.is_parked else session.cache_bytes
        records = [(r.latents, r.source, r.after.words) for r in session.history.records]
        moments = [(m.rollout.cache, m.decoder) for m in session.history.moments]
        words = [known[1] for known in (session._texts, session._source_text) if known is not None]
        return cache + storages(words) + storages(records) + storages(moments)

    for index in range(10):
        if index in (2, 6):
            session.set_prompt(f"a blue bus {index}", blend=3)
        if index == 7:
            session.restyle(0.7, of="a lamp")
            session.push(np.zeros((12, 24, 40, 3), np.uint8))
        session.next_chunk()
        assert session.nbytes == walked() + (session._inputs.nbytes if index == 7 else 0)
        if index == 7:
            session.restyle(None)
    assert session.cache_bytes == session.rollout.cache.nbytes
    session.rewind(5)
    assert session.nbytes == walked()
    session.park()
    assert session.nbytes == walked() < session.cache_bytes


def test_what_an_endless_stream_holds_grows_by_its_latents_only():
    session = random_model().session("a red car")
    session.history.moment_bytes = 1 << 20
    held = []
    for _ in range(24):
        latents = session.next_chunk().latents.nbytes
        held.append(session.nbytes - session.history.nbytes_of_moments)
    assert {b - a for a, b in zip(held[1:], held[2:])} == {latents}
    assert session.history.nbytes_of_moments <= 1 << 20


def test_whoever_leaves_takes_his_session_with_him():
    """Refused, closed, or gone without a word: nothing but the shelf's names stays, and no collector is needed."""
    cfg = dataclasses.replace(CFG, max_playing=1, park_unwatched_after=0.2, forget_after=0.3)
    gc.collect()
    gc.disable()
    try:
        with running(cfg=cfg) as server:
            sessions = []
            for turn in range(4):
                with server.client() as plays, server.client() as refused:
                    plays.send("open", prompt="a red car", pace=None)
                    plays.chunks(2)
                    refused.send("open", prompt="a red car", seed=turn)
                    refused.wait_for("full")
                    sessions += [weakref.ref(stream.session) for stream in server.engine.streams.values()]
                    refused.send("rewind", to=-1)
                    refused.wait_for("error")
                    refused.send("close")
                    refused.wait_for("ended")
                    if turn % 2:
                        plays.send("close")
                        plays.wait_for("ended")
                server.wait_until(lambda: not server.engine.streams)
            assert len(sessions) >= 8
            server.wait_until(lambda: not any(session() for session in sessions), 5)
    finally:
        gc.enable()


def test_within_a_budget_idle_caches_go_first_then_sessions_nobody_watches_and_they_come_back():
    one = random_model().session("a red car").cache_bytes
    with engine_of(session_bytes=int(2.6 * one), moment_bytes=0) as engine:
        first, _ = watched(engine, seed=3)
        wait_until(lambda: first.session.num_chunks >= 2)
        engine.pause(first).result(20)
        wait_until(lambda: first.work is None)
        made = first.session.num_chunks
        second, _ = watched(engine, seed=4, pace=8)
        wait_until(lambda: second.session.num_chunks >= 1)
        third, _ = watched(engine, seed=5, pace=8)
        assert first.session.is_parked and not second.session.is_parked, "one that pauses makes room"
        wait_until(lambda: third.session.num_chunks >= 1)
        fourth = engine.open("a red car", 6, StreamOptions()).result(20)
        with pytest.raises(Full, match="all of its"):
            engine.play(fourth).result(20)
        assert engine.room.nbytes <= engine.cfg.session_bytes

        # nobody watches the first one: it goes to disk, and is found there under its name
        first.listener = None
        engine.call(lambda: engine.room.put_away(first)).result(20)
        assert first.id not in engine.streams and len(engine.room.shelf) == 1
        for stream in (second, third):
            engine.close(stream).result(20)
        back = engine.find(first.id).result(20)
        assert back.id == first.id and back.session.num_chunks == made and len(engine.room.shelf) == 0
        chunks = []
        back.listener = lambda _, kind, what: chunks.append(what[0]) if kind == "chunk" else None
        engine.play(back).result(20)
        wait_until(lambda: chunks)
        alone = random_model().session("a red car", seed=3)
        assert digest([alone.next_chunk() for _ in range(made + 1)][-1].frames) == digest(chunks[0].frames)
        assert engine.find("nobody").result(20) is None


def test_a_prompt_that_waits_is_still_there_after_the_shelf():
    with engine_of() as engine:
        stream, news = watched(engine)
        wait_until(lambda: news)
        engine.pause(stream).result(20)
        engine.ask(stream, lambda session: session.set_prompt("a blue bus")).result(20)
        stream.listener = None
        engine.call(partial(engine.room.put_away, stream)).result(20)
        assert engine.find(stream.id).result(20).session.prompt == "a blue bus"


def test_the_shelf_keeps_to_its_size_too():
    with engine_of(shelf_bytes=40_000) as engine:
        for seed in range(6):
            stream, news = watched(engine, seed)
            while len(news) < 3:
                time.sleep(0.01)
            stream.listener = None
            engine.call(partial(engine.room.put_away, stream)).result(20)
        assert 0 < engine.room.shelf.nbytes <= 40_000 and 0 < len(engine.room.shelf) < 6
        engine.room.shelf.forget(0.0)
        assert len(engine.room.shelf) == 0


def test_a_full_disk_costs_what_nobody_watches_and_nothing_else(monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with engine_of() as engine:
        plays, news = watched(engine, pace=8)
        left, _ = watched(engine, seed=1)
        wait_until(lambda: left.session.num_chunks >= 2)
        left.listener = None
        object.__setattr__(engine.cfg, "session_bytes", 0)
        wait_until(lambda: left.id not in engine.streams or engine.broken)
        object.__setattr__(engine.cfg, "session_bytes", 1 << 30)
        assert engine.broken is None and plays.id in engine.streams and len(engine.room.shelf) == 0
        shown = len(news)
        engine.play(plays).result(20)
        wait_until(lambda: len(news) > shown + 2)


def test_movies_that_nobody_fetches_make_room_for_newer_ones(tmp_path):
    def write(job):
        path = tmp_path / job.id
        path.write_bytes(bytes(100))
        yield None
        return path

    with engine_of(result_bytes=250) as engine:
        jobs = [engine.submit(Job(make=write)) for _ in range(5)]
        wait_until(lambda: len(engine.jobs) == 2)
        assert list(engine.jobs) == [job.id for job in jobs[-2:]]
        assert {path.name for path in tmp_path.iterdir()} == set(engine.jobs)


@pytest.mark.parametrize("broken", ["next_time", "nbytes"])
def test_what_fails_in_one_stream_while_the_engine_looks_around_ends_no_other(monkeypatch, broken):
    """Whatever it is: when a stream is due, or what it holds, cannot be told."""
    with engine_of() as engine:
        plays, news = watched(engine, pace=8)
        bad, told = watched(engine, seed=1, pace=8)
        part = bad if broken == "next_time" else bad.session
        whole = getattr(type(part), broken)
        fails = {"next_time": lambda self, now: 1 / 0 if self is bad else whole(self, now)}
        fails["nbytes"] = property(lambda self: 1 / 0 if self is bad.session else whole.fget(self))
        monkeypatch.setattr(type(part), broken, fails[broken])
        wait_until(lambda: engine.meters.counts["failures_total"] > 0 or engine.broken)
        shown = len(news)
        wait_until(lambda: len(news) > shown + 2)
        assert engine.broken is None and plays.playing
        assert broken != "next_time" or [kind for kind, _ in told].count("failed")


def test_changes_do_not_pile_up():
    session = random_model().session("a red car")
    for seed in range(MAX_WAITING):
        session.change(seed=seed)
    with pytest.raises(UserError, match="let it be made first"):
        session.change(seed=1)
    session.next_chunk()
    session.change(seed=2)


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["replay", "rewind", "resume", "movie"])
def test_a_decoder_that_sees_much_again_leaves_the_others_their_turns(how):
    """Between two chunks that it decodes, the stream that plays gets a pass."""
    model = random_model()
    long = Session(model, "a red car", moment_bytes=0)
    for _ in range(20):
        long.next_chunk()
    take, happened = long.take(), []
    decode = model.codec._decode
    model.codec._decode = lambda *piece: happened.append("decode") or decode(*piece)
    model.need_student().register_forward_pre_hook(lambda *_: happened.append("pass"))
    with engine_of(model, moment_bytes=0) as engine, contextlib.closing(Results()) as results:
        plays, news = watched(engine, seed=1)
        wait_until(lambda: news)
        happened.clear()
        stream = engine.resume(take).result(20)
        told = []
        stream.listener = lambda _, kind, what: told.append(kind)
        if how == "replay":
            engine.replay(stream, 19).result(20)
        elif how == "rewind":
            engine.rewind(stream, 19).result(20)
        elif how == "resume":
            engine.play(stream).result(20)
        else:
            job = engine.submit(movie_of(model, results, take, 19, 20, ".gif"))
        wait_until(lambda: job.state == "done" if how == "movie" else told and told[-1] in ("chunk", "rewound"))
        runs = [len(list(run)) for kind, run in itertools.groupby(list(happened)) if kind == "decode"]
        assert sum(runs) >= 19 and max(runs) <= 3
        assert plays.playing


class Slow:
    """A device that takes `seconds` for every row of a batch, and shows a chunk in half a second."""

    def __init__(self, share):
        self.share = share  # of the device, that one stream needs to play in real time
        self.model = random_model()
        self.model.cfg = dataclasses.replace(self.model.cfg, fps=24)
        passes = len(self.model.cfg.rollout.sigmas)
        self.model.need_student().register_forward_pre_hook(
            lambda _, args: time.sleep(0.5 * self.share / passes * len(args[0]))
        )


@pytest.mark.parametrize(("pace", "took"), [(0.5, 0.9), (1.0, 0.5), (2.0, 0.3), (2.0, 0.45), (4.0, 0.1), (8.0, 0.05)])
def test_no_chunk_is_late_at_a_pace_that_the_device_reaches(pace, took):
    """By a clock that is set by hand, of chunks that last a second at pace 1."""
    session = SimpleNamespace(will_recache=False)
    stream, lates = Stream(session=session, fps=12, pace=pace, playing=True), []
    stream.tell = lambda _, what: lates.append(what[1]["late"])
    now = stream.shown_until = 100.0
    for _ in range(60):
        now = stream._began = max(now, stream.next_time(now))
        now, shown = now + took, stream.shown_until
        stream._deliver(SimpleNamespace(frames=[0] * 12), now)
    assert max(lates[20:]) < 1e-6
    assert shown - now < 0.4 * took + 0.1, "a new prompt does not wait behind more than that"
    before = stream.next_time(0.0)
    session.will_recache = True
    assert before - stream.next_time(0.0) == pytest.approx(2 * took, rel=0.01)


def play_when_there_is_room(engine, seed):
    """As a person does on a machine that does other things as well."""
    for _ in range(20):
        with contextlib.suppress(Full):
            return watched(engine, seed, pace=1.0)
        time.sleep(0.25)
    raise AssertionError("there was never any room")


def test_as_many_play_as_the_device_shows_and_one_more_is_told():
    device = Slow(1 / 4.6)  # four in real time, and a little more
    with engine_of(device.model, max_playing=None, warm_up=True) as engine:
        assert engine.room.capacity() <= 4
        streams = []
        with pytest.raises(Full, match="this device is full: it shows"):
            for seed in range(6):
                streams.append(watched(engine, seed, pace=1.0)[0])
                time.sleep(0.6)
        assert 1 <= len(streams) <= 4
        time.sleep(1.0)
        assert min(stream.speed for stream in streams) > 0.7, "those that were let in are in real time"


def test_a_device_that_becomes_slower_slows_all_alike_tells_them_and_pauses_the_newest():
    device = Slow(0.01)
    with engine_of(device.model, max_playing=None, warm_up=True, pause_every=2.0) as engine:
        opened = [play_when_there_is_room(engine, seed) for seed in range(3)]
        streams = [stream for stream, _ in opened]
        wait_until(lambda: all(stream.session.num_chunks > 2 for stream in streams))
        device.share = 0.62  # of three, each reaches about half of real time
        wait_until(lambda: all(any(kind == "slow" for kind, _ in news) for _, news in opened))
        before = [stream.session.num_chunks for stream in streams]
        assert engine.room.capacity() < 3 and all(stream.speed < 0.9 for stream in streams)
        with pytest.raises(Full):
            watched(engine, 9)
        wait_until(lambda: not streams[-1].playing)
        got = [stream.session.num_chunks - start for stream, start in zip(streams, before)]
        assert max(got) - min(got) <= 1, "all had the same share until then"
        assert streams[0].playing
        told = [what for kind, what in opened[-1][1] if kind == "full"]
        assert len(told) == 1 and "has become too slow for 3 streams" in told[0]

        device.share = 0.01  # it recovers, and the newest may play on
        wait_until(lambda: engine.room.capacity() >= 3)
        engine.play(streams[-1]).result(20)
        wait_until(lambda: streams[-1].playing)
