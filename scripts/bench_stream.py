"""An endless stream: does memory grow, do chunks slow down? Random weights, a sliding window with a sink.

python scripts/bench_stream.py [--chunks 2000] [--width 256] [--layers 8]
"""

import argparse
import gc
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from causvid.cache import CachePolicy
from causvid.flow import sigma_grid
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.rollout import Rollout, RolloutConfig
from causvid.threads import choose_threads


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    threads = choose_threads()
    torch.manual_seed(0)
    cfg = VideoDiTConfig(
        width=options.width,
        ffn_width=4 * options.width,
        num_heads=max(1, options.width // 64),
        num_layers=options.layers,
        in_channels=16,
        out_channels=16,
        patch=2,
        freq_width=256,
        text_width=64,
        text_length=16,
        eps=1e-6,
        precision="islands",
    )
    policy = CachePolicy(window=21, sink=3, relative=True)
    model = VideoDiT(cfg).eval().requires_grad_(False)
    text = model.project_text(torch.randn(1, 16, 64))

    def new_stream() -> Rollout:
        return Rollout(model, RolloutConfig(tuple(sigma_grid(4, 5.0)), 3, policy=policy), (16, 8, 14))

    def chunk(rollout: Rollout) -> float:
        start = time.perf_counter()
        rollout.step(text)
        rollout.settle()
        return time.perf_counter() - start

    old, memory = new_stream(), np.zeros(options.chunks)
    gc.disable()  # its pauses are not ours
    for index in track(range(options.chunks), "streaming", console=Console(stderr=True)):
        chunk(old)
        memory[index] = resident_bytes()
    # The machine's speed drifts, so the old stream is timed in turn with one whose window has just filled.
    young = new_stream()
    for _ in range(7):
        chunk(young)
    pairs = np.array([(chunk(young), chunk(old)) for _ in range(200)])
    first, last = np.median(pairs, axis=0)
    warm = slice(min(50, options.chunks // 10), None)
    slope = np.polyfit(np.arange(options.chunks)[warm], memory[warm], 1)[0]
    print(f"{options.chunks} chunks of 3 latent frames, {threads} threads, {options.layers} layers of {options.width}")
    ratio = np.median(pairs[:, 1] / pairs[:, 0])
    print(f"a chunk of a new stream {first * 1e3:.2f} ms, of the old one {last * 1e3:.2f} ms, paired ratio {ratio:.3f}")
    begin, end = memory[warm][0] / 2**20, memory[-1] / 2**20
    print(f"resident memory: {begin:.1f} MiB to {end:.1f} MiB, {slope:.1f} bytes a chunk")


if __name__ == "__main__":
    main()
