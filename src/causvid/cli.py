"""The command line. Results go to files or stdout, progress to stderr; a mistake gets one sentence and a non-zero exit.

Nothing heavy is imported before a command needs it: `causvid --help` must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from causvid.errors import UserError

app = typer.Typer(
    name="causvid",
    help="Stream video from a causal few-step diffusion student, and train one from a bidirectional teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ModelOption = Annotated[str, typer.Option("--model", "-m", help="'vista', or a model folder.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: the best there is)")]
StudentOption = Annotated[Path | None, typer.Option(help="A few-step causal checkpoint to stream with.")]
RecipeOption = Annotated[str | None, typer.Option(help="How --student was distilled, e.g. self-forcing.")]
LoraOption = Annotated[list[str] | None, typer.Option("--lora", help="FILE or FILE:SCALE; may be repeated.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help=".mp4 .webm .mov .mkv .gif, or a sheet: .png .jpg")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    out: OutOption = Path("out.mp4"),
    model: ModelOption = "vista",
    seconds: Annotated[float, typer.Option(help="Length of the video.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps per chunk (default: the student's own).")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="TIME PROMPT", help="Change the prompt at a time, e.g. --at 4s 'it snows'."),
    ] = None,
    switch: Annotated[str, typer.Option(help="How prompts change: keep, recache or flush.")] = "keep",
    size: Annotated[str | None, typer.Option(help="Pixels, as HEIGHTxWIDTH (default: the model's own).")] = None,
    window: Annotated[int | None, typer.Option(help="Latent frames a chunk looks back on.")] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Sample the slow bidirectional teacher instead.")] = False,
    guidance: Annotated[float | None, typer.Option(help="Guidance of the teacher; 1 is none.")] = None,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
) -> None:
    """Generate a video from a prompt, and from further prompts on the way."""
    from causvid import media

    media.check_output(out)
    if seconds <= 0:
        raise UserError(f"a video lasts more than 0 seconds, got {seconds:g}")
    timeline = [read_change(text) for text in at or []]
    if teacher and timeline:
        raise UserError("the teacher makes a clip as a whole and cannot change its prompt; leave out --teacher or --at")
    loaded = _load(model, device, student, recipe, lora, size)
    if teacher:
        frames = _sample(loaded, prompt, seconds, steps, guidance, seed)
        media.write_video(out, frames, loaded.cfg.fps)
    else:
        session = loaded.session(prompt, seed=seed, **_given(steps=steps, window=window))
        _stream(session, timeline, switch, seconds, out)
    typer.echo(out)


def _stream(session: Any, timeline: list[tuple[float, str]], switch: str, seconds: float, out: Path) -> None:
    """Write chunks as they come; an interruption keeps what is there."""
    import time

    import numpy as np

    from causvid import media

    fps = session.model.cfg.fps
    wanted = max(1, round(seconds * fps))
    movie = media.VideoWriter(out, fps) if out.suffix.lower() in media.MOVIE_SUFFIXES else None
    kept: list[np.ndarray] = []
    made = 0
    start = time.perf_counter()
    waiting = sorted(timeline)
    with _progress() as progress:
        task = progress.add_task("streaming", total=wanted, note="")
        with movie or _nothing():
            while made < wanted:
                while waiting and made >= round(waiting[0][0] * fps):
                    session.set_prompt(waiting.pop(0)[1], mode=switch)
                frames = session.next_chunk().frames[: wanted - made]
                made += len(frames)
                if movie:
                    movie.write(frames)
                else:
                    kept.append(frames)
                rate = made / (time.perf_counter() - start)
                progress.update(task, completed=made, note=f"{rate:.1f} FPS")
    if not movie:
        media.write_video(out, np.concatenate(kept), fps)


def _sample(model: Any, prompt: str, seconds: float, steps: int | None, guidance: float | None, seed: int) -> Any:
    with _progress() as progress:
        task = progress.add_task("sampling", total=steps or model.cfg.teacher.steps, note="")
        return model.sample(
            prompt,
            seconds=seconds,
            steps=steps,
            guidance=guidance,
            seed=seed,
            on_step=lambda i, _: progress.update(task, completed=i),
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the movie and the contact sheet.")] = Path("out"),
    model: ModelOption = "vista",
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Stream a short clip with a prompt switch, write it, and print how fast it was."""
    from causvid.demo import run

    for line in run(_load(model, device), out, seed):
        typer.echo(line)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A folder or file of weights, in any layout that can be read.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder (diffusers) or a .safetensors file (original).")],
    layout: Annotated[str, typer.Option("--to", help="diffusers or original.")] = "diffusers",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16 (default: as stored).")] = None,
) -> None:
    """Write transformer weights in another layout: diffusers' WanTransformer3DModel, or the original Wan names."""
    if layout not in ("diffusers", "original"):
        raise UserError(f"there is no layout '{layout}'; use diffusers or original")
    if layout == "original" and out.suffix != ".safetensors":
        raise UserError(f"the original layout is one file; end '{out.name}' in .safetensors")

    from causvid.checkpoints import load_dit
    from causvid.export import save_diffusers, save_original

    network = load_dit(source, dtype=_dtype(dtype))
    (save_diffusers if layout == "diffusers" else save_original)(network, out)
    typer.echo(out)


