"""`causvid evaluate`: a model against the ground truth, one report against another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from causvid.cli_options import DeviceOption, EtaOption, RecipeOption, StoryOption, show_progress
from causvid.errors import UserError

evaluate_app = typer.Typer(invoke_without_command=True)

ROLES, JUDGES = ("teacher", "student"), ("report", "select")


@evaluate_app.callback()
def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Option("--model", "-m", help="'vista', a model folder, or a run's weights/.")
    ] = "vista",
    role: Annotated[str, typer.Option(help="teacher or student: which network makes the clips.")] = "student",
    prompts: Annotated[int, typer.Option("--prompts", "-n", help="How many; a longer list begins as a shorter.")] = 64,
    split: Annotated[str, typer.Option(help="val, compose, order or paraphrase.")] = "val",
    steps: Annotated[int | None, typer.Option(help="Denoising steps (default: the model's own).")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Of the teacher. Several, as 1.5,3,5, are tried and one is chosen.")
    ] = None,
    eta: EtaOption = None,
    seeds: Annotated[int, typer.Option(help="Clips of each of the first 16 prompts, for diversity.")] = 1,
    long: Annotated[float, typer.Option(help="Seconds of eight streams, for drift.")] = 0.0,
    judge: Annotated[
        str | None, typer.Option(help="report for published numbers, select for choices (default: as is fit).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of clips and reports. The same command goes on.")] = (
        Path("evaluation")
    ),
    device: DeviceOption = None,
    recipe: RecipeOption = None,
    story: StoryOption = True,
) -> None:
    """Score a model of the world Vista: three columns between the ground truth and bad references.

    Several values of --guidance are a choice, which the judge `select` makes.
    """
    if context.invoked_subcommand:
        return
    values = _read_guidance(guidance)
    judge = judge or ("select" if len(values) > 1 else "report")
    _check(role, split, judge, seeds=seeds, steps=1 if steps is None else steps)
    _check_prompts(prompts)
    if len(values) > 1 and judge == "report":
        raise UserError("among several values of --guidance one is chosen, and choices are made by --judge select")
    if role == "student" and guidance is not None:
        raise UserError("a student has no guidance, it was distilled from a guided teacher; add --role teacher")
    if role == "student" and eta is not None:
        raise UserError("--eta is of the teacher, a student is sampled as its recipe says; add --role teacher")
    if role == "teacher" and recipe is not None:
        raise UserError("a recipe says how a student is run; leave out --recipe, or --role teacher")
    if role == "teacher" and long:
        raise UserError("the teacher makes clips as a whole and cannot stream; leave out --long, or --role teacher")
    if long and not 2 <= long <= 3600:
        raise UserError(f"--long is a length of 2 to 3600 seconds, got {long:g}")

    from causvid.evaluate import protocol, trial
    from causvid.evaluate.scoring import load_instruments
    from causvid.threads import choose_threads

    choose_threads()
    loaded, parts = trial.load_candidate(model, role, device, recipe)  # type: ignore[arg-type]
    instruments = load_instruments(judge)
    listed = protocol.prompts(split, prompts, choosing=judge == "select")
    results = []
    with show_progress() as progress:
        for value in values:
            settings = trial.settings_of(loaded, model, parts, role, steps, value, story, eta)  # type: ignore[arg-type]
            folder = out / f"guidance-{value:g}" if len(values) > 1 else out
            tried = trial.Trial(folder, loaded, settings, out / "truths", _show(progress, settings.label))
            results.append(tried.examine(listed, instruments, seeds=seeds, long=long))
    typer.echo(trial.table(results))
    for result in results:
        for line in (*result.report.warnings(), *result.told()):
            typer.echo(f"{result.label}: {line}")
    if len(results) > 1:
        best = max(results, key=lambda result: result.choice)
        typer.echo(f"chosen: {best.label} (mean of the calibrated columns {best.choice:.1f})")
    typer.echo(out)


def _show(progress: Any, label: str) -> Any:
    tasks: dict[str, Any] = {}

    def told(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(f"{label}: {what}", total=total, note="")
        progress.update(tasks[what], completed=done)

    return told


def _read_guidance(text: str | None) -> list[float | None]:
    """'1.5,3,5' -> [1.5, 3.0, 5.0]; None is the model's own."""
    if text is None:
        return [None]
    try:
        values: list[float | None] = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(value is not None and 1 <= value <= 100 for value in values):
        raise UserError(f"'{text}' is no guidance; write 3 or 1.5,3,5, each at least 1 (which is none)")
    return values


