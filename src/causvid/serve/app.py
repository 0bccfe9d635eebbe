"""Routes and sockets, and nothing else: the engine makes the pictures, viewers carry them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

import causvid
from causvid import media
from causvid.bundle import Model
from causvid.errors import UserError
from causvid.serve import jobs, suggestions
from causvid.serve.access import Access
from causvid.serve.engine import Engine, EngineConfig
from causvid.serve.lanes import Job, Stream
from causvid.serve.limits import Limits
from causvid.serve.room import Full
from causvid.serve.viewer import Viewer
from causvid.situation import EDIT, REDRAW, check_seed, read_prompt
from causvid.take import Take

PAGE = files("causvid.serve")
STATIC_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
GUARDED = ("/api/", "/ws", "/metrics")
DRAIN_SECONDS = 15.0
SAVE_SECONDS = 5.0
MAX_JOB_SECONDS = 120


class Guard:
    """Lets in who may come in, before anything else looks at a request."""

    def __init__(self, app: Any, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, send)
            return
        connection = Request(scope) if scope["type"] == "http" else WebSocket(scope, receive, send)
        problem = self.access.problem(connection.headers, connection.query_params)
        if problem is None:
            await self.app(scope, receive, send)
        elif isinstance(connection, WebSocket):
            await connection.close(1008, problem[:120])
        else:
            await JSONResponse({"error": problem}, 403)(scope, receive, send)


def build_app(engine: Engine, access: Access, limits: Limits) -> FastAPI:
    """The web application around an engine that is running."""
    results = jobs.Results()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.stop()
        results.close()

    app = FastAPI(title="causvid", version=causvid.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, access=access)
    model = engine.model
    about = describe_model(model, limits)

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> JSONResponse:
        error.__traceback__ = None  # its frames hold the session, and it is in a cycle with them
        full = isinstance(error, Full)
        return JSONResponse({"error": str(error)}, 503 if full else 400, {"retry-after": "30"} if full else None)

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg'].lower()}; correct it"}, 400)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    # ---- the page --------------------------------------------------------------------------------------------------

    @app.get("/")
    async def page() -> Response:
        return Response((PAGE / "page.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        kind = STATIC_TYPES.get(Path(name).suffix)
        path = next((path for path in (PAGE / "static").iterdir() if path.name == name), None)
        if kind is None or path is None:
            return JSONResponse({"error": "there is no such file"}, 404)
        return Response(path.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})

    # ---- state -----------------------------------------------------------------------------------------------------

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "broken" if engine.broken else "draining" if engine.draining else "ok"
        if state == "ok" and not engine.ready.is_set():
            state = "warming up"
        playing, capacity = engine.room.num_playing(), engine.room.capacity()
        answer = {"state": state, "playing": playing, "capacity": capacity, "room": max(0, capacity - playing)}
        return JSONResponse(answer, 200 if state == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = engine.meters.prometheus(engine.gauges())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/model")
    async def describe() -> dict[str, Any]:
        return about

    # ---- streams ---------------------------------------------------------------------------------------------------

    @app.websocket("/ws")
    async def stream(connection: WebSocket, session: str | None = None) -> None:
        await connection.accept()
        hello = {"type": "hello"} | {key: about[key] for key in ("model", "fps", "width", "height", "chunk")}
        await Viewer(engine, connection, limits, hello).run(session)

    @app.get("/api/sessions/{session}/take")
    async def save_take(session: str) -> Response:
        take = await _take_of(engine, session)
        data = await asyncio.to_thread(take.to_bytes)
        (await _find(engine, session)).saved = engine.draining
        name = f'attachment; filename="causvid-{take.seed}.take"'
        return Response(data, media_type="application/octet-stream", headers={"content-disposition": name})

    @app.post("/api/takes")
    async def open_take(request: Request) -> dict[str, Any]:
        """A saved take as a new session, paused at its end."""
        body = await read_body(request, limits.take_bytes)
        take = await asyncio.to_thread(_read_take, body)
        limits.check_take(take)
        opened = await asyncio.wrap_future(engine.resume(take))
        return {"session": opened.id, "chunks": len(take.chunks)}

    @app.post("/api/sessions/{session}/video")
    async def give_video(
        request: Request,
        session: str,
        use: str = "extend",
        strength: str | None = None,
        of: str = "",
        redraw: bool = False,
    ) -> dict[str, Any]:
        """A video file to extend, or to restyle: where it shows something else than `of`, or all of it anew."""
        stream = await _find(engine, session)
        if use not in ("extend", "restyle"):
            raise UserError(f"a video is used to 'extend' or to 'restyle', not to '{use}'")
        wanted: Any = REDRAW if redraw else EDIT
        if strength is not None:
            wanted = strength if strength == "motion" else _number(strength, "a strength")
        wanted, shown = limits.check_source(wanted, None if redraw else of)
        notes = model.understand(shown).notes if shown else []
        body = await read_body(request, limits.video_bytes)
        clip = await asyncio.to_thread(_read_clip, body, model, limits.video_seconds + 1)
        most = round(limits.video_seconds * model.cfg.fps)
        cut = len(clip) > most
        if cut and use == "extend":
            raise UserError(
                f"this video is longer than {limits.video_seconds:g} s, and a stream goes on from its end; "
                f"cut it to its last {limits.video_seconds:g} s"
            )
        clip = clip[:most]

        def give(session: Any) -> None:
            if use == "extend":
                session.extend(clip)
                return
            session.restyle(None)
            session.restyle(wanted, of=shown)
            session.push(clip)
            stream.source_ends = True

        await asyncio.wrap_future(engine.ask(stream, give))
        return {"frames": len(clip), "seconds": round(len(clip) / model.cfg.fps, 2), "cut": cut, "notes": notes}

    @app.post("/api/sessions/{session}/movie")
    async def make_movie(session: str, start: int = 0, stop: int | None = None, suffix: str = ".mp4") -> dict[str, Any]:
        """What a session has made, as a movie file: a job."""
        take = await _take_of(engine, session)
        end = len(take.chunks) if stop is None else stop
        return jobs.describe(engine.submit(jobs.movie_of(model, results, take, start, end, suffix)))

    # ---- jobs ------------------------------------------------------------------------------------------------------

    @app.post("/api/jobs", status_code=202)
    async def start_job(request: Request) -> dict[str, Any]:
        """{prompt, seconds, seed, steps, window, sink, changes: [[second, prompt, mode], ...], suffix}"""
        job = _read_job(await read_json(request, limits.text_bytes), model, results, limits)
        return jobs.describe(engine.submit(job))

    @app.get("/api/jobs/{job}")
    async def job_state(job: str) -> dict[str, Any]:
        return jobs.describe(_find_job(engine, job))

    @app.delete("/api/jobs/{job}")
    async def cancel_job(job: str) -> dict[str, Any]:
        found = _find_job(engine, job)
        await asyncio.wrap_future(engine.cancel(found))
        return jobs.describe(found)

    @app.get("/api/jobs/{job}/result")
    async def job_result(job: str) -> Response:
        found = _find_job(engine, job)
        if not isinstance(found.result, Path):
            raise UserError(f"this job has no result yet; it is {found.state}")
        suffix = found.result.suffix
        return FileResponse(found.result, media_type=jobs.TYPES[suffix], filename=f"causvid{suffix}")

    return app


# ---- reading what comes from outside -----------------------------------------------------------------------------


async def read_body(request: Request, limit: int) -> bytes:
    """No more than `limit` bytes are ever held, whatever a client claims to send."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise UserError(
                f"this is too large: at most {limit >> 20 or limit} {'MB' if limit >> 20 else 'bytes'} are taken"
            )
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    try:
        value = json.loads(await read_body(request, limit))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("the body of this request is a JSON object") from None
    if not isinstance(value, dict):
        raise UserError("the body of this request is a JSON object")
    return value