@app.command("extract-lora")
def extract_lora_command(
    student: Annotated[Path, typer.Argument(help="The distilled weights.")],
    teacher: Annotated[Path, typer.Argument(help="The weights it started from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    rank: Annotated[int, typer.Option(help="Rank of every pair of matrices.")] = 32,
) -> None:
    """Write the difference of two networks as a LoRA, and report how much of it the rank keeps."""
    from causvid.lora import write_lora_between

    report = write_lora_between(student, teacher, out, rank)
    typer.echo(report)


@app.command()
def doctor() -> None:
    """Say what this machine can run, what is missing, and what to do about it."""
    from causvid.doctor import examine

    for line in examine():
        typer.echo(line)


@app.command()
def world(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for clips, a contact sheet and captions.")] = Path(
        "world"
    ),
    num_clips: Annotated[int, typer.Option("--clips", "-n", help="How many clips.")] = 9,
    seed: Annotated[int, typer.Option(help="The first clip's seed.")] = 0,
    split: Annotated[str, typer.Option(help="train, val, compose, paraphrase, timeline or revisit.")] = "train",
    size: Annotated[str, typer.Option(help="Pixels, as HEIGHTxWIDTH.")] = "64x112",
    num_frames: Annotated[int, typer.Option("--frames", help="Frames per clip, at 12 a second.")] = 81,
) -> None:
    """Render clips of Vista, the embedded world: movies, a contact sheet and captions to look at."""
    from causvid.worlds.vista.sheet import write_world

    typer.echo(write_world(out, num_clips=num_clips, seed=seed, split=split, size=size, num_frames=num_frames))


STAGES = {
    "codec": "causvid.stages.codec",
    "teacher": "causvid.stages.teacher",
    "ode-pairs": "causvid.stages.ode_pairs",
    "ode-init": "causvid.stages.ode_init",
    "dmd": "causvid.stages.dmd",
}


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", "-r", help="Where the run lives. The same command resumes it.")],
    preset: Annotated[str, typer.Option(help="A complete configuration by name.")] = "vista",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: a.b=c; may be repeated.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop, saved, after this long in all.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop, saved, after this many steps in all.")] = None,
    device: DeviceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Run a training stage, or go on with it: the same command resumes where the run stopped."""
    if stage not in STAGES:
        raise UserError(f"there is no stage '{stage}'; use one of {', '.join(STAGES)}")
    import json
    from importlib import import_module

    from causvid import config

    module = import_module(STAGES[stage])
    if preset not in module.PRESETS:
        raise UserError(f"the stage {stage} has no preset '{preset}'; it has {', '.join(module.PRESETS)}")
    cfg = config.override(module.PRESETS[preset], settings or [])
    if dry_run:
        typer.echo(json.dumps(config.to_json(cfg), indent=2, ensure_ascii=False))
        return
    if minutes is None and steps is None and stage != "ode-pairs":
        raise UserError("say how long to train: --minutes or --steps")
    place = {} if stage == "codec" else {"device": device or _best_device()}
    typer.echo(module.train(cfg, run_dir, minutes=minutes, steps=steps, **place))


@app.command()
def latents(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pools. The same command goes on.")] = Path(
        "local/latents"
    ),
    images: Annotated[int, typer.Option(help="Single frames.")] = 40_960,
    short: Annotated[int, typer.Option(help="Clips of 6 latent frames.")] = 6_144,
    long: Annotated[int, typer.Option(help="Clips of 21 latent frames.")] = 3_072,
    workers: Annotated[int, typer.Option(help="Processes that render and encode.")] = 1,
) -> None:
    """Render Vista and encode it: the pools of latents that the training stages read."""
    from causvid.data.vista import make_vista_cache

    with _progress() as progress:
        task = progress.add_task("shards", total=None, note="")
        make_vista_cache(
            out,
            num_images=images,
            num_short=short,
            num_long=long,
            num_workers=workers,
            on_shard=lambda done, total: progress.update(task, completed=done, total=total),
        )
    typer.echo(out)


@config_app.command("show")
def config_show(model: Annotated[str, typer.Argument(help="'vista', or a model folder.")] = "vista") -> None:
    """Print how a model is run, as JSON."""
    import json

    from causvid import config
    from causvid.loading import find, read_spec

    typer.echo(json.dumps(config.to_json(read_spec(find(model))), indent=2, ensure_ascii=False))


@config_app.command("diff")
def config_diff(a: Path, b: Path) -> None:
    """Print the settings in which two configurations (JSON files or run folders) differ."""
    import json

    from causvid import config

    def read(path: Path) -> dict:
        file = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not a configuration that can be read ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{file} holds no settings: a configuration is a JSON object")
        return values

    for path, (left, right) in config.difference(read(a), read(b)).items():
        typer.echo(f"{path}: {json.dumps(left)} -> {json.dumps(right)}")


# ---- shared by commands ----------------------------------------------------------------------------------------


def read_time(text: str) -> float:
    """'4', '4s', '1.5s' or '1:30' in seconds."""
    try:
        minutes, _, rest = text.strip().removesuffix("s").rpartition(":")
        value = 60 * float(minutes or 0) + float(rest)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"'{text}' is not a time; write 4s, 1.5s or 1:30")
    return value


def _load(
    name: str,
    device: str | None,
    student: Path | None = None,
    recipe: str | None = None,
    lora: list[str] | None = None,
    size: str | None = None,
) -> Any:
    from causvid.loading import load
    from causvid.threads import choose_threads

    choose_threads()
    return load(
        name,
        device=device,
        student=student,
        recipe=recipe,
        size=None if size is None else read_size(size),
        lora=[_read_lora(text) for text in lora or []],
    )


def read_size(text: str) -> tuple[int, int]:
    """'480x832' -> (480, 832)"""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"'{text}' is not a size; write HEIGHTxWIDTH, e.g. 480x832")
    return int(height), int(width)


def _read_lora(text: str) -> tuple[str, float]:
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise UserError(f"'{text}' is not FILE or FILE:SCALE") from None


def _dtype(name: str | None) -> Any:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name is not None and name not in known:
        raise UserError(f"there is no dtype '{name}'; use {' or '.join(known)}")
    return known.get(name) if name else None


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def join_times(arguments: list[str]) -> list[str]:
    """`--at 4s "it snows"` is two words to a shell and one value to us: "4s it snows"."""
    out: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--at" and len(rest) >= 2 and " " not in rest[0].strip():
            out += [word, f"{rest.pop(0)} {rest.pop(0)}"]
        else:
            out.append(word)
    return out


def read_change(text: str) -> tuple[float, str]:
    """'4s it snows' -> (4.0, 'it snows')"""
    time, _, prompt = text.strip().partition(" ")
    if not prompt:
        raise UserError(f"--at '{text}' lacks a prompt; write --at 4s \"then night falls\"")
    return read_time(time), prompt.strip()


def main() -> None:
    """Entry point: user mistakes become one sentence, and nobody is shown a traceback unless they ask for it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other on a busy machine
    try:
        app(join_times(sys.argv[1:]))
    except UserError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os._exit(0)  # the reader of our output has gone
    except MemoryError:
        _fail("out of memory; ask for a shorter video, a smaller window, or use another device", 1)
    except Exception as error:
        if os.environ.get("CAUSVID_DEBUG"):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        _fail(f"{reason} (a fault of ours if this makes no sense; CAUSVID_DEBUG=1 shows where it happened)", 70)


def _fail(message: str, code: int) -> None:
    print(f"causvid: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
