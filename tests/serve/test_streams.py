"""Through the socket: what a page sees of a stream."""

import asyncio
import io
import time

import numpy as np
import pytest
from PIL import Image

from causvid import media
from causvid.serve.engine import EngineConfig
from causvid.serve.frames import digest
from causvid.serve.limits import Limits
from causvid.serve.outbox import Outbox
from causvid.take import Take
from live_server import running
from tiny_models import random_model


@pytest.fixture(scope="module")
def server():
    with running() as one:
        yield one


def expected_digests(prompt, seed, count, change=None, **options):
    """What a session that runs alone makes."""
    session = random_model().session(prompt, seed=seed, **options)
    out = []
    for index in range(count):
        if change and index == change[0]:
            session.set_prompt(*change[1:])
        out.append(digest(session.next_chunk().frames))
    return out


def picture(seed=0, kind="png", size=(30, 50, 3)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def test_a_stream_is_what_a_session_makes_and_its_frames_come_in_order(server):
    with server.client() as client:
        hello = client.wait_for("hello")
        assert (hello["width"], hello["height"], hello["fps"]) == (40, 24, 12)
        client.send("open", prompt="a red car", seed=3, pace=None)
        client.send("set", pace=None)
        chunks = client.chunks(4)
        assert [c["digest"] for c in chunks] == expected_digests("a red car", 3, 4)
        assert [c["chunk"] for c in chunks] == [0, 1, 2, 3] and {c["kind"] for c in chunks} == {"made"}
        assert chunks[0]["waited"] < 5 and {"commit", "denoise", "decode"} <= chunks[0]["timings"].keys()
        while len(client.frames) < 9 + 12:
            client.read()
        order = [(about["chunk"], about["frame"]) for about, _ in client.frames]
        assert order == sorted(order) and order[0] == (0, 0)
        shown = Image.open(io.BytesIO(client.frames[0][1]))
        assert shown.size == (40, 24) and shown.format == "JPEG"


def test_a_prompt_takes_hold_with_the_next_chunk(server):
    with server.client() as client:
        client.send("open", prompt="a red car", play=False)
        client.wait_for("state")
        client.send("prompt", text="a blue bus", mode="recache")
        state = client.wait_for("state", prompt="a blue bus")
        assert state["events"] == [] and state["chunks"] == 0 and not state["playing"]
        client.send("play", pace=None)
        first = client.wait_for("chunk")
        assert first["prompt"] == "a blue bus"
        assert first["digest"] == expected_digests("a red car", 0, 1, (0, "a blue bus", "recache"))[0]


def test_rewound_forked_saved_and_replayed_streams_are_equal(server):
    with server.client() as client:
        client.send("open", prompt="a red car", seed=9, play=True)
        session = client.wait_for("state")["session"]
        client.send("set", pace=None)
        digests = [c["digest"] for c in client.chunks(5)]
        client.send("pause")
        client.wait_for("state", playing=False)
        client.send("rewind", to=2)
        assert client.wait_for("rewound")["chunks"] == 2
        client.send("fork")
        fork = client.wait_for("forked")["session"]
        client.send("play")
        client.wait_for("state", playing=True)
        assert [c["digest"] for c in client.chunks(3)] == digests[2:5]
        with server.client(fork) as twin:
            twin.wait_for("state", session=fork, chunks=2)
            twin.send("play", pace=None)
            assert [c["digest"] for c in twin.chunks(3)] == digests[2:5]
            twin.send("prompt", text="a blue bus", mode="flush")
            twin.wait_for("chunk", prompt="a blue bus")
        client.send("pause")
        client.wait_for("state", playing=False)
        with server.http as http:
            saved = http.get(f"/api/sessions/{session}/take").content
    with running() as restarted, restarted.http as http:
        opened = http.post("/api/takes", content=saved).json()
        with restarted.client(opened["session"]) as client:
            client.wait_for("state", chunks=opened["chunks"])
            client.send("set", pace=None)
            client.send("replay")
            client.wait_for("replaying")
            again = client.chunks(opened["chunks"], kind="replay")
            assert [c["digest"] for c in again][:5] == digests
            client.wait_for("replayed")
            client.send("play")
            onwards = client.wait_for("chunk", kind="made")
            want = expected_digests("a red car", 9, opened["chunks"] + 1)[-1]
            assert onwards["digest"] == want, "the take goes on as the stream would have"


def test_streams_that_share_the_device_are_what_they_would_be_alone():
    """Exact batches: four at once, at different places, each equal to the last bit."""
    with running() as server:
        clients = [server.client() for _ in range(4)]
        opened = [context.__enter__() for context in clients]
        for seed, client in enumerate(opened):
            client.send("open", prompt=f"a red car {seed}", seed=seed, steps=4 - seed % 2)
            client.send("set", pace=None)
        for seed, client in enumerate(opened):
            got = [c["digest"] for c in client.chunks(4)]
            assert got == expected_digests(f"a red car {seed}", seed, 4, steps=4 - seed % 2)
        with server.http as http:
            lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[0] != "#")
        assert int(lines["causvid_passes_total"]) > 1.5 * int(lines["causvid_batches_total"]), "they did share"
        for context in clients:
            context.__exit__(None, None, None)


