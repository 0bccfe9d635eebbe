"""The studio's speed, end to end through its socket: ready, first frame, frames a second, users in real time, switches.

    python scripts/bench_serve.py [--users 4] [--seconds 20] [--recipe framewise] [--url http://127.0.0.1:7860]

Without --url it starts `causvid serve` itself, and also tells how long that takes. Run it on a machine that is quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from urllib.parse import urlsplit
from urllib.request import urlopen

from websockets.asyncio.client import connect

DAY, NIGHT = "a red car drives through the city during the day", "a red car drives through the city at night"


class Refused(Exception):
    """The server has no room for this."""


class Client:
    """Reads a stream as a page does, and notes when its frames came."""

    def __init__(self, socket) -> None:
        self.socket, self.frames, self.chunks = socket, [], {}

    async def send(self, kind: str, **message) -> None:
        await self.socket.send(json.dumps({"type": kind} | message))

    async def read(self) -> dict:
        message = await asyncio.wait_for(self.socket.recv(), 120)
        if isinstance(message, bytes):
            (length,) = struct.unpack(">I", message[:4])
            about = json.loads(message[4 : 4 + length])
            self.frames.append((time.perf_counter(), about["chunk"]))
            return {"type": "frame"} | about
        news = json.loads(message)
        if news["type"] == "full":
            raise Refused(news["message"])
        if news["type"] == "chunk":
            self.chunks[news["chunk"]] = news
        return news

    async def wait_for(self, kind: str) -> dict:
        while (news := await self.read())["type"] != kind:
            pass
        return news

    async def watch(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await self.read()


async def first_frame(url: str, seed: int) -> float:
    """Seconds from asking for a stream to its first picture."""
    async with connect(url, max_size=None) as socket:
        client = Client(socket)
        await client.wait_for("hello")
        start = time.perf_counter()
        await client.send("open", prompt=DAY, seed=seed)
        await client.wait_for("frame")
        waited = time.perf_counter() - start
        await client.send("close")
        await client.wait_for("ended")
        return waited


async def free_running(url: str, seconds: float) -> float:
    """Frames a second of one user, as fast as it goes, once the window is full."""
    async with connect(url, max_size=None) as socket:
        client = Client(socket)
        await client.send("open", prompt=DAY, pace=None)
        await client.watch(4)
        before, start = len(client.frames), time.perf_counter()
        await client.watch(seconds)
        rate = (len(client.frames) - before) / (time.perf_counter() - start)
        await client.send("close")
        return rate


async def real_time(url: str, users: int, seconds: float) -> list[tuple[float, float]]:
    """(frames a second, largest lateness of a chunk) for every one of several users at once."""

    async def user(seed: int) -> tuple[float, float]:
        async with connect(url, max_size=None) as socket:
            client = Client(socket)
            await client.send("open", prompt=DAY, seed=seed)
            await client.watch(3)
            before, start, known = len(client.frames), time.perf_counter(), set(client.chunks)
            await client.watch(seconds)
            rate = (len(client.frames) - before) / (time.perf_counter() - start)
            late = max((c["late"] for index, c in client.chunks.items() if index not in known), default=0.0)
            await client.send("close")
            return rate, late

    return await asyncio.gather(*(user(seed) for seed in range(users)))


async def switches(url: str, count: int, fps: float) -> list[float]:
    """Seconds from a new prompt to its first picture on a screen: what was made before is shown first."""
    waits = []
    async with connect(url, max_size=None) as socket:
        client = Client(socket)
        await client.send("open", prompt=DAY)
        await client.watch(3)
        for turn in range(count):
            wanted = NIGHT if turn % 2 == 0 else DAY
            client.chunks.clear()
            await client.watch(0.37 * turn % 1)  # at any place within a chunk
            asked = time.perf_counter()
            await client.send("prompt", text=wanted, mode="recache")
            while True:
                news = await client.read()
                if news["type"] == "chunk" and news["prompt"] == wanted:
                    break
            # frames are shown at `fps` from the first on, whenever they came
            shown = max(_screen_time(client, fps), time.perf_counter())
            waits.append(shown - asked)
            await client.watch(2.2)
        await client.send("close")
    return waits


def _screen_time(client: Client, fps: float) -> float:
    """When all frames that have come will have been shown."""
    until = 0.0
    for at, _ in client.frames:
        until = max(until, at) + 1 / fps
    return until


async def measure(url: str, options: argparse.Namespace, fps: float) -> None:
    firsts = [await first_frame(url, seed) for seed in range(7)]
    print(f"first frame, warm: median {statistics.median(firsts) * 1e3:.0f} ms, worst {max(firsts) * 1e3:.0f} ms")
    print(f"one user, as fast as it goes: {await free_running(url, options.seconds):.1f} frames a second")
    rates = await real_time(url, options.users, options.seconds)
    worst, late = min(rate for rate, _ in rates), max(late for _, late in rates)
    print(f"{options.users} users: the slowest gets {worst:.1f} frames a second, chunks up to {late * 1e3:.0f} ms late")
    waits = await switches(url, 8, fps)
    print(f"prompt to screen: median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--recipe", help="of the server that is started here")
    parser.add_argument("--url")
    options = parser.parse_args()
    process, base, start = None, options.url, time.perf_counter()
    if base is None:
        base = "http://127.0.0.1:7868"
        recipe = ["--recipe", options.recipe] if options.recipe else []
        process = subprocess.Popen([sys.executable, "-m", "causvid", "serve", "--port", "7868", *recipe])
    try:
        about = None
        while about is None and time.perf_counter() - start < 120:
            with contextlib.suppress(OSError):
                about = json.load(urlopen(f"{base}/api/model", timeout=5))
            time.sleep(0.05)
        if about is None:
            sys.exit("the server does not answer")
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        if process is not None:
            print(f"ready after {time.perf_counter() - start:.1f} s")
        asyncio.run(measure("ws://" + urlsplit(base).netloc + "/ws", options, about["fps"]))
    except Refused as refused:
        sys.exit(str(refused))
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
