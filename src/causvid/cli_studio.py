"""The live studio on the command line: begin with a picture, go on from a video, restyle one, take up a take, serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from causvid.cli_options import (
    CodecOption,
    DeviceOption,
    LoraOption,
    ModelOption,
    OutOption,
    RecipeOption,
    StudentOption,
    check_seconds,
    given,
    load_model,
    show_progress,
    stream_to_file,
    tell_understood,
)
from causvid.errors import UserError

take_app = typer.Typer(help="Takes: streams that were saved, to be shown again, made anew, or looked into.")

PromptOption = Annotated[str, typer.Option("--prompt", "-p", help="What to show.")]
SecondsOption = Annotated[float, typer.Option(help="Length of the video.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same video.")]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps per chunk (default: the student's own).")]
TakeArgument = Annotated[Path, typer.Argument(help="A take, as the studio saves it.")]


def animate(
    image: Annotated[Path, typer.Argument(help="The picture to begin with.")],
    prompt: PromptOption,
    out: OutOption = Path("out.mp4"),
    seconds: SecondsOption = 6.75,
    how: Annotated[str, typer.Option(help="first: it is the first frame. fill: it fills the first chunk.")] = "first",
    model: ModelOption = "vista",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
) -> None:
    """Set a picture in motion: it becomes the first frame of the video."""
    from causvid import media

    media.check_output(out)
    check_seconds(seconds)
    picture = media.read_image(image)
    loaded = load_model(model, device, student, recipe, lora, codec)
    tell_understood(loaded, [prompt])
    session = loaded.session(prompt, seed=seed, **given(steps=steps))
    session.begin_with_image(picture, how)
    stream_to_file(session, out, seconds)
    typer.echo(out)


def extend(
    video: Annotated[Path, typer.Argument(help="The video to go on from.")],
    prompt: PromptOption,
    out: OutOption = Path("out.mp4"),
    seconds: Annotated[float, typer.Option(help="Length of what is added.")] = 6.75,
    model: ModelOption = "vista",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
) -> None:
    """Go on where a video ends. The result holds the video, as the codec shows it, and what follows."""
    from causvid import media

    media.check_output(out)
    check_seconds(seconds)
    loaded = load_model(model, device, student, recipe, lora, codec)
    tell_understood(loaded, [prompt])
    frames = media.read_video(video, loaded.cfg.fps, size=(loaded.cfg.height, loaded.cfg.width))
    session = loaded.session(prompt, seed=seed, **given(steps=steps))
    session.extend(frames)
    stream_to_file(session, out, len(frames) / loaded.cfg.fps + seconds)
    typer.echo(out)


def restyle(
    video: Annotated[Path, typer.Argument(help="The video to follow.")],
    prompt: PromptOption,
    out: OutOption = Path("out.mp4"),
    of: Annotated[
        str, typer.Option(help="What the video shows, if you can tell: where the prompt says otherwise it is changed.")
    ] = "",
    redraw: Annotated[bool, typer.Option("--redraw", help="Draw it anew, as for sketches.")] = False,
    strength: Annotated[
        str | None,
        typer.Option(help="How far to leave it: above 0, at most 1, or 'motion' (default: 0.95, with --redraw 0.7)."),
    ] = None,
    model: ModelOption = "vista",
    seed: SeedOption = 0,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
) -> None:
    """Follow a video, frame for frame, under another prompt."""
    from causvid import media
    from causvid.situation import EDIT, REDRAW

    media.check_output(out)
    if of and redraw:
        raise UserError("--redraw keeps nothing that --of could tell of; leave out one of them.")
    loaded = load_model(model, device, student, recipe, lora, codec)
    tell_understood(loaded, [prompt])
    tell_understood(loaded, [of] if of.strip() else [], story=False)
    frames = media.read_video(video, loaded.cfg.fps, size=(loaded.cfg.height, loaded.cfg.width))
    session = loaded.session(prompt, seed=seed)
    session.restyle(_strength(strength, REDRAW if redraw else EDIT), of=None if redraw else of)
    stream_to_file(session, out, len(frames) / loaded.cfg.fps, feed=_feeder(session, frames))
    typer.echo(out)


def _strength(text: str | None, default: float) -> float | str:
    if text is None or text == "motion":
        return text or default
    try:
        return float(text)
    except ValueError:
        raise UserError(f"'{text}' is not a strength; write a number above 0 and at most 1, or motion") from None


def _feeder(session: Any, frames: Any) -> Callable[[], None]:
    """Push frames as the session asks for them; past the end of the video its last frame stands still."""
    import numpy as np

    place = 0

    def feed() -> None:
        nonlocal place
        missing = session.num_missing_frames
        if missing:
            session.push(frames[np.minimum(np.arange(place, place + missing), len(frames) - 1)])
            place += missing

    return feed


@take_app.command("info")
def take_info(take: TakeArgument) -> None:
    """Print what a take holds, as JSON."""
    import json

    from causvid.take import Take

    typer.echo(json.dumps(Take.load(take).info(), indent=2, ensure_ascii=False))


@take_app.command("replay")
def take_replay(
    take: TakeArgument,
    out: OutOption = Path("out.mp4"),
    model: ModelOption = "vista",
    check: Annotated[bool, typer.Option("--check", help="Also make every chunk again, and compare.")] = False,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
) -> None:
    """Write the very frames that the stream showed."""
    from causvid import media
    from causvid.take import Take

    media.check_output(out)
    recorded, loaded = Take.load(take), load_model(model, device, student, recipe, lora, codec)
    _write(out, loaded, (shown.frames for shown in recorded.replay(loaded)), len(recorded.chunks))
    typer.echo(out)
    if check:
        from causvid.render import verify

        verdict = verify(recorded, loaded)
        typer.echo(verdict)
        if not verdict.equal:
            raise typer.Exit(1)


@take_app.command("render")
def take_render(
    take: TakeArgument,
    out: OutOption = Path("out.mp4"),
    model: ModelOption = "vista",
    steps: StepsOption = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Refine by the slow bidirectional teacher.")] = False,
    strength: Annotated[float, typer.Option(help="With --teacher: how far it may leave the take.")] = 0.6,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
) -> None:
    """Make a take anew: with other steps, another model's student, or the teacher."""
    from causvid import media, render
    from causvid.take import Take

    media.check_output(out)
    if teacher and (student or lora):
        raise UserError("--student and --lora are of the student, and --teacher does not use it: leave one of them out")
    recorded, loaded = Take.load(take), load_model(model, device, student, recipe, lora, codec)
    if teacher:
        shown = (piece.frames for piece in render.render_with_teacher(recorded, loaded, strength=strength, steps=steps))
        _write(out, loaded, shown, None)
    else:
        chunks = render.render(recorded, loaded, **given(steps=steps))
        _write(out, loaded, (chunk.frames for chunk in chunks), len(recorded.chunks))
    typer.echo(out)