def test_an_image_begins_a_shot_and_frames_are_restyled(server):
    with server.client() as client:
        client.send("open", prompt="a red car")
        client.send("set", pace=None)
        client.wait_for("chunk")
        client.send_picture("image", picture(), how="first")
        assert client.wait_for("chunk", kind="given")["frames"] == 1
        client.send("source", strength="motion")
        client.wait_for("state", restyles=True)
        for index in range(24):
            client.send_picture("frame", picture(index, "jpeg"))
        restyled = [client.wait_for("chunk", kind="restyled") for _ in range(2)]
        assert all(0.9 <= c["strength"] <= 1.0 for c in restyled)
        client.send("source", strength=None)
        client.wait_for("chunk", kind="made")


def test_a_video_is_extended_or_restyled(server, tmp_path):
    clip = np.random.default_rng(1).integers(0, 256, (22, 24, 40, 3), dtype=np.uint8)
    body = media.write_video(tmp_path / "clip.mp4", clip, 12).read_bytes()
    with server.client() as client, server.http as http:
        client.send("open", prompt="a red car", play=False)
        session = client.wait_for("state")["session"]
        assert http.post(f"/api/sessions/{session}/video?use=extend", content=body).json()["frames"] == 22
        client.send("play", pace=None)
        assert [c["kind"] for c in client.chunks(3)] == ["given", "given", "made"]
        use = {"use": "restyle", "strength": 0.5, "of": "a blue bus"}
        http.post(f"/api/sessions/{session}/video", params=use, content=body).raise_for_status()
        assert client.wait_for("chunk", kind="restyled")["strength"] == 0.5
        client.wait_for("source_ended")
        assert not client.wait_for("state")["restyles"]
        client.wait_for("chunk", kind="made")  # the file has ended, the stream has not
        wrong = http.post(f"/api/sessions/{session}/video?use=restyle&redraw=perhaps", content=body)
        assert wrong.status_code == 400 and "redraw" in wrong.json()["error"]
        client.send("source", strength=0.5, of=5)
        assert "in words" in client.wait_for("error")["message"]
        redrawn = {"use": "restyle", "redraw": True}
        http.post(f"/api/sessions/{session}/video", params=redrawn, content=body).raise_for_status()
        client.wait_for("chunk", kind="restyled")
        (tmp_path / "a.take").write_bytes(http.get(f"/api/sessions/{session}/take").content)
        events = Take.load(tmp_path / "a.take").events
        assert [e.value["of"] for e in events if e.kind == "source" and e.value["strength"]] == ["a blue bus", None]
        for bad, match in [(b"no video", "not a video"), (b"", "not a video")]:
            answer = http.post(f"/api/sessions/{session}/video", content=bad)
            assert answer.status_code == 400 and match in answer.json()["error"]


def test_a_file_that_is_restyled_otherwise_still_ends(tmp_path):
    clip = np.random.default_rng(1).integers(0, 256, (22, 24, 40, 3), dtype=np.uint8)
    body = media.write_video(tmp_path / "clip.mp4", clip, 12).read_bytes()
    with running() as server, server.client() as client, server.http as http:
        client.send("open", prompt="a red car", play=False, pace=None)
        session = client.wait_for("state")["session"]
        http.post(f"/api/sessions/{session}/video?use=restyle", content=body).raise_for_status()
        client.send("source", strength=0.5, of="a blue bus")
        client.send_picture("frame", picture())  # of a camera that nobody asked for
        client.send("play")
        assert client.wait_for("chunk")["strength"] == 0.5
        client.wait_for("source_ended")
        client.wait_for("chunk", kind="made")