def _read_take(body: bytes) -> Take:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload.take"
        path.write_bytes(body)
        try:
            return Take.load(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), "what was sent")) from None


def _read_clip(body: bytes, model: Model, max_seconds: float) -> Any:
    import io

    cfg = model.cfg
    return media.read_video(io.BytesIO(body), cfg.fps, max_seconds=max_seconds, size=(cfg.height, cfg.width))


def _read_job(value: dict[str, Any], model: Model, results: jobs.Results, limits: Limits) -> Job:
    known = {"prompt", "seconds", "seed", "steps", "window", "sink", "changes", "suffix"}
    if value.keys() - known:
        raise UserError(f"a job has no {', '.join(sorted(value.keys() - known))}; it has {', '.join(sorted(known))}")
    seconds = _number(value.get("seconds", 6.75), "seconds")
    if not 0 < seconds <= MAX_JOB_SECONDS:
        raise UserError(f"a job makes more than 0 and at most {MAX_JOB_SECONDS} seconds, not {seconds:g}")
    options = limits.read_options({key: value[key] for key in ("steps", "window", "sink") if key in value})
    options.apply(model.cfg.rollout)
    changes = value.get("changes", [])
    if not isinstance(changes, list) or len(changes) > 100:
        raise UserError("changes are a list of at most 100 [second, prompt, mode]")
    timeline = []
    for change in changes:
        if not isinstance(change, list) or not 2 <= len(change) <= 3:
            raise UserError("a change is [second, prompt] or [second, prompt, mode]")
        text, mode, _ = read_prompt({"text": change[1], "mode": change[2] if len(change) == 3 else "keep"})
        at = _number(change[0], "the time of a change")
        if not 0 <= at <= MAX_JOB_SECONDS:
            raise UserError(f"the time of a change is 0 to {MAX_JOB_SECONDS} seconds, not {at:g}")
        timeline.append((at, text, mode))
    for prompt in (value.get("prompt"), *(text for _, text, _ in timeline)):
        limits.check_prompt(prompt)
    suffix = value.get("suffix", ".mp4")
    if not isinstance(suffix, str) or suffix not in jobs.TYPES:
        raise UserError(f"a movie is one of {', '.join(jobs.TYPES)}")
    return jobs.generation(
        model,
        results,
        value["prompt"],
        seconds=seconds,
        seed=check_seed(value.get("seed", 0)),
        options=options,
        changes=timeline,
        suffix=suffix,
    )


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise UserError(f"{what} is a number, got {value!r}")
    return number


