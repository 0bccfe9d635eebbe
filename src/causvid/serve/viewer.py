"""One socket: what a page asks of its stream, and the frames that go to it, the newest first served.

docs/how-to/serve.md describes the messages. A reader that is slow misses frames and never lags behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import MutableMapping
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from causvid import media
from causvid.errors import UserError
from causvid.serve import frames
from causvid.serve.engine import Engine
from causvid.serve.lanes import Stream
from causvid.serve.limits import Bucket, Limits
from causvid.serve.outbox import Outbox, Sender
from causvid.serve.room import Full
from causvid.session import Chunk, Session
from causvid.take import Event

log = logging.getLogger(__name__)

PLAYING = ("open", "play", "pause", "prompt", "set", "source", "rewind", "fork", "replay")
MESSAGES = (*PLAYING, "state", "close", "ping", "took")

TOLD = {
    "failed": "the stream failed inside the server; rewind it, or open another one",
    "replaced": "this session is shown in another window now",
    "draining": "the server is shutting down; save your take to go on with it later",
    "ended": "this session has ended; open another one",
}


@runtime_checkable
class Socket(Sender, Protocol):
    async def receive(self) -> MutableMapping[str, Any]: ...
    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


class Viewer:
    """The page's end of a stream. Lives in the event loop; news from the engine's thread is handed over."""

    def __init__(self, engine: Engine, socket: Socket, limits: Limits, hello: dict[str, Any]) -> None:
        self.engine, self.socket, self.limits, self.hello = engine, socket, limits, hello
        self.stream: Stream | None = None
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(limits.news_characters, 3 * self._chunk_frames(), 3 * self._chunk_frames() // 2)
        self._tasks: set[asyncio.Future] = set()
        self._in_order = asyncio.Lock()
        self._bucket = Bucket(limits.messages_per_second, limits.burst)
        self._mistakes = 0
        self._num_heard = self._num_shown = 0  # chunks from the engine, and those of them compressed or dropped
        self._closed = False

    def _chunk_frames(self) -> int:
        return self.engine.model.cfg.rollout.chunk * self.engine.model.codec.time_factor

    # ---- the socket ------------------------------------------------------------------------------------------------

    async def run(self, session: str | None) -> None:
        """Until the page goes away."""
        sender = asyncio.create_task(self._send())
        try:
            self._tell(self.hello)
            if session is not None:
                await self._answer(lambda: self._attach_by_id(session))
            while not self._closed:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._receive(message)
        finally:
            self._closed = True
            self._detach()
            self._outbox.wake()
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sender

    async def _receive(self, message: MutableMapping[str, Any]) -> None:
        if not self._bucket.take():
            # a flood: what is over the rate is dropped, and answered seldom
            self.engine.meters.count("messages_dropped_total")
            await self._mistake("too many messages; send fewer", told=self._bucket.is_empty)
            return
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            await self._answer(lambda: self._handle_text(text))
        elif data is not None:
            await self._answer(lambda: self._handle_bytes(data))

    async def _answer(self, handle: Any) -> None:
        """Do what a message asks; a mistake in it is told, and is nobody else's."""
        try:
            await handle()
        except UserError as error:
            error.__traceback__ = None  # its frames hold the session, and it is in a cycle with them
            if isinstance(error, Full):
                self._tell({"type": "full", "message": str(error)})
            else:
                await self._mistake(str(error))
        except Exception:
            log.exception("a message failed")
            self.engine.meters.count("failures_total")
            self._tell({"type": "error", "message": "this failed inside the server; its log says where"})

    async def _mistake(self, message: str, told: bool = True) -> None:
        self._mistakes += 1
        if told:
            self._tell({"type": "error", "message": message})
        if self._mistakes > self.limits.mistakes and not self._closed:
            self._closed = True
            with contextlib.suppress(Exception):
                await self.socket.close(1008, "too many mistakes")

    async def _send(self) -> None:
        try:
            while not self._closed:
                await self._outbox.wait()
                await self._outbox.send_to(self.socket)
                self.engine.poke()  # a stream that goes as fast as its reader may go on
        except Exception:  # the page has gone in the middle of a frame
            self._closed = True

    def _tell(self, news: dict[str, Any]) -> None:
        self._outbox.tell(news)

    # ---- from the engine ---------------------------------------------------------------------------------------------

    def _listen(self, stream: Stream, kind: str, what: Any) -> None:
        """In the engine's thread."""
        if kind == "chunk":
            self._num_heard += 1
            what = (*what, stream.session.num_chunks, stream.epoch)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hear, stream, kind, what)

    def _hear(self, stream: Stream, kind: str, what: Any) -> None:
        task = asyncio.ensure_future(self._pass_on(stream, kind, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, stream: Stream, kind: str, what: Any) -> None:
        async with self._in_order:  # news must not overtake pictures that are being compressed
            if stream is not self.stream or self._closed:
                self._num_shown += kind == "chunk"
                return
            if kind == "chunk":
                await self._show(stream, *what)
                self._num_shown += 1
                return
            if kind in ("rewound", "replaying"):
                self._outbox.forget_frames()
                self._tell({"type": kind} | what)
                self._tell_state()
                return
            if kind == "replaced":
                self.stream = None
            message = TOLD.get(kind, what if isinstance(what, str) else None)
            if kind == "failed":
                message = str(what) if isinstance(what, UserError) else TOLD["failed"]
            self._tell({"type": "error" if kind == "failed" else kind, "message": message})
            self._tell_state()

    async def _show(self, stream: Stream, chunk: Any, timing: dict[str, Any], num_chunks: int, epoch: int) -> None:
        made = isinstance(chunk, Chunk)
        about: dict[str, Any] = {
            "type": "chunk",
            "chunk": chunk.index,
            "chunks": num_chunks,
            "prompt": chunk.prompt,
            "frames": len(chunk.frames),
            "digest": frames.digest(chunk.frames),
            "kind": chunk.kind if made else "replay",
            "late": round(timing["late"], 4),
            "waited": None if timing["waited"] is None else round(timing["waited"], 4),
        }
        if made:
            about |= {
                "drift": round(chunk.drift, 4),
                "strength": chunk.strength,
                "timings": {name: round(seconds, 4) for name, seconds in chunk.timings.items()},
            }
        pictures = await self._loop.run_in_executor(None, self._encode, chunk)
        if stream is not self.stream or self._closed or epoch != stream.epoch:
            return  # taken back meanwhile
        self._tell(about)
        last = stream.session.history.events[-1]
        if made and last.chunk == chunk.index and last.value.get("told"):
            self._tell_state()
        self.engine.meters.count("frames_dropped_total", self._outbox.show(pictures))
        self.engine.meters.count("frames_total", len(pictures))
        self.engine.meters.count("chunks_total")
        self.engine.meters.lateness.append(timing["late"])
        if timing["waited"] is not None:
            self.engine.meters.first_frame.append(timing["waited"])

    def _encode(self, chunk: Any) -> list[bytes]:
        count = len(chunk.frames)
        return [
            frames.pack({"chunk": chunk.index, "frame": i, "of": count}, frames.jpeg(frame, self.limits.jpeg_quality))
            for i, frame in enumerate(chunk.frames)
        ]

    # ---- from the page ---------------------------------------------------------------------------------------------

    async def _handle_text(self, text: str) -> None:
        if len(text) > self.limits.text_bytes:
            raise UserError(f"a message has at most {self.limits.text_bytes:,} characters")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError("a message is JSON") from None
        if not isinstance(message, dict) or message.get("type") not in MESSAGES:
            raise UserError(f"a message is an object whose type is one of {', '.join(MESSAGES)}")
        kind = message.pop("type")
        await getattr(self, f"_do_{kind}")(message)

    async def _handle_bytes(self, data: bytes) -> None:
        if len(data) > self.limits.picture_bytes:
            raise UserError(f"a picture has at most {self.limits.picture_bytes >> 20} MB; send a smaller one")
        header, body = frames.unpack(data)
        stream = self._need_stream()
        if header.get("type") not in ("frame", "image"):
            raise UserError("a binary message is a 'frame' to restyle or an 'image' to begin with")
        picture = await self._loop.run_in_executor(None, self._read_picture, body)
        if header["type"] == "frame":
            limit = self.limits.source_chunks * self._chunk_frames()
            while len(stream.inbox) >= limit:  # a camera must not lag: the newest frames count
                stream.inbox.popleft()
            stream.inbox.append(picture)
            self.engine.poke()
            return
        how = header.get("how", "first")
        await self._ask(lambda session: session.begin_with_image(picture, how))
        self._tell_state()

    def _read_picture(self, body: bytes) -> Any:
        cfg = self.engine.model.cfg
        return media.fit(media.read_image(io.BytesIO(body)), cfg.height, cfg.width)

    async def _do_open(self, message: dict[str, Any]) -> None:
        """Begin a session. One that this socket showed before stays open until it is forgotten."""
        prompt, seed = self.limits.check_prompt(message.pop("prompt", None)), message.pop("seed", 0)
        play, pace = message.pop("play", True), _read_pace(message.pop("pace", 1.0))
        options = self.limits.read_options(message)
        stream = await self.engine_call(self.engine.open(prompt, seed, options))
        stream.pace = pace
        self._attach(stream)
        self._tell_understood(stream.session.prompt)
        if play:
            await self._do_play({})

    async def _do_play(self, message: dict[str, Any]) -> None:
        stream = self._need_stream()
        if "pace" in message:
            stream.pace = _read_pace(message["pace"])
        try:
            await self.engine_call(self.engine.play(stream))
        finally:
            self._tell_state()

    async def _do_pause(self, message: dict[str, Any]) -> None:
        await self.engine_call(self.engine.pause(self._need_stream()))
        self._tell_state()

    async def _do_prompt(self, message: dict[str, Any]) -> None:
        text, mode, blend = (
            self.limits.check_prompt(message.get("text")),
            message.get("mode", "keep"),
            message.get("blend", 0),
        )
        await self._ask(lambda session: session.set_prompt(text, mode, blend))
        self._tell_understood(self._need_stream().session.prompt)
        self._tell_state()

    async def _do_set(self, message: dict[str, Any]) -> None:
        stream = self._need_stream()
        if "pace" in message:
            stream.pace = _read_pace(message.pop("pace"))
        if message:
            self.limits.read_options({key: value for key, value in message.items() if key != "seed"})
            await self._ask(lambda session: session.change(**message))
        self._tell_state()

    async def _do_source(self, message: dict[str, Any]) -> None:
        strength, of = self.limits.check_source(message.get("strength"), message.get("of", ""))
        limit = self.limits.source_chunks * self._chunk_frames()
        stream = self._need_stream()
        stream.inbox.clear()

        def restyle(session: Session) -> None:
            stream.source_ends = stream.source_ends and session.restyles and strength is not None
            session.restyle(strength, of=of, limit=limit)

        await self._ask(restyle)
        if of and strength is not None:
            self._tell_understood(of, streamed=False)
        self._tell_state()

    async def _do_rewind(self, message: dict[str, Any]) -> None:
        """Back to the first `to` chunks: those that the page has shown, not those that lie ahead of it."""
        keep = message.get("to")
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
            raise UserError("a rewind says how many chunks to keep, as 'to'")
        await self.engine_call(self.engine.rewind(self._need_stream(), keep))

    async def _do_fork(self, message: dict[str, Any]) -> None:
        fork = await self.engine_call(self.engine.fork(self._need_stream()))
        self._tell({"type": "forked", "session": fork.id})

    async def _do_replay(self, message: dict[str, Any]) -> None:
        start = message.get("start", 0)
        stream = self._need_stream()
        if not isinstance(start, int) or not 0 <= start < max(1, stream.session.num_chunks):
            raise UserError(f"a replay starts at one of the {stream.session.num_chunks} chunks")
        await self.engine_call(self.engine.replay(stream, start))

    async def _do_state(self, message: dict[str, Any]) -> None:
        self._need_stream()
        self._tell_state()

    async def _do_close(self, message: dict[str, Any]) -> None:
        await self.engine_call(self.engine.close(self._need_stream()))
        async with self._in_order:  # news that it has ended may wait for a picture that is being compressed
            self.stream = None

    async def _do_ping(self, message: dict[str, Any]) -> None:
        self._tell({"type": "pong", "echo": str(message.get("echo", ""))[:100]})

    async def _do_took(self, message: dict[str, Any]) -> None:
        count = message.get("frames")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise UserError("'took' says how many frames of this socket are done with, as 'frames'")
        self._outbox.took(count)

    # ---- the stream --------------------------------------------------------------------------------------------------

    async def engine_call(self, future: Future) -> Any:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout=120)

    async def _ask(self, command: Any) -> Any:
        return await self.engine_call(self.engine.ask(self._need_stream(), command))

    def _need_stream(self) -> Stream:
        if self.stream is None:
            raise UserError("there is no session on this socket yet; send 'open' first")
        return self.stream

    async def _attach_by_id(self, session: str) -> None:
        stream = await self.engine_call(self.engine.find(session))
        if stream is None:
            self._tell({"type": "ended", "message": "this session has ended; open another one"})
            return
        self._attach(stream)

    def _attach(self, stream: Stream) -> None:
        self._detach()
        stream.tell("replaced")
        self.stream = stream
        stream.num_unsent = self._num_unsent
        stream.listener = self._listen
        stream.touched = time.monotonic()
        self._outbox.forget_frames()
        self._tell_state()

    def _num_unsent(self) -> int:
        return self._outbox.num_frames + self._chunk_frames() * (self._num_heard - self._num_shown)

    def _detach(self) -> None:
        """Nobody watches: the stream pauses, and is parked in a while."""
        stream, self.stream = self.stream, None
        if stream is not None and stream.listener == self._listen:
            stream.listener, stream.num_unsent = None, int
            stream.touched = time.monotonic()
            self.engine.pause(stream)

    def _tell_understood(self, prompt: str, streamed: bool = True) -> None:
        """How a prompt is read, if that is not word by word."""
        understood = self.engine.model.understand(prompt)
        notes = understood.streamed_notes if streamed else understood.notes
        if notes:
            self._tell({"type": "understood", "prompt": prompt, "text": understood.text, "notes": notes})

    def _tell_state(self) -> None:
        stream = self.stream
        if stream is not None:
            self._tell(describe(stream))