def test_a_camera_takes_the_place_of_a_file(tmp_path):
    clip = np.random.default_rng(1).integers(0, 256, (22, 24, 40, 3), dtype=np.uint8)
    body = media.write_video(tmp_path / "clip.mp4", clip, 12).read_bytes()
    with running() as server, server.client() as client, server.http as http:
        client.send("open", prompt="a red car", play=False, pace=None)
        stream = server.engine.streams[client.wait_for("state")["session"]]
        http.post(f"/api/sessions/{stream.id}/video?use=restyle", content=body).raise_for_status()
        client.send_picture("frame", picture())
        client.send("state")
        client.wait_for("state")
        server.wait_until(lambda: not stream.inbox)
        assert stream.session.num_missing_frames == 0 and len(stream.session._inputs.source) == len(clip)
        for strength in (None, 0.5):
            client.send("source", strength=strength)
        client.wait_for("state", restyles=True)
        assert not stream.source_ends and stream.session.num_missing_frames == 9


def test_a_video_that_is_too_long_is_cut_for_restyling_and_refused_for_extending(tmp_path):
    """A stream goes on from the end of a video: going on from its middle would be another thing than was asked."""
    clip = np.random.default_rng(1).integers(0, 256, (22, 24, 40, 3), dtype=np.uint8)
    body = media.write_video(tmp_path / "clip.mp4", clip, 12).read_bytes()
    with running(limits=Limits(video_seconds=1.5)) as server, server.client() as client, server.http as http:
        client.send("open", prompt="a red car", play=False)
        session = client.wait_for("state")["session"]
        refused = http.post(f"/api/sessions/{session}/video?use=extend", content=body)
        assert refused.status_code == 400 and "its last 1.5 s" in refused.json()["error"]
        followed = http.post(f"/api/sessions/{session}/video?use=restyle", content=body).json()
        assert followed == {"frames": 18, "seconds": 1.5, "cut": True, "notes": []}


def test_a_rewound_stream_no_longer_shows_what_is_gone(server):
    with server.client() as client:
        client.send("open", prompt="a red car", pace=None)
        client.chunks(6)
        client.send("pause")
        client.send("set", pace=0.5)
        client.send("replay")
        client.wait_for("chunk", kind="replay")
        client.send("rewind", to=1)
        assert client.wait_for("rewound")["chunks"] == 1
        client.send("play", pace=None)
        assert [chunk["chunk"] for chunk in client.chunks(2)] == [1, 2]


def test_pace_is_that_of_real_time_unless_asked_otherwise(server):
    with server.client() as client:
        client.send("open", prompt="a red car")
        client.wait_for("chunk")
        start = time.monotonic()
        client.chunks(3)
        assert 2.0 < time.monotonic() - start < 4.5  # three chunks of a second each


def test_a_session_outlives_its_socket_and_is_parked(server):
    with running(cfg=EngineConfig(max_playing=4, warm_up=False, park_after=0.3, forget_after=3.0)) as server:
        with server.client() as client:
            client.send("open", prompt="a red car", seed=4)
            client.send("set", pace=None)
            session = client.wait_for("state")["session"]
            client.chunks(2)
        stream = server.engine.streams[session]
        server.wait_until(lambda: stream.session.is_parked)
        made = stream.session.num_chunks
        with server.client(session) as client:
            assert client.wait_for("state")["parked"]
            client.send("play", pace=None)
            assert client.wait_for("chunk")["digest"] == expected_digests("a red car", 4, made + 1)[-1]
        server.wait_until(lambda: session not in server.engine.streams)
        with server.client(session) as client:
            client.wait_for("ended")


def test_only_one_window_shows_a_session(server):
    with server.client() as first:
        first.send("open", prompt="a red car")
        session = first.wait_for("state")["session"]
        with server.client(session) as second:
            second.wait_for("state")
            first.wait_for("replaced")
            second.send("play")
            second.wait_for("chunk")


def test_full_is_told_with_the_numbers():
    cfg = EngineConfig(max_playing=1, max_sessions=2, max_jobs=0, warm_up=False)
    with running(cfg=cfg) as server, server.client() as a, server.client() as b, server.client() as c:
        a.send("open", prompt="a red car")
        a.wait_for("chunk")
        b.send("open", prompt="a red car")
        assert "1 stream at 12 frames a second, and 1 is playing" in b.wait_for("full")["message"]
        c.send("open", prompt="a red car")
        assert "2 sessions are open" in c.wait_for("full")["message"]
        with server.http as http:
            assert http.get("/health").json() == {"state": "ok", "playing": 1, "capacity": 1, "room": 0}
            answer = http.post("/api/jobs", json={"prompt": "a red car"})
            assert answer.status_code == 503 and answer.headers["retry-after"]
        a.send("pause")
        a.wait_for("state", playing=False)
        b.send("play")
        b.wait_for("chunk")


