#!/usr/bin/env python
"""One cached step against the same weights in diffusers recomputing the past, and against this machine's own rate.

    python scripts/bench_step.py --dtype bfloat16 --threads 1 --runs 30

A step denoises a chunk of 3 latent frames on a past of 18. diffusers has no cache for Wan: it sees all 21 frames anew.
The rate is that of torch.mm at the step's own shapes (weighted by their share of the work) and at 1024 x 1024 x 1024.
On a machine with other work, take --threads 1 --clock cpu: time in which the process does not run is not counted.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from causvid.cache import FULL, KVCache
from causvid.checkpoints import load_into
from causvid.export import diffusers_config
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.models.wan import to_diffusers
from causvid.presets import VISTA_DIT

CHUNK, PAST = 3, 18


@dataclass(frozen=True)
class Case:
    cfg: VideoDiTConfig
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return (self.height // self.cfg.patch) * (self.width // self.cfg.patch)


PLAIN = replace(VISTA_DIT, in_channels=16, landmarks=0, overlap=0)  # what diffusers can make, too
CASES = {
    "vista": Case(PLAIN, 8, 14),
    "512": Case(replace(PLAIN, width=512, ffn_width=2048, num_heads=8, num_layers=8), 16, 28),
    "1024": Case(replace(PLAIN, width=1024, ffn_width=4096, num_heads=16, num_layers=4), 16, 28),
}


def products(case: Case) -> Counter[tuple[int, int, int]]:
    """Matrix products (rows, inner, columns) of one cached step, with how often each occurs. A prompt's keys and values
    are projected before, once."""
    c, rows = case.cfg, CHUNK * case.tokens
    seen = (PAST + CHUNK) * case.tokens
    count: Counter[tuple[int, int, int]] = Counter()
    count[CHUNK, c.freq_width, c.width] += 1
    count[CHUNK, c.width, c.width] += 1
    count[CHUNK, c.width, 6 * c.width] += 1
    count[rows, c.in_channels * c.patch**2, c.width] += 1
    count[rows, c.width, c.out_channels * c.patch**2] += 1
    count[rows, c.width, c.width] += 6 * c.num_layers  # q, k, v, o; and q, o of cross-attention
    count[rows, c.width, c.ffn_width] += c.num_layers
    count[rows, c.ffn_width, c.width] += c.num_layers
    for keys in (seen, c.text_length):
        count[rows, c.head_width, keys] += c.num_heads * c.num_layers
        count[rows, keys, c.head_width] += c.num_heads * c.num_layers
    return count


def flops(count: Counter[tuple[int, int, int]]) -> float:
    return sum(2.0 * m * k * n * times for (m, k, n), times in count.items())


clock = time.perf_counter


def median_seconds(function: Callable[[], object], runs: int) -> float:
    for _ in range(3):
        function()
    seconds = []
    for _ in range(runs):
        start = clock()
        function()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def product_seconds(shape: tuple[int, int, int], dtype: torch.dtype, runs: int) -> float:
    """As a linear layer does it: the right-hand side is a weight [columns, inner], transposed."""
    m, k, n = shape
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype).t()
    repeats = max(1, int(2e8 / (2 * m * k * n)))  # long enough for the clock
    return median_seconds(lambda: [torch.mm(a, b) for _ in range(repeats)], max(5, runs // 3)) / repeats


def our_step(case: Case, dtype: torch.dtype) -> tuple[Callable[[], object], VideoDiT]:
    model = VideoDiT(case.cfg).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.02, generator=rng)
    model.cast(dtype)
    channels = case.cfg.in_channels
    text = model.project_text(torch.randn(1, case.cfg.text_length, case.cfg.text_width).to(dtype))
    cache = KVCache(model.cache_shape(case.height, case.width), FULL, max_frames=PAST + CHUNK, dtype=dtype)
    for _ in range(PAST // CHUNK):
        chunk = torch.randn(1, CHUNK, channels, case.height, case.width).to(dtype)
        model(chunk, torch.zeros(1, CHUNK), text, past=cache.at_hand(CHUNK))
        cache.commit(CHUNK)
    x = torch.randn(1, CHUNK, channels, case.height, case.width).to(dtype)
    sigma = torch.full((1, CHUNK), 0.5)
    return lambda: model(x, sigma, text, past=cache.at_hand(CHUNK)), model


def their_step(case: Case, dtype: torch.dtype, ours: VideoDiT) -> Callable[[], object]:
    """The same result needs the past at level 0 and the chunk at its own: a timestep for every token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import WanTransformer3DModel
    config = {key: value for key, value in diffusers_config(case.cfg).items() if not key.startswith("_")}
    model = WanTransformer3DModel(**config).eval().requires_grad_(False)
    load_into(model, {to_diffusers(name): p for name, p in ours.named_parameters()})
    for name, parameter in model.named_parameters():  # what its own from_pretrained(torch_dtype) keeps in float32
        if not any(part in name for part in WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    frames = PAST + CHUNK
    x = torch.randn(1, case.cfg.in_channels, frames, case.height, case.width).to(dtype)
    timestep = torch.zeros(1, frames * case.tokens)
    timestep[:, PAST * case.tokens :] = 500.0
    text = torch.randn(1, case.cfg.text_length, case.cfg.text_width).to(dtype)
    return lambda: model(x, timestep, text, return_dict=False)


def measure(name: str, dtype: torch.dtype, runs: int, cube_rate: float) -> list[str]:
    case = CASES[name]
    count = products(case)
    step, model = our_step(case, dtype)
    ours = median_seconds(step, runs)
    theirs = median_seconds(their_step(case, dtype, model), max(5, runs // 4))
    bare = sum(product_seconds(shape, dtype, runs) * times for shape, times in count.items())
    work = flops(count)
    return [
        f"{name} ({case.cfg.width} x {case.cfg.num_layers})",
        str(dtype).removeprefix("torch."),
        f"{CHUNK * case.tokens}",
        f"{1e3 * ours:.1f}",
        f"{1e3 * theirs:.1f}",
        f"{theirs / ours:.1f}x",
        f"{work / 1e9:.2f}",
        f"{work / ours / 1e9:.1f}",
        f"{work / bare / 1e9:.1f}",
        f"{bare / ours:.0%}",
        f"{cube_rate / 1e9:.1f}",
        f"{work / ours / cube_rate:.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or what torch takes")
    parser.add_argument("--runs", type=int, default=40, help="the median of this many")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: all")
    args = parser.parse_args()
    if args.clock == "cpu":
        global clock
        clock = time.process_time
    if args.threads:
        torch.set_num_threads(args.threads)

    table = Table(title=f"chunk of {CHUNK} on a past of {PAST} frames, {torch.get_num_threads()} threads, median ms")
    columns = "model|dtype|tokens|ours|diffusers|faster|GFLOP|GFLOP/s|mm, same shapes|share|mm, 1024^3|share"
    for i, column in enumerate(columns.split("|")):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    dtypes = [getattr(torch, name) for name in args.dtype or ["float32", "bfloat16"]]
    work = [(dtype, name) for dtype in dtypes for name in args.case or CASES]
    with torch.inference_mode():
        rates = {dtype: 2 * 1024**3 / product_seconds((1024, 1024, 1024), dtype, args.runs) for dtype in dtypes}
        for dtype, name in track(work, "measuring", console=Console(file=sys.stderr)):
            table.add_row(*measure(name, dtype, args.runs, rates[dtype]))
    Console(width=max(140, int(os.environ.get("COLUMNS", "0")))).print(table)


if __name__ == "__main__":
    main()
