"""The command line. Results go to files or stdout, progress to stderr; a mistake gets one sentence and a non-zero exit.

Nothing heavy is imported before a command needs it: `causvid --help` must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from causvid import cli_evaluate, cli_studio, cli_train
from causvid.cli_options import (
    CodecOption,
    DeviceOption,
    EtaOption,
    LoraOption,
    ModelOption,
    OutOption,
    RecipeOption,
    StoryOption,
    StudentOption,
    check_seconds,
    given,
    load_model,
    read_change,
    read_dtype,
    show_progress,
    stream_to_file,
    tell_chosen,
    tell_length,
    tell_named,
    tell_understood,
)
from causvid.errors import UserError

app = typer.Typer(
    name="causvid",
    help="Stream video from a causal few-step diffusion student, and train one from a bidirectional teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
SWITCHES = ("keep", "recache", "flush")  # situation.PROMPT_MODES, which cannot be imported without torch
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")


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
        typer.Option(
            "--at", metavar="TIME PROMPT", help="Another prompt from a time on, e.g. --at 4s 'a red car at night'."
        ),
    ] = None,
    switch: Annotated[str, typer.Option(help="How prompts change: keep, recache or flush.")] = "keep",
    size: Annotated[str | None, typer.Option(help="Pixels, as HEIGHTxWIDTH (default: the model's own).")] = None,
    window: Annotated[int | None, typer.Option(help="Latent frames a chunk looks back on.")] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Sample the slow bidirectional teacher instead.")] = False,
    guidance: Annotated[float | None, typer.Option(help="Guidance of the teacher; 1 is none.")] = None,
    eta: EtaOption = None,
    device: DeviceOption = None,
    student: StudentOption = None,
    recipe: RecipeOption = None,
    lora: LoraOption = None,
    codec: CodecOption = None,
    story: StoryOption = True,
) -> None:
    """Generate a video from a prompt, and from further prompts on the way."""
    from causvid import media

    media.check_output(out)
    check_seconds(seconds)
    timeline = [read_change(text) for text in at or []]
    if timeline and max(timeline)[0] >= seconds:
        raise UserError(f"the video ends after {seconds:g} s, before --at {max(timeline)[0]:g}s; add --seconds")
    if switch not in SWITCHES:
        raise UserError(f"there is no --switch {switch}; use one of {', '.join(SWITCHES)}")
    if guidance is not None and not 1 <= guidance <= 100:
        raise UserError(f"--guidance is 1, which is none, to 100; got {guidance:g}")
    if teacher and timeline:
        raise UserError("the teacher makes a clip as a whole and cannot change its prompt; leave out --teacher or --at")
    if not teacher and (guidance is not None or eta is not None):
        raise UserError("--guidance and --eta are of the teacher, a student has neither; add --teacher")
    loaded = load_model(model, device, student, recipe, lora, codec, size)
    tell_understood(loaded, [prompt, *(text for _, text in timeline)], story and not teacher)
    if teacher:
        options = given(steps=steps, guidance=guidance, eta=eta)
        if story:
            tell_chosen(loaded.names(prompt, seed), loaded.understand(prompt).text)
        frames = _sample(loaded, prompt, seconds, seed, named=story, **options)
        media.write_video(out, frames, loaded.cfg.fps)
    else:
        session = loaded.session(prompt, seed=seed, story=story, **given(steps=steps, window=window))
        tell_named(session)
        tell_length(session, seconds)
        stream_to_file(session, out, seconds, timeline, switch)
    typer.echo(out)


def _sample(model: Any, prompt: str, seconds: float, seed: int, eta: float | None = None, **options: Any) -> Any:
    renewal = model.cfg.teacher.renewal if eta is None else replace(model.cfg.teacher.renewal, eta=eta)
    with show_progress() as progress:
        task = progress.add_task("sampling", total=options.get("steps", model.cfg.teacher.steps), note="")
        return model.sample(
            prompt,
            seconds=seconds,
            seed=seed,
            renewal=renewal,
            on_step=lambda i, _: progress.update(task, completed=i),
            **options,
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the movie and the contact sheet.")] = Path("out"),
    model: ModelOption = "vista",
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Stream a short clip with a prompt switch, write it, and print how fast it was."""
    from causvid import media
    from causvid.demo import run

    media.check_folder(out)
    for line in run(load_model(model, device), out, seed):
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

    network = load_dit(source, dtype=read_dtype(dtype))
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
    split: Annotated[str, typer.Option(help="train, val, compose, order, paraphrase, timeline or revisit.")] = "train",
    kind: Annotated[
        str, typer.Option(help="clips alone, or each with its sketch, its relight target, or both (controls).")
    ] = "clips",
    size: Annotated[str, typer.Option(help="Pixels, as HEIGHTxWIDTH.")] = "64x112",
    num_frames: Annotated[int, typer.Option("--frames", help="Frames per clip, at 12 a second.")] = 81,
) -> None:
    """Render clips of Vista, the embedded world: movies, a contact sheet and captions to look at."""
    from causvid import media
    from causvid.worlds.vista.sheet import write_world

    media.check_folder(out)
    typer.echo(
        write_world(out, num_clips=num_clips, seed=seed, split=split, size=size, num_frames=num_frames, kind=kind)
    )


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


for command in (
    cli_train.train,
    cli_train.latents,
    cli_train.prepare,
    cli_studio.animate,
    cli_studio.extend,
    cli_studio.restyle,
    cli_studio.serve,
):
    app.command()(command)
app.add_typer(cli_studio.take_app, name="take")
app.add_typer(cli_evaluate.evaluate_app, name="evaluate")


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


def main() -> None:
    """Entry point."""
    try:
        _run()
    except SystemExit as end:
        if "WORLD_SIZE" in os.environ and isinstance(end.code, int):
            from causvid.training import parallel

            parallel.leave(end.code)
        raise


def _run() -> None:
    """User mistakes become one sentence, and nobody is shown a traceback unless they ask for it."""
    # Threads that spin for long starve each other on a busy machine; ones that sleep at once make two slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
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
