"""Clients of every kind on one server, on this machine only: does it crash, leak, or treat anybody unfairly?

    python scripts/soak.py [--minutes 10] [--clients 32] [--fuzz 10000] [--url http://127.0.0.1:7860 --pid PID]

Without --url it starts a server of its own with the packaged model. Most clients watch, leave after half a minute, and
come again; two read slowly, two vanish in the middle of a frame, one floods, one sends fuzzed messages. Prints a report
whose lines end in a verdict, and ends with 1 if one of them is bad.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_server
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from rich.console import Console
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

PROMPTS = ["a red car drives through the city", "a boat at night", "a white duck in the rain", "a bus in the snow"]
KINDS = ["open", "play", "pause", "prompt", "set", "source", "rewind", "fork", "replay", "state", "ping", "warp"]
FIELDS = ["text", "prompt", "mode", "blend", "seed", "steps", "window", "strength", "to", "start", "pace"]
VALUES = [None, True, -1, 0, 1, 3, 10**30, 0.5, float("nan"), "", "recache", "a red car", "\x00", [], {}, [[]]]


STAY = 30.0  # seconds that a watcher plays before it makes room


@dataclass
class Tally:
    chunks: Counter = field(default_factory=Counter)  # by client, of those that only watch
    watched: Counter = field(default_factory=Counter)  # seconds of playing, by client
    num_watchers: int = 0
    late: list[float] = field(default_factory=list)  # seconds that chunks of watchers came after their time
    counts: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)  # of watchers, who do nothing wrong


async def watcher(url: str, name: int, end: float, tally: Tally) -> None:
    """A page that plays for a while, changes its prompt now and then, and takes 'full' for an answer."""
    while time.monotonic() < end:
        try:
            async with connect(url, max_size=None) as socket:
                await socket.send(json.dumps({"type": "open", "prompt": PROMPTS[name % 4], "seed": name}))
                if not await watch(socket, name, min(end, time.monotonic() + STAY * (0.5 + random.random())), tally):
                    await asyncio.sleep(1 + 2 * random.random())
        except (WebSocketException, OSError, TimeoutError) as error:
            tally.errors[type(error).__name__] += 1
            await asyncio.sleep(1)


async def watch(socket: ClientConnection, name: int, end: float, tally: Tally) -> bool:
    """False if there was no room."""
    last = time.monotonic()
    while time.monotonic() < end:
        message = await asyncio.wait_for(socket.recv(), 30)
        if isinstance(message, bytes):
            tally.counts["frames"] += 1
            continue
        news = json.loads(message)
        if news["type"] == "chunk":
            tally.chunks[name] += 1
            tally.late.append(news["late"])
            now = time.monotonic()
            tally.watched[name] += now - last
            last = now
            if random.random() < 0.1:
                change = {"type": "prompt", "text": random.choice(PROMPTS), "mode": "recache"}
                await socket.send(json.dumps(change))
        elif news["type"] == "slow":
            tally.counts["told slow"] += 1
        elif news["type"] == "error":
            tally.errors[news["message"][:60]] += 1
        elif news["type"] == "full":
            tally.counts["full"] += 1
            break
    await socket.send(json.dumps({"type": "close"}))
    return time.monotonic() >= end


async def slow_reader(url: str, end: float, tally: Tally) -> None:
    """Plays, and reads a message a second."""
    while time.monotonic() < end:
        with contextlib.suppress(WebSocketException, OSError, TimeoutError):
            async with connect(url, max_size=None, max_queue=1, open_timeout=30) as socket:
                await socket.send(json.dumps({"type": "open", "prompt": "a red car", "pace": 4}))
                for _ in range(20):
                    await asyncio.wait_for(socket.recv(), 30)
                    await asyncio.sleep(1)
                    tally.counts["slow reads"] += 1


async def vanisher(url: str, end: float, tally: Tally) -> None:
    """Opens, waits for a frame, and is gone without a goodbye."""
    while time.monotonic() < end:
        with contextlib.suppress(WebSocketException, OSError, TimeoutError):
            socket = await connect(url, max_size=None)
            await socket.send(json.dumps({"type": "open", "prompt": "a red car"}))
            for _ in range(random.randrange(1, 12)):
                await asyncio.wait_for(socket.recv(), 20)
            socket.transport.abort()
            tally.counts["vanished"] += 1
        await asyncio.sleep(0.5 + random.random())


async def flooder(url: str, end: float, tally: Tally) -> None:
    """As many messages as go through, until it is sent away."""
    while time.monotonic() < end:
        with contextlib.suppress(WebSocketException, OSError):
            async with connect(url, max_size=None) as socket:
                while True:
                    await socket.send(json.dumps({"type": "ping"}))
                    tally.counts["flood"] += 1
                    if tally.counts["flood"] % 100 == 0:
                        await asyncio.sleep(0.02)
        tally.counts["sent away"] += 1
        await asyncio.sleep(5)


def fuzzed(rng: random.Random) -> str | bytes:
    message = {"type": rng.choice(KINDS)} | {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randrange(4))}
    text = json.dumps(message)
    kind = rng.randrange(6)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        return rng.choice(["[" * 5000, "null", "{}", '{"type": ["open"]}', "\x00", "1e999"])
    if kind == 2:
        return rng.randbytes(rng.randrange(300))
    if kind == 3:
        about = json.dumps({"type": rng.choice(["frame", "image", "x"])}).encode()
        return struct.pack(">I", rng.choice([len(about), 0, 2**32 - 1])) + about + rng.randbytes(rng.randrange(2000))
    return text


async def fuzzer(url: str, end: float, total: int, tally: Tally) -> None:
    rng = random.Random(7)
    while tally.counts["fuzzed"] < total and time.monotonic() < end:
        with contextlib.suppress(WebSocketException, OSError):
            async with connect(url, max_size=None) as socket:
                while tally.counts["fuzzed"] < total and time.monotonic() < end:
                    await socket.send(fuzzed(rng))
                    tally.counts["fuzzed"] += 1
                    if tally.counts["fuzzed"] % 10 == 0:
                        await socket.send('{"type": "close"}')
                        await asyncio.sleep(0.1)
                    with contextlib.suppress(TimeoutError):
                        while True:
                            await asyncio.wait_for(socket.recv(), 0.001)


def resident(pid: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def metrics_of(base: str) -> dict[str, float]:
    text = urlopen(f"{base}/metrics", timeout=20).read().decode()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


@dataclass
class Sample:
    minute: float
    resident: float  # MB
    held: float  # MB of it that sessions keep, by the server's own count


async def measure(base: str, pid: int | None, end: float, samples: list[Sample], console: Console) -> None:
    start = time.monotonic()
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            numbers = await asyncio.to_thread(metrics_of, base)
            held = numbers["causvid_session_bytes"] / 2**20
            size = 0.0 if pid is None else resident(pid)
            samples.append(Sample((time.monotonic() - start) / 60, size, held))
            playing, room = numbers["causvid_sessions_playing"], numbers["causvid_capacity"]
            console.print(
                f"{end - time.monotonic():5.0f} s left: {playing:.0f} play, room for {room:.0f}, "
                f"{numbers['causvid_sessions']:.0f} sessions hold {held:.0f} MB, resident {size:.0f} MB"
            )
        await asyncio.sleep(5)


async def soak(base: str, pid: int | None, options: argparse.Namespace, console: Console) -> tuple[Tally, list[Sample]]:
    url = "ws://" + urlsplit(base).netloc + "/ws"
    end, tally, samples = time.monotonic() + 60 * options.minutes, Tally(), []
    odd = [slow_reader, vanisher, flooder, slow_reader, vanisher][: max(0, options.clients // 2 - 1)]
    tally.num_watchers = max(1, options.clients - len(odd) - 1)
    await asyncio.gather(
        *(watcher(url, name, end, tally) for name in range(tally.num_watchers)),
        *(client(url, end, tally) for client in odd),
        fuzzer(url, end, options.fuzz, tally),
        measure(base, pid, end, samples, console),
    )
    return tally, samples


def slope(samples: list[Sample], value: Callable[[Sample], float]) -> float:
    """MB a minute, after the first third, in which everything is used for the first time."""
    later = samples[len(samples) // 3 :]
    return float(np.polyfit([s.minute for s in later], [value(s) for s in later], 1)[0]) if len(later) > 2 else 0.0


def report(options: argparse.Namespace, tally: Tally, samples: list[Sample], left: float, failures: float) -> bool:
    """Print what was seen, a line a question. Whether all is well."""
    verdicts = []

    def say(text: str, good: bool | None = None) -> None:
        verdicts.append(good is not False)
        print(text + ("" if good is None else ": good" if good else ": BAD"))

    print(f"{options.clients} clients, {options.minutes:g} minutes: {dict(tally.counts)}")
    say(f"failures inside the server: {failures:.0f}", failures == 0)
    say(f"errors that watchers met: {dict(tally.errors) or 'none'}", not tally.errors)
    say(f"chunks that watchers got: {tally.chunks.total()}", tally.chunks.total() > 0)
    rates = np.array([tally.chunks[name] / seconds for name, seconds in tally.watched.items() if seconds > 10])
    if len(rates):
        jain = rates.sum() ** 2 / (len(rates) * (rates**2).sum())
        say(f"chunks a second while playing: {rates.min():.2f} to {rates.max():.2f} over {len(rates)} watchers, "
            f"Jain's index {jain:.3f}", jain > 0.9)  # fmt: skip
        late = np.quantile(tally.late, (0.5, 0.95))
        say(f"chunks came late by {late[0]:.2f} s (median) and {late[1]:.2f} s (95 %)")
    minutes = np.array([tally.watched[name] / 60 for name in range(tally.num_watchers)])
    say(f"minutes that {len(minutes)} watchers got to play: {minutes.min():.1f} to {minutes.max():.1f}, mean "
        f"{minutes.mean():.1f}")  # fmt: skip
    if samples and samples[-1].resident:
        whole, other = slope(samples, lambda s: s.resident), slope(samples, lambda s: s.resident - s.held)
        most = max(2.0, 30 / options.minutes)  # a short run is noisy
        say(f"memory: {samples[0].resident:.0f} MB at first, at most {max(s.resident for s in samples):.0f} MB, slope "
            f"{whole:+.1f} MB a minute")  # fmt: skip
        say(f"memory slope beside what sessions keep: {other:+.1f} MB a minute, allowed {most:.1f}", other <= most)
        say(f"memory half a minute after everybody has left: {left:.0f} MB", left < samples[0].resident + 80)
    return all(verdicts)


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--url")
    parser.add_argument("--pid", type=int, help="of the server at --url, for its memory")
    options = parser.parse_args()
    console, process, base, pid = Console(stderr=True), None, options.url, options.pid
    if base is None:
        port = free_port()
        process = subprocess.Popen([sys.executable, "-m", "causvid", "serve", "--port", str(port)])
        base, pid = f"http://127.0.0.1:{port}", process.pid
        for _ in range(120):
            with contextlib.suppress(OSError):
                urlopen(f"{base}/health", timeout=2)
                break
            time.sleep(0.5)
    if urlsplit(base).hostname not in ("127.0.0.1", "localhost"):
        sys.exit("soak.py attacks servers on this machine only")
    try:
        tally, samples = asyncio.run(soak(base, pid, options, console))
        time.sleep(30)  # sessions that nobody watches are parked after ten seconds
        left, numbers = 0.0 if pid is None else resident(pid), metrics_of(base)
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)
    sys.exit(not report(options, tally, samples, left, numbers.get("causvid_failures_total", 0)))


if __name__ == "__main__":
    main()
