"""What goes wrong on a network goes wrong for one client only."""

import dataclasses
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from causvid.errors import UserError
from causvid.serve import frames
from causvid.serve.access import Access
from causvid.serve.app import listen
from causvid.serve.limits import Bucket, Limits
from causvid.serve.meters import Meters
from causvid.take import Event, Take
from conftest import random_model
from live_server import running


@pytest.fixture(scope="module")
def server():
    with running(limits=Limits(messages_per_second=1e6, burst=10**6, mistakes=10**6)) as one:
        yield one


def png(size=(30, 50)):
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "png")
    return out.getvalue()


KINDS = [
    "open",
    "play",
    "pause",
    "prompt",
    "set",
    "source",
    "rewind",
    "fork",
    "replay",
    "state",
    "ping",
    "took",
    "warp",
]
FIELDS = [
    "text",
    "prompt",
    "mode",
    "blend",
    "seed",
    "steps",
    "window",
    "sink",
    "strength",
    "of",
    "to",
    "start",
    "pace",
    "play",
    "frames",
]
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    10**30,
    0.5,
    float("nan"),
    "",
    "recache",
    "a red car",
    "\x00",
    "ü" * 40,
    [],
    {},
    [[]],
]


def fuzzed(rng):
    """A message as no page sends it: JSON of every shape, broken text, pictures that are none."""
    message = {"type": rng.choice(KINDS)} | {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randrange(4))}
    text = json.dumps(message)
    kind = rng.randrange(6)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        return rng.choice(["[" * 5000, "null", '"x"', "{}", "{" * 50, '{"type": ["open"]}', "\x00", "1e999"])
    if kind == 2:
        return rng.randbytes(rng.randrange(200))
    if kind == 3:
        about = json.dumps({"type": rng.choice(["frame", "image", "x"]), "how": rng.choice(VALUES)}).encode()
        body = rng.choice([b"", png(), png()[:40], rng.randbytes(90)])
        return struct.pack(">I", rng.choice([len(about), 0, 2**32 - 1])) + about + body
    return text


def well(server, seed=1):
    """Another client notices nothing."""
    with server.client() as client:
        client.send("open", prompt="a red car", seed=seed, pace=None)
        got = [c["digest"] for c in client.chunks(2)]
        client.send("close")
        client.wait_for("ended")
    session = random_model().session("a red car", seed=seed)
    assert got == [frames.digest(session.next_chunk().frames) for _ in range(2)]


def test_fuzzed_messages_are_answered_and_harm_nobody(server):
    rng = random.Random(5)
    with server.client() as client:
        for _ in range(600):
            client.socket.send(fuzzed(rng))
            if rng.random() < 0.02:
                client.send("close")  # or sessions would pile up
        client.send("ping", echo="the end")
        client.wait_for("pong", echo="the end", timeout=60)
        client.send("close")
    for stream in list(server.engine.streams.values()):
        server.engine.close(stream).result(20)
    assert server.engine.broken is None and server.engine.meters.counts["failures_total"] == 0
    well(server)