def _check(role: str, split: str, judge: str, **counts: int) -> None:
    splits = ("val", "compose", "order", "paraphrase")  # protocol.SUITES, which cannot be imported without torch
    for name, value, known in (("role", role, ROLES), ("split", split, splits), ("judge", judge, JUDGES)):
        if value not in known:
            raise UserError(f"there is no {name} '{value}'; use one of {', '.join(known)}")
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is at least 1, got {count}")


def _check_prompts(count: int) -> None:
    if count < 2:
        raise UserError(f"--prompts is at least 2, since captions are exchanged for the floor; got {count}")


@evaluate_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A report.json.")],
    b: Annotated[Path, typer.Argument(help="Another one, by the same judge.")],
) -> None:
    """Print the differences of two models on the prompts they share, pair by pair."""
    from causvid.evaluate.comparison import compare_reports

    typer.echo(compare_reports(a, b))


@evaluate_app.command()
def choose(
    run: Annotated[Path, typer.Argument(help="A finished `train dmd`: the students it kept are its candidates.")],
    prompts: Annotated[int, typer.Option("--prompts", "-n", help="How many.")] = 16,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of clips and reports. The same command goes on.")] = (
        Path("choice")
    ),
    device: DeviceOption = None,
    story: StoryOption = True,
) -> None:
    """Compare the students that a run kept on its way, by the judge for choices on prompts of its own. The last line
    is the folder of the best one, for `evaluate --model`, where the other judge reports on other prompts."""
    folders = sorted(folder for folder in (run / "weights" / "candidates").glob("*") if folder.is_dir())
    if not folders:
        raise UserError(f"{run} has no weights/candidates to choose from; give the folder of a finished `train dmd`")
    _check_prompts(prompts)

    from causvid.evaluate import protocol, trial
    from causvid.evaluate.scoring import load_instruments
    from causvid.threads import choose_threads

    choose_threads()
    instruments, listed = load_instruments("select"), protocol.prompts("val", prompts, choosing=True)
    results = []
    with show_progress() as progress:
        for folder in folders:
            model, parts = trial.load_candidate(str(folder), "student", device)
            settings = trial.settings_of(model, str(folder), parts, "student", story=story)
            tried = trial.Trial(out / folder.name, model, settings, out / "truths", _show(progress, folder.name))
            results.append(replace(tried.examine(listed, instruments), label=folder.name))
    typer.echo(trial.table(results))
    best = max(range(len(folders)), key=lambda place: results[place].choice)
    typer.echo(folders[best])


@evaluate_app.command()
def curve(
    points: Annotated[list[str], typer.Argument(help="report.json of a model and what it had seen, as a.json@60000.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture.")] = Path("curve.png"),
    axis: Annotated[str, typer.Option(help="What the numbers count.")] = "clips seen",
) -> None:
    """Draw the three columns against how much a model had learnt from, from reports on the same prompts."""
    from causvid.evaluate.comparison import curve_of
    from causvid.evaluate.figures import draw_curve

    places: list[tuple[float, Path]] = []
    for point in points:
        path, _, number = point.rpartition("@")
        try:
            places.append((float(number), Path(path)))
        except ValueError:
            raise UserError(f"'{point}' is no point of a curve; write report.json@60000") from None
    typer.echo(draw_curve(curve_of(places), out, axis))
