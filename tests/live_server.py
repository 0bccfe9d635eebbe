"""A real server around the tiny random model, in a thread, and small clients for it."""

import asyncio
import contextlib
import json
import struct
import threading
import time
from dataclasses import dataclass

import httpx
import uvicorn
from websockets.sync.client import connect

from causvid.serve.access import Access
from causvid.serve.app import build_app, listen
from causvid.serve.engine import Engine, EngineConfig
from causvid.serve.limits import Limits
from tiny_models import random_model

QUICK = EngineConfig(max_playing=6, warm_up=False, threads=1)


@dataclass
class Running:
    engine: Engine
    url: str
    limits: Limits

    @property
    def http(self):
        return httpx.Client(base_url=self.url, timeout=30)

    @contextlib.contextmanager
    def client(self, session=None, **options):
        query = f"?session={session}" if session else ""
        settings = {"max_size": None, "max_queue": None, "close_timeout": 2} | options
        with connect(self.url.replace("http", "ws") + "/ws" + query, **settings) as socket:
            yield Client(socket)

    def wait_until(self, condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "this did not happen in time"
            time.sleep(0.01)


class Client:
    """What the page does, in the smallest form."""

    def __init__(self, socket):
        self.socket = socket
        self.frames, self.news = [], []

    def send(self, kind, **message):
        self.socket.send(json.dumps({"type": kind} | message))

    def send_picture(self, kind, picture, **header):
        about = json.dumps({"type": kind} | header).encode()
        self.socket.send(struct.pack(">I", len(about)) + about + picture)

    def read(self, timeout=20.0):
        """The next message; frames are kept, and given as ('frame', header, picture)."""
        message = self.socket.recv(timeout=timeout)
        if isinstance(message, bytes):
            (length,) = struct.unpack(">I", message[:4])
            header = json.loads(message[4 : 4 + length]) | {"type": "frame"}
            self.frames.append((header, message[4 + length :]))
            return header
        self.news.append(json.loads(message))
        return self.news[-1]

    def wait_for(self, what, /, timeout=20.0, **fields):
        end = time.monotonic() + timeout
        while True:
            news = self.read(max(0.01, end - time.monotonic()))
            if news["type"] == what and all(news.get(key) == value for key, value in fields.items()):
                return news

    def chunks(self, count, **fields):
        """The next `count` chunks' descriptions."""
        return [self.wait_for("chunk", **fields) for _ in range(count)]


@contextlib.contextmanager
def running(model=None, cfg=QUICK, limits=None, token=None):
    limits = limits or Limits()
    engine = Engine(model or random_model(), cfg)
    engine.start()
    engine.ready.wait()
    listener = listen("127.0.0.1", 0)
    app = build_app(engine, Access("a-long-secret-token" if token else None, True), limits)
    config = uvicorn.Config(
        app, log_level="error", ws_per_message_deflate=False, ws_max_size=limits.picture_bytes + 8192, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield Running(engine, f"http://127.0.0.1:{listener.getsockname()[1]}", limits)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"