def _write(out: Path, model: Any, pieces: Any, total: int | None) -> None:
    import numpy as np

    from causvid import media

    with show_progress() as progress:
        task = progress.add_task("chunks", total=total, note="")
        frames = []
        for piece in pieces:
            frames.append(piece)
            progress.advance(task)
    media.write_video(out, np.concatenate(frames), model.cfg.fps)


def serve(
    model: ModelOption = "vista",
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 7860,
    token: Annotated[
        str | None, typer.Option(help="What clients must know (default: made where one is needed).")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A page elsewhere that may connect; may be repeated.")
    ] = None,
    max_playing: Annotated[
        int | None, typer.Option(help="Streams at a time (default: as many as run in real time).")
    ] = None,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
) -> None:
    """The live studio in the browser, and its socket and REST interface."""
    import importlib.util

    missing = [name for name in ("fastapi", "uvicorn", "websockets") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the studio needs {', '.join(missing)}; install them with: pip install 'causvid[serve]'")

    from causvid.serve import app
    from causvid.serve.engine import EngineConfig

    app.serve(
        load_model(model, device, student, recipe, lora, codec),
        host,
        port,
        token=token,
        origins=tuple(origin or ()),
        cfg=EngineConfig(max_playing=max_playing),
        on_ready=lambda address: typer.echo(f"open {address}"),
    )
