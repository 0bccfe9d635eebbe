"""Table 4 and Figure 8 from finished runs: every row on the same prompts with the same noise, read by one judge.

    python scripts/table4.py local/table4/seed-0/table4.tsv --prompts 32 --streams 4

Each line of the list is a name and a folder of weights. One with a teacher.safetensors is sampled in many steps with
guidance, as a whole or, where it is called `causal`, chunk by chunk behind its own past; students stream as they do.
Further lists are the same rows trained with other seeds: hollow dots, and differences that are means over seeds.
Beside the first list: table4.md, table4.png, figure8.png, and a folder for every row, whose clips are made only once.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from causvid import flow, sample
from causvid.atomic import whole_file
from causvid.bundle import Model
from causvid.cache import KVCache
from causvid.cli_options import show_progress
from causvid.errors import UserError
from causvid.evaluate.drift import Drift, Timeline, measure_drift
from causvid.evaluate.figures import COLOURS, draw_drift
from causvid.evaluate.making import Maker, kept, stream
from causvid.evaluate.protocol import NUM_FRAMES, prompts
from causvid.evaluate.report import TITLES, Report, compare_seeds
from causvid.evaluate.scoring import Instruments, load_instruments
from causvid.evaluate.trial import Result, Role, Trial, load_candidate, settings_of, table
from causvid.noise import chunk_noise, mix
from causvid.pixels import frames_from_video
from causvid.rollout import commit_chunk
from causvid.view_noise import carry_rows
from causvid.worlds.vista.captions import timeline_prompts
from causvid.worlds.vista.render import render
from causvid.worlds.vista.sampling import sample_timeline_scene

CAUSAL = "causal"
Streamer = Callable[[Timeline, int, int], np.ndarray]  # (prompts with their seconds, frames, seed) -> frames


def in_force(timeline: Timeline, second: float) -> str:
    return [prompt for start, prompt in timeline if start <= second][-1]


def clips_in_a_row(model: Model, steps: int, guidance: flow.Guidance) -> Streamer:
    """A teacher that sees both ways knows nothing beyond its clip: for more, clips are set end to end."""

    def make(timeline: Timeline, num_frames: int, seed: int) -> np.ndarray:
        parts: list[np.ndarray] = []
        for start in range(0, num_frames, NUM_FRAMES):
            prompt = in_force(timeline, start / model.cfg.fps)
            own_seed = seed if start == 0 else mix(seed, start) % 2**31
            seconds = NUM_FRAMES / model.cfg.fps
            clip = model.sample(
                prompt, seconds=seconds, steps=steps, guidance=guidance, seed=own_seed, renewal=sample.ODE
            )
            parts.append(clip[:NUM_FRAMES])
        return np.concatenate(parts)[:num_frames]

    return make


def chunks_in_many_steps(model: Model, steps: int, guidance: flow.Guidance) -> Streamer:
    """A causal teacher: every chunk is integrated with guidance, behind what it made before."""
    network, how, grid = model.need_teacher(), model.cfg.rollout, flow.sigma_grid(steps, model.cfg.teacher.shift)
    shape = (1, how.chunk, *model.latent_shape)

    @torch.no_grad()
    def make(timeline: Timeline, num_frames: int, seed: int) -> np.ndarray:
        cache_shape = network.cache_shape(*shape[-2:])
        caches = [KVCache(cache_shape, how.policy, dtype=model.dtype, device=model.device) for _ in range(2)]
        decode, made, course, told = model.decode_stream(), 0, model.course(seed, network), ""
        parts: list[np.ndarray] = []
        no_text = model.text([model.cfg.no_prompt]).to(model.device, model.dtype)
        while made < num_frames:
            prompt, travel = in_force(timeline, made / model.cfg.fps), None
            texts = [model.embed([prompt]), no_text]
            if course is not None:
                course = course if prompt == told else course.after(prompt)
                told, (travel, course) = prompt, course.advance(how.chunk)
                travel = travel[None]
            pasts = [cache.at_hand(how.chunk, travel) for cache in caches]

            def field(x: Tensor, sigma: Tensor, texts=texts, pasts=pasts) -> Tensor:
                seen, unseen = (network(x, sigma, text, past=past) for text, past in zip(texts, pasts))
                return flow.guide(seen, unseen, guidance, sigma)

            noise = carry_rows(model.cfg.view_noise, chunk_noise(seed, len(parts), 0, shape), travel, [(seed, 0)])
            noise = noise.to(model.device, model.dtype)
            x0 = sample.euler(field, noise, grid)
            for text, past in zip(texts, pasts):
                commit_chunk(network, x0, text, past)
            parts.append(frames_from_video(decode(x0.to(model.codec.dtype))))
            made += len(parts[-1])
        return np.concatenate(parts)[:num_frames]

    return make


def students_own(model: Model) -> Streamer:
    return lambda timeline, num_frames, seed: stream(model, timeline, num_frames, seed, story=False)


@dataclass
class Row:
    name: str
    trial: "RowTrial"

    def drift(self, instruments: Instruments, count: int, seconds: float) -> Drift:
        return measure_drift(self.videos(count, seconds), instruments)

    def videos(self, count: int, seconds: float) -> Iterator[tuple[Timeline, np.ndarray, np.ndarray]]:
        """Streams whose prompts change, with their truth: the same for all rows."""
        cfg = self.trial.model.cfg
        num_frames = round(seconds * cfg.fps)
        for index in range(count):
            scene = sample_timeline_scene(index, seconds)
            timeline = timeline_prompts(scene, index)
            frames = self.trial.clips.frames(
                f"stream {index} of {seconds:g} s",
                lambda timeline=timeline, index=index: self.trial.streamer(timeline, num_frames, mix(7, index) % 2**31),
            )
            yield timeline, frames, render(scene, num_frames, cfg.height, cfg.width, cfg.fps)[0]


class RowTrial(Trial):
    """A trial whose clips come from the row's own way of making them."""

    streamer: Streamer

    def make(self) -> Maker:
        return kept(
            lambda caption, seed: self.streamer([(0.0, caption)], self.settings.num_frames, seed), self.clips.frames
        )