def test_clients_that_vanish_in_the_middle_of_a_frame(server):
    for _ in range(4):
        raw = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        with server.client() as client:
            client.send("open", prompt="a red car", pace=None)
            client.wait_for("chunk")
            client.socket.socket.shutdown(socket.SHUT_RDWR)  # no goodbye
        raw.sendall(b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgr")  # nor even a beginning
        raw.close()
    server.wait_until(lambda: not any(stream.watched for stream in server.engine.streams.values()))
    server.wait_until(lambda: server.engine.room.num_playing() == 0)
    for stream in list(server.engine.streams.values()):
        server.engine.close(stream).result(20)
    well(server)


def test_a_flood_is_thinned_out_and_its_sender_sent_away():
    with running(limits=Limits(messages_per_second=20, burst=30, mistakes=40)) as server:
        with server.client() as client, pytest.raises(ConnectionClosed) as closed:
            for _ in range(500):
                client.send("ping")
            while True:
                client.read()
        assert closed.value.rcvd.code == 1008
        assert server.engine.meters.counts["messages_dropped_total"] > 0
        well(server)


def test_what_is_too_large_is_refused():
    limits = Limits(prompt_characters=20, text_bytes=2000, picture_bytes=5000, video_bytes=3000, take_bytes=3000)
    with running(limits=limits) as server, server.http as http:
        with server.client() as client:
            client.send("open", prompt="x" * 21)
            assert "20 characters" in client.wait_for("error")["message"]
            client.send("open", prompt="a red car", play=False, nonsense="x" * 3000)
            assert "2,000" in client.wait_for("error")["message"]
            for greedy in ({"steps": 1000}, {"window": 9999}):
                client.send("open", prompt="a red car", **greedy)
                assert "at most" in client.wait_for("error")["message"]
            client.send("open", prompt="a red car", play=False)
            session = client.wait_for("state")["session"]
            client.send_picture("image", b"x" * 6000)
            assert "at most" in client.wait_for("error")["message"]
            endless = (b"x" * 1000 for _ in range(100))  # its length is not told beforehand
            answer = http.post(f"/api/sessions/{session}/video", content=endless)
            assert answer.status_code == 400 and "too large" in answer.json()["error"]
            assert http.post("/api/takes", content=b"x" * 4000).status_code == 400
            with pytest.raises(ConnectionClosed) as closed:
                client.socket.send(b"x" * 20_000)
                client.wait_for("never")
            assert closed.value.rcvd.code == 1009
        well(server)


@pytest.mark.parametrize("where", ["start", "settings"])
@pytest.mark.parametrize("greedy", [{"steps": 65}, {"window": 257}])
def test_a_take_asks_for_no_more_than_a_client_may(server, where, greedy):
    session = random_model().session("a red car", **(greedy if where == "start" else {}))
    if where == "settings":
        session.next_chunk()
        take = session.take()
        take = dataclasses.replace(take, events=(*take.events, Event(1, 1.0, "settings", {"seed": 2} | greedy)))
    else:
        take = session.take()
    with server.http as http:
        answer = http.post("/api/takes", content=take.to_bytes())
        assert answer.status_code == 400 and "at most" in answer.json()["error"]
        allowed = random_model().session("a red car", steps=2, window=12).take()
        assert http.post("/api/takes", content=allowed.to_bytes()).status_code == 200


def test_a_take_whose_last_prompt_lacks_a_mode_harms_nobody(server):
    take = random_model().session("a red car").take()
    take = dataclasses.replace(take, events=(*take.events, Event(0, 1.0, "prompt", {"text": "a blue bus"})))
    with server.http as http:
        session = http.post("/api/takes", content=take.to_bytes()).json()["session"]
    with server.client(session) as client:
        client.send("replay")
        client.wait_for("replayed")
        client.send("play")
        client.wait_for("chunk", prompt="a blue bus")
        client.send("close")
        client.wait_for("ended")
    assert server.engine.broken is None


def test_pages_of_other_origins_and_names_are_refused(server):
    where = server.url.replace("http", "ws") + "/ws"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(where, additional_headers=headers)
        assert refused.value.response.status_code == 403
    with server.http as http:
        answer = http.get("/api/model", headers={"host": "evil.example"})  # a name that was pointed at this machine
        assert answer.status_code == 403 and "evil.example" in answer.json()["error"]
        for unreadable in ({"host": "["}, {"origin": "http://["}):
            answer = http.get("/api/model", headers=unreadable)
            assert answer.status_code == 403 and "cannot be read" in answer.json()["error"]
        assert http.get("/api/model", headers={"origin": server.url}).status_code == 200
    with connect(where, origin=server.url) as allowed:
        assert json.loads(allowed.recv(timeout=10))["type"] == "hello"


def test_beyond_this_machine_a_token_is_needed():
    assert Access.of("127.0.0.1", None).token is None and Access.of("localhost", None).local_only
    beyond = Access.of("0.0.0.0", None)
    assert len(beyond.token) >= 20 and not beyond.local_only
    assert Access.of("0.0.0.0", None).token != beyond.token
    with pytest.raises(UserError, match="12 characters"):
        Access.of("0.0.0.0", "short")
    with running(token=True) as server, server.http as http:
        assert http.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "a-long-secret"}):
            for path in ("/api/model", "/metrics"):
                assert http.get(path, headers=headers).status_code == 403
        assert http.get("/api/model", headers={"authorization": "Bearer a-long-secret-token"}).status_code == 200
        where = server.url.replace("http", "ws") + "/ws"
        with pytest.raises(InvalidStatus):
            connect(where)
        with connect(where + "?token=a-long-secret-token") as allowed:
            assert json.loads(allowed.recv(timeout=10))["type"] == "hello"


