"""What the commands share: common options, reading of values, loading of models, progress, streaming to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from causvid.errors import UserError

ModelOption = Annotated[str, typer.Option("--model", "-m", help="'vista', or a model folder.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: the best there is)")]
StudentOption = Annotated[Path | None, typer.Option(help="A few-step causal checkpoint to stream with.")]
StoryOption = Annotated[
    bool,
    typer.Option(
        help="Split '..., then ...' over time and choose colours that are left open; or take prompts as they are."
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="How a student is run. Vista: framewise. Wan, with --student: self-forcing (default), causvid-4step, ..."
    ),
]
CodecOption = Annotated[
    Path | None, typer.Option(help="A small autoencoder in place of Wan's, much faster: taew2_1.pth and its like.")
]
EtaOption = Annotated[
    float | None,
    typer.Option(help="Noise that the teacher draws anew on its way: 0 none (an ODE), 1 as much as diffusion does."),
]
LoraOption = Annotated[list[str] | None, typer.Option("--lora", help="FILE or FILE:SCALE; may be repeated.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help=".mp4 .webm .mov .mkv .gif, or a sheet: .png .jpg")]


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


def check_seconds(seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise UserError(f"a video lasts more than 0 seconds, got {seconds:g}")


def load_model(
    name: str,
    device: str | None,
    student: Path | None = None,
    recipe: str | None = None,
    lora: list[str] | None = None,
    codec: Path | None = None,
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
        codec=codec,
        size=None if size is None else read_size(size),
        lora=[read_lora(text) for text in lora or []],
    )


def read_size(text: str) -> tuple[int, int]:
    """'480x832' -> (480, 832)"""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"'{text}' is not a size; write HEIGHTxWIDTH, e.g. 480x832")
    return int(height), int(width)


def read_lora(text: str) -> tuple[str, float]:
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise UserError(f"'{text}' is not FILE or FILE:SCALE") from None


def read_dtype(name: str | None) -> Any:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name is not None and name not in known:
        raise UserError(f"there is no dtype '{name}'; use {' or '.join(known)}")
    return known.get(name) if name else None


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def show_progress() -> Any:
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


def read_change(text: str) -> tuple[float, str]:
    """'4s it snows' -> (4.0, 'it snows')"""
    time, _, prompt = text.strip().partition(" ")
    if not prompt:
        raise UserError(f"--at '{text}' lacks a prompt; write --at 4s \"a red car at night\"")
    return read_time(time), prompt.strip()


def tell_understood(model: Any, prompts: Sequence[str], story: bool = True) -> None:
    """Vista knows a few hundred words. The others are not replaced or ignored silently."""
    for prompt in prompts:
        understood = model.understand(prompt)
        for note in understood.streamed_notes if story else understood.notes:
            typer.echo(f"causvid: {note}", err=True)


def tell_named(session: Any) -> None:
    """What a prompt leaves open is no secret."""
    understood, told = session.understood, session.history.events[0].value.get("story")
    if told:
        tell_chosen(told[0], (understood.story or (understood.text,))[0])


def tell_chosen(told: str, asked: str) -> None:
    if told != asked:
        typer.echo(f"causvid: what is left open the seed chooses: '{told}'", err=True)


def tell_length(session: Any, seconds: float) -> None:
    """A video that ends before its story does."""
    from causvid.story import PART

    model, parts = session.model, len(session.history.events[0].value.get("story", []))
    seconds_of_a_part = PART * model.codec.time_factor / model.cfg.fps
    if parts > 1 and seconds < (parts - 0.5) * seconds_of_a_part:
        whole = f"{parts * seconds_of_a_part:.0f}"
        typer.echo(f"causvid: this story takes {whole} s; its end is missing, add --seconds {whole}", err=True)


def stream_to_file(
    session: Any,
    out: Path,
    seconds: float,
    timeline: Sequence[tuple[float, str]] = (),
    switch: str = "keep",
    feed: Callable[[], None] | None = None,
) -> None:
    """Write chunks as they come; an interruption keeps what is there. `feed` brings what the next chunk needs."""
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
    with show_progress() as progress, movie or contextlib.nullcontext():
        task = progress.add_task("streaming", total=wanted, note="")
        try:
            while made < wanted:
                while waiting and made >= round(waiting[0][0] * fps):
                    session.set_prompt(waiting.pop(0)[1], mode=switch)
                if feed:
                    feed()
                frames = session.next_chunk().frames[: wanted - made]
                made += len(frames)
                if movie:
                    movie.write(frames)
                else:
                    kept.append(frames)
                rate = made / (time.perf_counter() - start)
                progress.update(task, completed=made, note=f"{rate:.1f} FPS")
        finally:
            if kept:
                media.write_video(out, np.concatenate(kept), fps)