def read_rows(
    file: Path, truths: Path, options: argparse.Namespace, told: Callable[[str, int, int], None]
) -> list[Row]:
    rows = []
    for line in file.read_text().splitlines():
        name, weights = line.split("\t")
        role: Role = "teacher" if (Path(weights) / "teacher.safetensors").is_file() else "student"
        model, parts = load_candidate(weights, role, options.device)
        guidance = options.guidance if role == "teacher" else None
        steps = options.steps if role == "teacher" else None
        eta = 0.0 if role == "teacher" else None  # an ODE in all rows: what a network sees is compared
        settings = settings_of(model, weights, parts, role, steps, guidance, story=False, eta=eta)  # networks alone
        trial = RowTrial(file.parent / "rows" / name, model, settings, truths, told)
        trial.streamer = students_own(model)
        if settings.guidance is not None:
            make = chunks_in_many_steps if name == CAUSAL else clips_in_a_row
            trial.streamer = make(model, settings.steps, settings.guidance)
        rows.append(Row(name, trial))
    return rows


def against(seeds: Sequence[dict[str, Report]], name: str) -> list[str]:
    """How far each row lies from one of them, in pairs of prompts; a star where the interval leaves 0 out."""
    lines = [f"| minus {name} | seeds | " + " | ".join(TITLES.values()) + " |", "|---" * (2 + len(TITLES)) + "|"]
    for row in seeds[0]:
        pairs = [(reports[row], reports[name]) for reports in seeds if row in reports and name in reports]
        gaps = [compare_seeds(pairs, column) for column in TITLES]
        cells = [
            f"{g.value:+.3f} ({g.low:+.3f} to {g.high:+.3f}){' *' if g.low > 0 or g.high < 0 else ''}" for g in gaps
        ]
        lines.append(f"| {row} | {len(pairs)} | " + " | ".join(cells) + " |")
    return lines


