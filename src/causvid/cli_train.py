"""`causvid train`, and the data it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causvid.cli_options import DeviceOption, ModelOption, best_device, show_progress
from causvid.errors import UserError

STAGES = {
    "codec": "causvid.stages.codec",
    "text": "causvid.stages.text",
    "teacher": "causvid.stages.teacher",
    "ode-pairs": "causvid.stages.ode_pairs",
    "ode-init": "causvid.stages.ode_init",
    "dmd": "causvid.stages.dmd",
    "judges": "causvid.evaluate.judge_stage",
}


def train(
    stage: Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}.")],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", "-r", help="Where the run lives. The same command resumes it.")
    ] = None,
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
    if run_dir is None:
        raise UserError(f"say where the run shall live: --run-dir local/{stage}")
    if minutes is None and steps is None and stage != "ode-pairs":
        raise UserError("say how long to train: --minutes or --steps")
    place = {} if stage == "codec" else {"device": device or best_device()}
    typer.echo(module.train(cfg, run_dir, minutes=minutes, steps=steps, **place))


def latents(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pools. The same command goes on.")] = Path(
        "local/latents"
    ),
    images: Annotated[int, typer.Option(help="Single frames.")] = 40_960,
    short: Annotated[int, typer.Option(help="Clips of 6 latent frames.")] = 6_144,
    long: Annotated[int, typer.Option(help="Clips of 21 latent frames.")] = 3_072,
    changing: Annotated[int, typer.Option(help="Such clips in which light, weather or a colour changes.")] = 1_024,
    seldom: Annotated[int, typer.Option(help="Such clips in which something moves as it seldom does.")] = 1_024,
    unseen: Annotated[
        int, typer.Option(help="Such clips to tell learning from remembering by; none learns from them.")
    ] = 32,
    after: Annotated[
        Path | None,
        typer.Option(help="A folder of pools: these begin where its pools end, and hold none of its clips."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that render and encode.")] = 1,
) -> None:
    """Render Vista and encode it: the pools of latents that the training stages read."""
    from causvid.data.vista import make_vista_cache

    with show_progress() as progress:
        task = progress.add_task("shards", total=None, note="")
        make_vista_cache(
            out,
            num_images=images,
            num_short=short,
            num_long=long,
            num_changing=changing,
            num_seldom=seldom,
            num_unseen=unseen,
            after=after,
            num_workers=workers,
            on_shard=lambda done, total: progress.update(task, completed=done, total=total),
        )
    typer.echo(out)


def prepare(
    videos: Annotated[
        Path, typer.Argument(help="A folder of videos; captions in a .txt beside each or captions.jsonl.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pool. The same command goes on.")] = Path(
        "local/latents"
    ),
    model: ModelOption = "vista",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, e.g. fps=24; may be repeated.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Encode videos of your own with a model's codec, and their captions with its text encoder, for training.

    Under torchrun the processes share the work, each on a device of its own."""
    import os

    import torch

    from causvid import config, wan_world
    from causvid.codecs.vista import VistaCodec
    from causvid.data import prepare as preparing
    from causvid.data.vista import codec_identity
    from causvid.loading import find

    untold = preparing.videos_without_caption(videos)  # first: a wrong folder should be told before a model is read
    folder, is_vista = find(model), model == "vista"
    cfg = config.override(preparing.VISTA if is_vista else preparing.PrepareConfig(), settings or [])
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = "cpu" if is_vista else device or best_device()
    place = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and num_ranks > 1 else name)
    if untold and rank == 0:
        names = ", ".join(untold[:3]) + (", ..." if len(untold) > 3 else "")
        typer.echo(f"causvid: {len(untold)} videos have no caption and are passed over: {names}", err=True)
    with show_progress() as progress:
        task = progress.add_task("shards", total=None, note="", visible=rank == 0)
        made = preparing.prepare(
            cfg,
            videos,
            out,
            VistaCodec.load_packaged if is_vista else lambda: wan_world.load_codec(folder, place),
            None if is_vista else wan_world.load_text(folder, place),  # Vista's learns with its teacher
            codec_name=codec_identity() if is_vista else folder.name,
            device=place,
            rank=rank,
            num_ranks=num_ranks,
            on_shard=lambda done, total: progress.update(task, completed=done, total=total),
        )
    typer.echo(f"{out}: {made}")