def describe(stream: Stream) -> dict[str, Any]:
    """What a page shows of a session."""
    session, now = stream.session, stream.session.asked
    cfg = now.options.apply(session.model.cfg.rollout)
    events = [event for event in list(session.history.events) if event.kind != "start"]
    return {
        "type": "state",
        "session": stream.id,
        "playing": stream.playing,
        "replaying": stream.reel is not None,
        "prompt": session.prompt,
        "asked": session.asked_prompt,
        "first_prompt": session.history.events[0].value["text"],
        "seed": now.seed,
        "steps": len(cfg.sigmas) - 1,
        "window": cfg.policy.window,
        "sink": cfg.policy.sink,
        "pace": stream.pace,
        "restyles": session.restyles,
        "chunks": session.num_chunks,
        "parked": session.is_parked and session.num_chunks > 0,
        "speed": round(stream.speed, 2),
        "events": [_describe_event(event) for event in events[-200:]],
    }


def _describe_event(event: Event) -> dict[str, Any]:
    value = {name: value for name, value in event.value.items() if name != "story"}  # its parts are events of their own
    return {"chunk": event.chunk, "kind": event.kind, **value}


def _read_pace(pace: Any) -> float | None:
    if pace is None or (isinstance(pace, int | float) and not isinstance(pace, bool) and 0.1 <= pace <= 8):
        return pace
    raise UserError("a pace is a number from 0.1 to 8 times real time, or null for as fast as it goes")