def draw_table(results: Sequence[Result], others: Sequence[dict[str, Report]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.34 * len(results) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(TITLES), sharey=True)
    names = [result.label for result in results]
    for axis, colour, (column, title) in zip(axes, COLOURS, TITLES.items()):
        values = [result.report.columns[column] for result in results]
        mid = np.array([v.value for v in values])
        ends = np.abs(np.array([[v.value - v.low, v.high - v.value] for v in values]).T)
        axis.errorbar(mid, names, xerr=ends, color=colour, fmt="o", markersize=6, elinewidth=1.5)
        for reports in others:
            seen = [name for name in names if name in reports]
            values = [reports[name].columns[column].value for name in seen]
            axis.scatter(values, seen, s=36, facecolors="white", edgecolors=colour, zorder=3)
        axis.axvline(results[0].ceiling.columns[column].value, color="#222222", linestyle="--", linewidth=1)
        axis.axvline(results[0].floor.columns[column].value, color="#888888", linestyle=":", linewidth=1)
        left, right = (mid - ends[0]).min(), results[0].ceiling.columns[column].value
        axis.set_xlim(left - 0.06 * (right - left), right + 0.06 * (right - left))  # the floor may lie far outside
        axis.set_title(title, fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", help="table4.tsv, as runs/table4.sh writes it; other seeds' too")
    parser.add_argument("--prompts", type=int, default=32, help="of every row; teachers take most of the time")
    parser.add_argument("--steps", type=int, help="of the teachers (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="of the teachers (default: the model's own)")
    parser.add_argument(
        "--streams", type=int, default=4, help="videos of Figure 8 for every row in it; 0 leaves it out"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of these")
    parser.add_argument("--figure8", default=f"bidirectional,{CAUSAL},causal-teacher,full,self", help="its rows")
    parser.add_argument("--against", default="full", help="the row that the others are compared with")
    parser.add_argument("--device")
    options = parser.parse_args()
    instruments, listed = load_instruments("report"), prompts("val", options.prompts)
    with show_progress() as progress:
        task = progress.add_task("", total=None, note="")

        def told(what: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, note=what)

        def examine(row: Row) -> Result:
            progress.update(task, description=row.name)
            result = row.trial.examine(listed, instruments)
            result.label = row.name
            return result

        out = options.lists[0].parent
        rows, *other_rows = [read_rows(file, out / "truths", options, told) for file in options.lists]
        results = [examine(row) for row in rows]
        seeds = [{result.label: result.report for result in results}]
        seeds += [{row.name: examine(row).report for row in other} for other in other_rows]
        drifts = {}
        for row in rows if options.streams else []:
            if row.name in options.figure8.split(","):
                progress.update(task, description=f"{row.name}, {options.seconds:g} s", note="")
                drifts[row.name] = row.drift(instruments, options.streams, options.seconds)
    if options.against not in seeds[0]:
        raise UserError(f"there is no row '{options.against}'; it has {', '.join(seeds[0])}")
    text = "\n".join(["```", table(results), "```", "", *against(seeds, options.against)])
    if drifts:
        fps = rows[0].trial.model.cfg.fps
        window = NUM_FRAMES / fps
        marks = {f"window {n}": n * window for n in range(1, int(options.seconds / window) + 1)}
        draw_drift(drifts, out / "figure8.png", marks=marks)
        lines = [f"| {name} | {_slope(drift)} |" for name, drift in drifts.items()]
        head = [
            f"| {options.streams} streams of {options.seconds:g} s | slope of IQ* per 30 s beyond the truth's |",
            "|---|---|",
        ]
        text += "\n\n" + "\n".join([*head, *lines])
    with whole_file(out / "table4.md") as temporary:
        temporary.write_text(text + "\n")
    draw_table(results, seeds[1:], out / "table4.png")
    print(text)


def _slope(drift: Drift) -> str:
    slope = drift.summary("IQ*")["slope beyond truth"]
    return f"{slope['value']:+.3f} ({slope['low']:+.3f} to {slope['high']:+.3f})"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"table4: {error}")