def test_shutting_down_pauses_streams_and_takes_nothing_new(server):
    with running() as server, server.client() as client, server.http as http:
        client.send("open", prompt="a red car")
        session = client.wait_for("state")["session"]
        client.wait_for("chunk")
        server.engine.drain(10)
        client.wait_for("draining")
        stream = server.engine.streams[session]
        assert not stream.playing and stream.work is None, "the chunk came to its end"
        client.send("play")
        assert "shutting down" in client.wait_for("full")["message"]
        assert http.get("/health").status_code == 503
        assert http.post("/api/jobs", json={"prompt": "x"}).status_code == 503
        assert http.get(f"/api/sessions/{session}/take").status_code == 200, "what was made can still be saved"


def test_a_signal_lets_chunks_end_and_says_goodbye(tmp_path):
    """The whole server as a process of its own, and SIGTERM."""
    code = (
        "from conftest import random_model; from causvid.serve.app import serve;"
        "serve(random_model(), port=0, on_ready=lambda url: print(url, flush=True))"
    )
    folder = str(Path(__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": folder}
    ) as process:
        try:
            url = process.stdout.readline().strip()
            with connect(url.replace("http", "ws") + "ws", max_size=None, max_queue=None) as socket_:
                socket_.send(json.dumps({"type": "open", "prompt": "a red car"}))
                told, session, saved = [], "", b""
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        message = socket_.recv(timeout=30)
                        if isinstance(message, str):
                            news = json.loads(message)
                            told.append(news["type"])
                            session = news.get("session", session)
                            if told[-1] == "chunk" and "draining" not in told:
                                process.send_signal(signal.SIGTERM)
                            if told[-1] == "draining":
                                time.sleep(1)  # a page that is slow to answer
                                saved = httpx.get(f"{url}api/sessions/{session}/take", timeout=10).content
                (tmp_path / "a.take").write_bytes(saved)
                assert Take.load(tmp_path / "a.take").chunks, "what was shown could still be saved"
                assert "draining" in told and closed.value.rcvd.code in (1001, 1012)
            assert process.wait(20) in (0, -signal.SIGTERM)
        finally:
            process.kill()


def test_a_port_in_use_is_told():
    taken = listen("127.0.0.1", 0)
    with taken, pytest.raises(UserError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", 99_999)


def test_binary_messages_are_taken_apart_with_care():
    assert frames.unpack(frames.pack({"a": 1}, b"xyz")) == ({"a": 1}, b"xyz")
    for bad in (b"", b"\0\0", b"\xff\xff\xff\xff{}", struct.pack(">I", 9) + b"{}", struct.pack(">I", 2) + b"[]x"):
        with pytest.raises(UserError):
            frames.unpack(bad)


def test_a_bucket_fills_again():
    bucket = Bucket(rate=100, burst=3)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    time.sleep(0.05)
    assert bucket.take()


def test_metrics_are_well_formed_and_say_what_a_chunk_costs():
    meters = Meters()
    assert meters.chunk_seconds(5) is None
    for rows, seconds in ((1, 0.02), (4, 0.05)):
        meters.saw_pass(rows, seconds)
    meters.chunk_overhead.add(0.01)
    assert meters.chunk_seconds(5) == pytest.approx(5 * 0.05 / 4 + 0.01)
    for _ in range(100):
        meters.saw_pass(1, 0.06)
    assert meters.chunk_seconds(5) == pytest.approx(5 * 0.15 / 4 + 0.01, rel=1e-3), "the device is three times slower"
    meters.first_frame.extend([0.1, 0.2])
    for line in meters.prometheus({"capacity": 3}).splitlines():
        assert line.startswith("# TYPE causvid_") or float(line.rsplit(" ", 1)[1]) >= 0