async def _find(engine: Engine, session: str) -> Stream:
    stream = await asyncio.wrap_future(engine.find(session))
    if stream is None:
        raise UserError("there is no such session, or it has ended")
    return stream


def _find_job(engine: Engine, job: str) -> Job:
    found = engine.jobs.get(job)
    if found is None:
        raise UserError("there is no such job, or it was forgotten")
    return found


async def _take_of(engine: Engine, session: str) -> Take:
    return await asyncio.wrap_future(engine.ask(await _find(engine, session), lambda session: session.take()))


def describe_model(model: Model, limits: Limits) -> dict[str, Any]:
    """What a page needs to know about the model."""
    cfg, codec = model.cfg, model.codec
    return {
        "model": cfg.name,
        "version": causvid.__version__,
        "fps": cfg.fps,
        "width": cfg.width,
        "height": cfg.height,
        "chunk": cfg.rollout.chunk * codec.time_factor,
        "chunk_latents": cfg.rollout.chunk,
        "steps": len(cfg.rollout.sigmas) - 1,
        "other_steps": cfg.rollout.shift is not None,
        "window": cfg.rollout.policy.window,
        "sink": cfg.rollout.policy.sink,
        "limits": asdict(limits),
        "words": suggestions.of(model),
    }


# ---- running ---------------------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """On a signal, first lets streams and jobs come to a good end; on a second one, goes at once."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine
        self._leaving: asyncio.Task | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.engine.draining or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        self.engine.room.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_leave)

    def _begin_to_leave(self) -> None:
        self._leaving = self._loop.create_task(self._leave())

    async def _leave(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self.engine.drain, DRAIN_SECONDS)
        end = self._loop.time() + SAVE_SECONDS  # pages are told, and fetch what they show
        while self._loop.time() < end and any(stream.unsaved for stream in list(self.engine.streams.values())):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # the last words to every page
        self.should_exit = True


def serve(
    model: Model,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    token: str | None = None,
    origins: tuple[str, ...] = (),
    cfg: EngineConfig | None = None,
    limits: Limits | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the live studio until a signal comes. `on_ready` is told the address to open."""
    access = Access.of(host, token, origins)
    limits = limits or Limits()
    listener = listen(host, port)
    engine = Engine(model, cfg)
    model.need_student()
    engine.start()
    engine.ready.wait()
    if engine.broken:
        raise RuntimeError(f"the engine did not start: {engine.broken}")
    gc.freeze()  # what is there by now stays: collections look at what comes and goes, and so come often enough
    config = uvicorn.Config(
        build_app(engine, access, limits),
        log_level="warning",
        access_log=False,
        ws_per_message_deflate=False,  # pictures are compressed already; deflate halves the speed
        ws_max_size=limits.picture_bytes + 8192,
        ws_max_queue=4,  # messages of that size may wait per client
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    where = listener.getsockname()
    name = f"[{host}]" if ":" in host else host
    if on_ready is not None:
        fragment = f"#token={access.token}" if access.token else ""
        on_ready(f"http://{name}:{where[1]}/{fragment}")
    Server(config, engine).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # what waits in the system's buffers can no longer be dropped for a slow reader
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from None
    listener.listen(128)
    return listener
