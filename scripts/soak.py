"""Clients of every kind on one server, on this machine only: does it crash, leak, or treat anybody unfairly?

    python scripts/soak.py [--minutes 10] [--clients 32] [--fuzz 10000] [--url http://127.0.0.1:7860]

Without --url it starts a server of its own with the packaged model. Prints a report, and ends with 1 if a check fails.
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
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from rich.console import Console
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

PROMPTS = ["a red car drives through the city", "a boat at night", "a white duck in the rain", "a bus in the snow"]
KINDS = ["open", "play", "pause", "prompt", "set", "source", "rewind", "fork", "replay", "state", "ping", "warp"]
FIELDS = ["text", "prompt", "mode", "blend", "seed", "steps", "window", "strength", "to", "start", "pace"]
VALUES = [None, True, -1, 0, 1, 3, 10**30, 0.5, float("nan"), "", "recache", "a red car", "\x00", [], {}, [[]]]


@dataclass
class Tally:
    chunks: Counter = field(default_factory=Counter)  # by client, of those that only watch
    watched: Counter = field(default_factory=Counter)  # seconds of playing
    counts: Counter = field(default_factory=Counter)


async def watcher(url: str, name: int, end: float, tally: Tally) -> None:
    """A page that plays, changes its prompt now and then, and takes 'full' for an answer."""
    while time.monotonic() < end:
        with contextlib.suppress(WebSocketException, OSError):
            async with connect(url, max_size=None) as socket:
                await socket.send(json.dumps({"type": "open", "prompt": PROMPTS[name % 4], "seed": name}))
                last = time.monotonic()
                while time.monotonic() < end:
                    message = await asyncio.wait_for(socket.recv(), 60)
                    if isinstance(message, bytes):
                        tally.counts["frames"] += 1
                        continue
                    news = json.loads(message)
                    if news["type"] == "chunk":
                        tally.chunks[name] += 1
                        now = time.monotonic()
                        tally.watched[name] += now - last
                        last = now
                        if random.random() < 0.1:
                            change = {"type": "prompt", "text": random.choice(PROMPTS), "mode": "recache"}
                            await socket.send(json.dumps(change))
                    elif news["type"] == "full":
                        tally.counts["full"] += 1
                        await socket.send(json.dumps({"type": "close"}))
                        await asyncio.sleep(2 + 3 * random.random())
                        last = time.monotonic()
                        break


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


async def measure(base: str, pid: int | None, end: float, memory: list, console: Console) -> None:
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            answer = await asyncio.to_thread(lambda: urlopen(f"{base}/health", timeout=10).read())
            if pid is not None:
                memory.append((time.monotonic(), resident(pid)))
            console.print(
                f"{end - time.monotonic():5.0f} s left, {answer.decode()}, {memory[-1][1] if memory else 0:.0f} MB"
            )
        await asyncio.sleep(10)


async def soak(base: str, pid: int | None, options: argparse.Namespace, console: Console) -> tuple[Tally, list]:
    url = "ws://" + urlsplit(base).netloc + "/ws"
    end, tally, memory = time.monotonic() + 60 * options.minutes, Tally(), []
    odd = [slow_reader, slow_reader, vanisher, vanisher, flooder][: max(0, options.clients - 2)]
    watchers = max(1, options.clients - len(odd) - 1)
    await asyncio.gather(
        *(watcher(url, name, end, tally) for name in range(watchers)),
        *(client(url, end, tally) for client in odd),
        fuzzer(url, end, options.fuzz, tally),
        measure(base, pid, end, memory, console),
        return_exceptions=False,
    )
    return tally, memory


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
        process = subprocess.Popen([sys.executable, "-m", "causvid.cli", "serve", "--port", "7869"])
        base, pid = "http://127.0.0.1:7869", process.pid
        for _ in range(120):
            with contextlib.suppress(OSError):
                urlopen(f"{base}/health", timeout=2)
                break
            time.sleep(0.5)
    if urlsplit(base).hostname not in ("127.0.0.1", "localhost"):
        sys.exit("soak.py attacks servers on this machine only")
    try:
        tally, memory = asyncio.run(soak(base, pid, options, console))
        metrics = urlopen(f"{base}/metrics", timeout=10).read().decode()
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)
    numbers = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    failures = int(float(numbers.get("causvid_failures_total", 0)))
    rates = [tally.chunks[name] / seconds for name, seconds in tally.watched.items() if seconds > 10]
    half = memory[len(memory) // 3 :]
    slope = float(np.polyfit(*zip(*((at / 60, size) for at, size in half)), 1)[0]) if len(half) > 2 else 0.0
    print(f"{options.clients} clients, {options.minutes:g} minutes: {dict(tally.counts)}")
    if rates:
        print(f"chunks a second while playing: {min(rates):.2f} to {max(rates):.2f} over {len(rates)} watchers")
    if memory:
        print(f"memory {memory[0][1]:.0f} MB to {memory[-1][1]:.0f} MB, slope {slope:+.2f} MB a minute after a third")
    print(f"failures inside the server: {failures}; full answers: {tally.counts['full']}")
    sys.exit(int(failures > 0 or tally.counts["frames"] == 0))


if __name__ == "__main__":
    main()