def test_a_job_makes_a_movie_and_tells_how_far_it_is(server, tmp_path):
    with server.http as http:
        wanted = {"prompt": "a red car", "seconds": 2, "seed": 1, "changes": [[1, "a blue bus", "recache"]]}
        job = http.post("/api/jobs", json=wanted).json()["job"]
        seen = []
        server.wait_until(lambda: seen.append(http.get(f"/api/jobs/{job}").json()) or seen[-1]["state"] == "done")
        assert seen[-1]["progress"] == 1
        (tmp_path / "a.mp4").write_bytes(http.get(seen[-1]["result"]).content)
        assert len(media.read_video(tmp_path / "a.mp4", 12)) == 24
        for bad in [
            {},
            {"prompt": 3},
            {"prompt": "x", "seconds": 1e9},
            {"prompt": "x", "seconds": 10**400},
            {"prompt": "x", "suffix": []},
            {"prompt": "x", "changes": [[1e308, "y"]]},
            {"prompt": "x", "changes": [[-1, "y"]]},
            {"prompt": "x", "tempo": 1},
            {"prompt": "x" * 9999},
        ]:
            assert http.post("/api/jobs", json=bad).status_code == 400, bad
        assert http.post("/api/jobs", content=b"{" * 9999).status_code == 400
        long = http.post("/api/jobs", json={"prompt": "x", "seconds": 120}).json()["job"]
        assert http.delete(f"/api/jobs/{long}").json()["state"] == "cancelled"


def test_what_was_made_is_a_movie(server, tmp_path):
    with server.client() as client, server.http as http:
        client.send("open", prompt="a red car")
        client.send("set", pace=None)
        session = client.wait_for("state")["session"]
        client.chunks(4)
        job = http.post(f"/api/sessions/{session}/movie?start=1&stop=3").json()["job"]
        server.wait_until(lambda: http.get(f"/api/jobs/{job}").json()["state"] == "done")
        (tmp_path / "a.mp4").write_bytes(http.get(f"/api/jobs/{job}/result").content)
        assert len(media.read_video(tmp_path / "a.mp4", 12)) == 24
        (tmp_path / "a.take").write_bytes(http.get(f"/api/sessions/{session}/take").content)
        assert len(Take.load(tmp_path / "a.take").chunks) >= 4
        assert http.post("/api/takes", content=b"rubbish").status_code == 400


def test_a_slow_reader_misses_frames_and_never_lags(server):
    """It reads nothing for a while; what comes then is the newest."""
    with server.client() as fast, server.client(max_queue=2, close_timeout=0.2) as slow:
        for client in (slow, fast):
            client.send("open", prompt="a red car", pace=8)
        stream = server.engine.streams[slow.wait_for("state")["session"]]
        fast.chunks(16)
        assert stream.num_unsent() <= 36
        assert stream.session.num_chunks > 3, "it was not kept waiting by its reader"


def test_a_reader_that_tells_what_it_took_is_sent_a_little_ahead_of_that():
    class Page:
        def __init__(self):
            self.got = []

        async def send_text(self, data):
            self.got.append(data)

        async def send_bytes(self, data):
            self.got.append(data)

    async def told():
        page, outbox = Page(), Outbox(1000, 9, window=4)
        outbox.took(0)
        assert outbox.show([b"0", b"1", b"2"]) == 0
        outbox.show([b"3", b"4", b"5"])
        await outbox.send_to(page)
        assert page.got == [b"0", b"1", b"2", b"3"] and outbox.num_frames == 2
        assert outbox.show([b"6", b"7", b"8"]) == 2, "what waits makes room for the newest"
        outbox.tell({"news": 1})
        await outbox.send_to(page)
        assert page.got[4:] == ['{"news": 1}'], "news are not held back"
        outbox.took(2)
        await outbox.send_to(page)
        assert page.got[5:] == [b"6", b"7"]
        outbox.took(1000)  # not more than was sent
        outbox.show([b"9"])
        await outbox.send_to(page)
        assert page.got[7:] == [b"8", b"9"]

    asyncio.run(told())


def test_the_page_and_what_it_loads(server):
    with server.http as http:
        page = http.get("/")
        assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
        for name in set(__import__("re").findall(r'(?:src|href)="/(static/[^"]+)"', page.text)):
            assert http.get(f"/{name}").status_code == 200, name
        assert "http://" not in page.text.replace("http://www.w3.org", "") and "https://" not in page.text
        for name in ("../app.py", "%2e%2e%2fapp.py", "app.py", "none.js", f"{'a' * 300}.js"):
            assert http.get(f"/static/{name}").status_code == 404
        about = http.get("/api/model").json()
        assert about["chunk"] == 12 and about["words"]["examples"]
