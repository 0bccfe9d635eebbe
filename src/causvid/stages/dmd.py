"""Asymmetric distillation (Algorithm 1): a causal few-step student learns from a bidirectional teacher.

Reads:  a teacher, a student from ode_init, prompts or clips.
Writes: a run folder; weights/student.safetensors is the averaged student, weights/candidates/ those on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from causvid import flow
from causvid.adapters import AdapterConfig
from causvid.chunks import Span, chunk_bounds, hold_per_chunk
from causvid.data.clips import Pool
from causvid.data.prompts import VISTA, Script, one_prompt, read_scripts, ways_of
from causvid.errors import UserError
from causvid.models.dit import VideoDiTConfig
from causvid.models.wan import WAN_14B
from causvid.noise import mix, seeded
from causvid.presets import (
    PAPER_STUDENT,
    VISTA_DIT,
    VISTA_MOVING_DIT,
    VISTA_MOVING_STUDENT,
    VISTA_NOISE,
    VISTA_STUDENT,
    WAN_DATA_STUDENT,
    WAN_DIT,
    WAN_STUDENT,
)
from causvid.rollout import RolloutConfig
from causvid.shapes import FrameSigma, Latents, Text
from causvid.stages.dmd_actors import Actors, adapters_on_one, four_networks, write_student
from causvid.stages.dmd_losses import critic_loss, dmd_gradient, signs_of_life, spread, student_loss
from causvid.stages.memory import memory_need
from causvid.stages.replay import Replay
from causvid.stages.self_rollout import roll_out, write_student_sheet
from causvid.stages.sources import (
    Draws,
    Dtype,
    Gallery,
    Network,
    Role,
    encode_ahead,
    frozen,
    hand_on_words,
    open_gallery,
    parts_of,
    read_network,
    read_student_words,
    read_words,
    shard,
)
from causvid.training import parallel
from causvid.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from causvid.training.monitors import LossBySigma
from causvid.training.optim import OptimConfig, all_parameters, build_optimizers, learning_rate, step_all
from causvid.training.run import Budget, Run, take_steps
from causvid.view_noise import ViewNoise, set_free, unknown_ways

STATUS_SECONDS = 20.0
VIDEO, EXIT, SCORE, NOISE, REPLAY, CHECK, FREE = range(7)  # names of draws
STUDENT_TURN = 0  # turns of a step: the student's, then those of the critic: 1, 2, ...

# ---- config --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DMDConfig:
    model: VideoDiTConfig
    teacher: str  # a folder of weights, or a Wan model
    init: str | None  # a folder of weights of a student; None: start from the teacher's
    student: RolloutConfig
    clip: tuple[int, int, int, int]  # latent frames, channels, height, width
    student_optim: OptimConfig
    critic_optim: OptimConfig
    batch: int
    guidance: flow.Guidance  # on the teacher; 1 is none. What other code calls w is this minus 1
    student_model: VideoDiTConfig | None = None  # None: the teacher's size; else what `init` has
    critic_model: VideoDiTConfig | None = None  # None: the teacher's size; else what `critic` has
    guide: str | None = None  # weights of a worse teacher, for the pass of guidance that has no caption; None: the same
    input: Literal["data", "self"] = "data"  # noised clips (paper, Algorithm 1), or the student's own past
    exit: Literal["shared", "per chunk", "last"] = "shared"  # self: which step of a chunk learns
    sight: Literal["both ways", "causal"] = "both ways"  # of teacher and critic; causal is the ablation
    prompts: str = VISTA  # self: 'vista', or a text file
    # self: the share of Vista's clips whose prompt changes on the way. Teacher and critic see the clip under its last
    # prompt, and judge what was made under that
    changing: float = 0.0
    foretold: float = 0.0  # self: the share of clips whose one prompt tells of a change of light, weather or colour
    data: str | None = None  # data: folder of pools
    pool: str = "long"
    critic_updates: int = 5  # for each of the student (paper, section 5)
    critic_batch: int | None = None  # None: as large as the student's
    critic_warmup: int = 0  # updates before the student's first
    # weights of one that knows the student already, of an earlier run, or a Wan model; None: the teacher's
    critic: str | None = None
    replay: int = 0  # recent videos that critic updates share; 0: a new video for every update
    view_noise: ViewNoise | None = None  # noise that moves with the view of Vista's prompts, as the teacher learnt it
    free_noise: float = 0.1  # the share of clips whose noise does not: students are given pictures of unknown cameras
    score_shift: float = 3.0  # of the levels at which teacher and critic look
    score_range: tuple[float, float] = (0.02, 0.98)
    ema_decay: float = 0.98
    accumulate: int = 1  # parts of a batch, one after the other
    recompute: bool = False  # activations in the backward pass, to save memory
    adapter: AdapterConfig | None = None  # train adapters on one frozen teacher instead of whole networks
    dtype: Dtype = "bfloat16"
    seed: int = 0
    log_every: int = 5  # steps
    checkpoint_minutes: float = 5.0
    sample_minutes: float = 10.0
    candidates: int = 12  # students kept for choosing the best one

    @property
    def sizes(self) -> dict[Role, VideoDiTConfig]:
        return {
            "teacher": self.model,
            "critic": self.critic_model or self.model,
            "student": self.student_model or self.model,
        }

    def check(self) -> None:
        if self.input == "data" and self.data is None:
            raise UserError("input=data noises real clips; set data to a folder of latents, or set input=self.")
        if self.input == "data" and self.student.first_sigmas:
            raise UserError("input=data knows one list of levels; leave out student.first_sigmas, or set input=self.")
        if (self.changing or self.foretold) and (self.input == "data" or self.prompts != VISTA):
            raise UserError(
                "only Vista's own prompts tell of changes; set changing=0 foretold=0, or input=self prompts=vista."
            )
        if self.view_noise is not None and self.input == "self" and self.prompts != VISTA:
            raise UserError("only Vista's own prompts tell how the view moves; set view_noise=null, or prompts=vista.")
        if self.changing + self.foretold > 1:
            raise UserError(
                f"changing={self.changing} and foretold={self.foretold} are shares of the same clips; "
                "let them sum to 1 at most."
            )
        for name, size, start in (
            ("student_model", self.student_model, "init"),
            ("critic_model", self.critic_model, "critic"),
        ):
            if size is not None and self.adapter is not None:
                raise UserError(f"adapters are on one network of the teacher's size; leave out {name}, or adapter.")
            if size is not None and getattr(self, start) is None:
                raise UserError(f"{name}: what is not of the teacher's size cannot start as the teacher; set {start}.")
        if self.critic is not None and self.adapter is not None:
            raise UserError("a critic that is an adapter starts with the teacher's weights; leave out critic.")
        if 0 < self.replay < self.batch:
            raise UserError(
                f"a replay of {self.replay} videos is smaller than a batch; set it to {self.batch} or more."
            )


ADAM = OptimConfig(lr=1e-4, muon=False, betas=(0.0, 0.999), clip=10.0, warmup=10)
VISTA_DMD = DMDConfig(
    model=VISTA_DIT,
    teacher="local/teacher/weights",
    init="local/ode-init/weights",
    student=VISTA_STUDENT,
    clip=(21, 16, 8, 14),
    student_optim=ADAM,
    critic_optim=replace(ADAM, lr=2e-4),
    batch=8,
    guidance=3.0,
    input="self",
    changing=0.5,
    critic_batch=4,
    replay=32,
    score_shift=6.0,
    score_range=(0.02, 0.995),
)
# (CausVid's released 4-step configuration) noised clips, shifts of 8, both rates 2e-6, w = 2, batch 64
WAN_ADAM = OptimConfig(lr=2e-6, muon=False, betas=(0.9, 0.999), clip=10.0, warmup=0)
WAN_DMD = DMDConfig(
    model=WAN_DIT,
    teacher="models/Wan2.1-T2V-1.3B",
    init="local/ode-init/weights",
    student=WAN_DATA_STUDENT,
    clip=(21, 16, 60, 104),
    student_optim=WAN_ADAM,
    critic_optim=WAN_ADAM,
    batch=64,
    guidance=3.0,
    data="local/latents",
    score_shift=8.0,
    ema_decay=0.99,
    accumulate=8,
    recompute=True,
    checkpoint_minutes=30.0,
    sample_minutes=60.0,
)
# (Self Forcing) the student's own past, shifts of 5, w = 3, critic at a fifth of the rate; 120 updates of the student
WAN_SELF_DMD = replace(
    WAN_DMD,
    student=WAN_STUDENT,
    input="self",
    prompts="prompts/train.txt",
    data=None,
    guidance=4.0,
    score_shift=5.0,
    student_optim=replace(WAN_ADAM, betas=(0.0, 0.999)),
    critic_optim=replace(WAN_ADAM, lr=4e-7, betas=(0.0, 0.999)),
)
PRESETS = {
    "vista": VISTA_DMD,
    "vista-moving": replace(
        VISTA_DMD,
        model=VISTA_MOVING_DIT,
        view_noise=VISTA_NOISE,
        student=VISTA_MOVING_STUDENT,
        score_shift=2.0,  # instead of 6, for the reason of that student's levels
    ),
    "vista-data": replace(VISTA_DMD, input="data", data="local/latents", changing=0.0, critic_batch=None, replay=0),
    "wan-1.3b": WAN_SELF_DMD,
    "wan-1.3b-data": WAN_DMD,
    # (Self Forcing) a larger teacher; critic and student begin as the small model, not as the teacher
    "wan-1.3b-of-14b": replace(
        WAN_SELF_DMD,
        model=WAN_14B,
        teacher="models/Wan2.1-T2V-14B",
        student_model=WAN_DIT,
        critic_model=WAN_DIT,
        critic="models/Wan2.1-T2V-1.3B",
    ),
    # one 80 GB device: adapters on one frozen copy
    "wan-1.3b-lora": replace(
        WAN_SELF_DMD,
        adapter=AdapterConfig(rank=128),
        student_optim=replace(WAN_ADAM, lr=1e-5),
        critic_optim=replace(WAN_ADAM, lr=2e-6),
        batch=8,
    ),
    # (paper, section 5) 6000 updates, guidance 3.5 in the form cond + w (cond - uncond), no shift
    "paper": replace(WAN_DMD, student=PAPER_STUDENT, clip=(20, 16, 60, 104), guidance=4.5, score_shift=1.0),
}


# ---- the run -------------------------------------------------------------------------------------------------------


def train(
    cfg: DMDConfig,
    run_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    gallery: Gallery | None = None,
) -> Path:
    """Train until the budget is used up, or resume and do so; a step is one update of the student. Returns the folder
    of the weights."""
    cfg.check()
    place = parallel.start(device)
    sitting = Sitting(cfg, run_dir, place, gallery or open_gallery(cfg.teacher, place))
    sitting.encode_ahead(steps or 0)
    weights = run_dir / "weights"

    def hand_on() -> None:
        write_student(sitting.actors, cfg.sizes["student"], weights)
        hand_on_words(cfg.init or cfg.teacher, weights)

    take_steps(
        sitting,
        Budget(minutes, steps, sitting.seconds),
        save_minutes=cfg.checkpoint_minutes,
        show_minutes=cfg.sample_minutes,
        show=lambda progress: sitting.show(),
        hand_on=hand_on,
    )
    return weights


@dataclass(frozen=True)
class Inputs:
    """A batch to make videos from, known whole on every rank, but for its clips."""

    scripts: list[Script]
    latents: Latents | None  # clips, where they are noised: of this rank's rows
    ways: Tensor  # [B, T], how their views move; no numbers where noise does not go along
    bounds: list[Span]  # of the chunks

    @property
    def prompts(self) -> list[str]:
        """In force when the last chunk is made."""
        return [script.at(self.bounds[-1][0]) for script in self.scripts]

    def judged(self) -> Tensor:
        """[B, T, 1, 1, 1]: 1 for frames that were made under that prompt, 0 for those before."""
        rows = [
            [float(script.at(start) == prompt) for start, stop in self.bounds for _ in range(start, stop)]
            for script, prompt in zip(self.scripts, self.prompts)
        ]
        return torch.tensor(rows)[:, :, None, None, None]


class Sitting:
    """Everything that one process of a run holds between two steps."""

    def __init__(self, cfg: DMDConfig, run_dir: Path, device: torch.device, gallery: Gallery) -> None:
        self.cfg, self.device, self.gallery = cfg, device, gallery
        self.pool = Pool(Path(cfg.data), cfg.pool) if cfg.input == "data" and cfg.data else None
        self.scripts = read_scripts(cfg.prompts, cfg.seed, cfg.changing, cfg.foretold) if self.pool is None else None
        self.run = Run(run_dir, cfg, data=self.pool.identity if self.pool else f"prompts {cfg.prompts}")
        self.run.status(str(memory_need(cfg, parallel.num_ranks())))
        torch.manual_seed(cfg.seed)
        self.bounds = chunk_bounds(cfg.clip[0], cfg.student.chunk, cfg.student.first_chunk)
        self.actors = self.cast_actors()
        self.guide = self.read_guide()
        self.words = read_words(cfg.teacher, device)  # of teacher and critic
        self.student_words = read_student_words(cfg.init, cfg.teacher, self.words)
        self.optimizers = {
            "student": build_optimizers(cfg.student_optim, [self.actors.trained["student"]]),
            "critic": build_optimizers(cfg.critic_optim, [self.actors.trained["critic"]]),
        }
        self.modules = self.actors.modules
        self.replay = None
        if cfg.replay:
            encoder = self.words.encoder
            self.replay = Replay(cfg.replay, cfg.clip, (encoder.length, encoder.width), device)
            self.modules["replay"] = self.replay
        self.by_sigma = LossBySigma()
        self.critic_losses: list[float] = []
        self.step, self.seconds, self.drawn = 0, 0.0, 0
        if self.run.checkpoint is not None:
            self.resume(self.run.checkpoint)

    def cast_actors(self) -> Actors:
        cfg, policy = self.cfg, self.cfg.student.policy
        causal = {"bounds": self.bounds, "window": policy.window, "sink": policy.sink}
        settings: dict[str, Any] = {
            "teacher": cfg.teacher,
            "student": cfg.init,
            "score_sight": causal if cfg.sight == "causal" else {},
            "student_sight": causal if cfg.input == "data" else {},
            "ema_decay": cfg.ema_decay,
            "dtype": cfg.dtype,
            "recompute": cfg.recompute,
            "device": self.device,
        }
        if cfg.adapter is None:
            return four_networks(cfg.sizes, critic=cfg.critic, **settings)
        actors, kept = adapters_on_one(cfg.model, cfg.adapter, seed=cfg.seed, **settings)
        self.run.status(f"rank {cfg.adapter.rank} holds {kept:.1%} of the way from the teacher to the given student")
        return actors

    def read_guide(self) -> Network | None:
        if self.cfg.guide is None:
            return None
        worse = read_network(self.cfg.model, self.cfg.guide, "teacher", self.device)
        return replace(self.actors.teacher, model=shard(frozen(worse, self.cfg.dtype)), acting=nullcontext)

    # ---- Algorithm 1 -----------------------------------------------------------------------------------------------

    def take_step(self, progress: float) -> None:
        """One update of the student and several of the critic (two time scales)."""
        cfg = self.cfg
        if self.step == 0:
            for turn in range(cfg.critic_warmup):
                self.update_critic(0.0, 1 + cfg.critic_updates + turn, fresh=True)
        newest, norm = self.update_student(progress)
        for turn in range(1, 1 + cfg.critic_updates):
            self.update_critic(progress, turn)
        self.step += 1
        if self.step % cfg.log_every == 0:
            self.report(progress, norm, *newest)

    def update_student(self, progress: float) -> tuple[tuple[Latents, Text, Tensor], float]:
        """Returns the new videos of this rank with their text and how their views move, and the gradient's norm."""
        cfg, actors, inputs = self.cfg, self.actors, self.read(self.cfg.batch)
        videos = []
        for rows in parts_of(cfg.batch, cfg.accumulate):
            draws = self.draws(STUDENT_TURN, rows)
            text, no_text = self.words(inputs.prompts[rows]), self.words.none(rows.stop - rows.start)
            with actors.student.acting():  # the backward pass too: it may compute layers again
                x0 = self.make_video(inputs, draws, grad=True)
                ways = draws.cut(inputs.ways)
                sigma, eps = self.score_level(draws), self.score_noise(draws, ways)
                real, fake = partial(actors.teacher, travel=ways), partial(actors.critic, travel=ways)
                guide = self.guide and partial(self.guide, travel=ways)
                gradient = dmd_gradient(x0, real, fake, text, no_text, sigma, eps, cfg.guidance, guide)
                judged = draws.cut(inputs.judged())
                gradient = gradient * judged
                (student_loss(x0, gradient) / cfg.accumulate).backward()
            counted = judged[:, :, 0, 0, 0] > 0
            self.by_sigma.add(gradient.square().mean(dim=(2, 3, 4)).sqrt()[counted], sigma[counted])
            videos.append(x0.detach())
        norm = self.descend("student", learning_rate(cfg.student_optim, self.step, progress))
        actors.ema.update(actors.trained["student"])
        mine = torch.cat(videos)
        if self.replay is not None:
            self.replay.put(parallel.union_of_rows(mine), self.words(inputs.prompts), inputs.ways)
        rows = parallel.my_rows(cfg.batch)
        return (mine, self.words(inputs.prompts[rows]), inputs.ways[rows]), norm

    def update_critic(self, progress: float, turn: int, *, fresh: bool = False) -> None:
        cfg, critic = self.cfg, self.actors.critic
        batch = cfg.critic_batch or cfg.batch
        inputs = known = None
        if fresh or self.replay is None:
            inputs = self.read(batch)
        else:
            known = self.replay.draw(batch, self.draws(turn).rng(REPLAY))
        total = torch.zeros((), device=self.device)
        for rows in parts_of(batch, cfg.accumulate):
            draws = self.draws(turn, rows, batch)
            if known is not None:
                videos, texts, travels = known
                x0, text, ways = draws.cut(videos), draws.cut(texts), draws.cut(travels)
            else:
                assert inputs is not None
                x0, text = self.make_video(inputs, draws, grad=False), self.words(inputs.prompts[rows])
                ways = draws.cut(inputs.ways)
            with critic.acting():
                told = partial(critic, travel=ways)
                errors = critic_loss(told, x0, text, self.score_level(draws), self.score_noise(draws, ways))
                loss = errors.mean() / cfg.accumulate
                loss.backward()
            total += loss.detach()
        updates = self.step * cfg.critic_updates + turn
        self.descend("critic", learning_rate(cfg.critic_optim, updates, progress))
        self.critic_losses.append(float(parallel.mean_over_ranks(total)))

    def make_video(self, inputs: Inputs, draws: Draws, *, grad: bool) -> Latents:
        """The student's estimate of a clean clip, from noised data or on its own past."""
        cfg, student, ways = self.cfg, self.actors.student, draws.cut(inputs.ways)
        if inputs.latents is None:
            texts = self.text_of_chunks(inputs.scripts[draws.rows])

            def noise(chunk: int, draw: int, frames: int) -> Latents:
                own, start = draws.normal((frames, *cfg.clip[1:]), VIDEO, chunk, draw), self.bounds[chunk][0]
                return draws.carried(own, cfg.view_noise, ways[:, start : start + frames], VIDEO, draw)

            exits = self.exits(draws)
            return roll_out(student, cfg.student, cfg.clip, texts, noise, exits, ways=ways, grad=grad)
        text = self.student_words(inputs.prompts[draws.rows])
        # a chunk at level 0 is finished context, as streams have it: its estimate is its input, so that nothing is to
        # be masked, and gradients come to it from later chunks alone
        per_chunk = draws.integers(len(cfg.student.sigmas), (len(self.bounds),), VIDEO, 0)
        sigma = torch.tensor(cfg.student.sigmas, device=self.device)[hold_per_chunk(per_chunk, self.bounds)]
        eps = draws.carried(draws.normal(cfg.clip, VIDEO, 1), cfg.view_noise, ways, VIDEO, 1)
        x_t = flow.add_noise(draws.cut_own(inputs.latents), eps, sigma)
        with torch.set_grad_enabled(grad):
            return flow.x0_from_velocity(x_t, student(x_t, sigma, text, travel=ways), sigma)

    def text_of_chunks(self, scripts: list[Script]) -> list[Text]:
        """What the student reads while it makes each chunk; encoded again only where a prompt changes."""
        prompts = [[script.at(start) for script in scripts] for start, _ in self.bounds]
        texts = [self.student_words(prompts[0])]
        for before, now in zip(prompts[:-1], prompts[1:]):
            texts.append(texts[-1] if now == before else self.student_words(now))
        return texts

    def exits(self, draws: Draws) -> list[int] | None:
        """The step at which each chunk leaves, the same for all clips of the batch, on all ranks."""
        if self.cfg.exit == "last":
            return None
        num_steps, num_chunks = len(self.cfg.student.sigmas) - 1, len(self.bounds)
        drawn = torch.randint(num_steps, (num_chunks,), generator=draws.rng(EXIT)).tolist()
        return drawn if self.cfg.exit == "per chunk" else drawn[:1] * num_chunks

    def score_noise(self, draws: Draws, ways: Tensor) -> Latents:
        return draws.carried(draws.normal(self.cfg.clip, NOISE), self.cfg.view_noise, ways, NOISE)

    def score_level(self, draws: Draws) -> FrameSigma:
        """One level per clip: teacher and critic see the clip as a whole."""
        low, high = self.cfg.score_range
        drawn = flow.draw_score_sigma(draws.batch, draws.rng(SCORE), shift=self.cfg.score_shift, low=low, high=high)
        return draws.cut(drawn)[:, None].expand(-1, self.cfg.clip[0])

    # ---- around it -------------------------------------------------------------------------------------------------

    def read(self, batch: int) -> Inputs:
        """The next clips or prompts."""
        cfg, place, self.drawn = self.cfg, self.drawn, self.drawn + batch
        latents, ways = None, None
        if self.pool is not None:
            clips = self.pool.batch(place, batch, cfg.clip[0], cfg.seed, parallel.my_rows(batch))
            scripts, latents, ways = [one_prompt(caption) for caption in clips.captions], clips.latents, clips.travel
        else:
            assert self.scripts is not None
            scripts = [self.scripts(number) for number in range(place, self.drawn)]
            if cfg.view_noise is not None:
                seeds = (mix(cfg.seed, number) for number in range(place, self.drawn))
                ways = ways_of(scripts, cfg.clip[0], seeds)
        if ways is None:
            ways = unknown_ways(batch, cfg.clip[0])
        return Inputs(scripts, latents, set_free(ways, cfg.free_noise, seeded(cfg.seed, place, FREE)), self.bounds)

    def encode_ahead(self, steps: int) -> None:
        """Let a large text encoder read all prompts of the run. How many those are, only a number of steps tells."""
        for words in dict.fromkeys((self.words, self.student_words)):
            encode_ahead(words, self.all_prompts(steps), self.run.status)

    def all_prompts(self, steps: int) -> Iterator[str]:
        """Of this many steps, and of sheets."""
        yield from self.gallery.prompts
        if self.pool is not None:
            yield from chain.from_iterable(self.pool.captions)
        else:
            assert self.scripts is not None
            for number in range(self.drawn_after(steps)):
                yield from (prompt for _, prompt in self.scripts(number).cues)

    def drawn_after(self, steps: int) -> int:
        """How many clips a run has read after its first steps."""
        cfg, of_critic = self.cfg, self.cfg.critic_batch or self.cfg.batch
        turns = 0 if cfg.replay else cfg.critic_updates
        return cfg.critic_warmup * of_critic + steps * (cfg.batch + turns * of_critic) if steps else 0

    def draws(self, turn: int, rows: slice = slice(0, 0), batch: int | None = None) -> Draws:
        return Draws((self.cfg.seed, self.step, turn), batch or self.cfg.batch, rows, self.device)

    def descend(self, name: str, rate: float) -> float:
        """One optimiser step; the gradients' norm."""
        optimizers = self.optimizers[name]
        cfg = self.cfg.student_optim if name == "student" else self.cfg.critic_optim
        norm = parallel.clip_gradients(all_parameters(optimizers), cfg.clip)
        if not math.isfinite(norm):
            raise UserError(f"the {name} diverged at step {self.step}; start a new run with a lower {name}_optim.lr.")
        step_all(optimizers, rate)
        return norm

    @torch.no_grad()
    def report(self, progress: float, norm: float, x0: Latents, text: Text, ways: Tensor) -> None:
        """`critic_lead`: how much better than its teacher the critic knows the student's videos; below 0, it lags."""
        cfg = self.cfg
        networks = {"teacher": self.actors.teacher, "critic": self.actors.critic}
        errors = dict.fromkeys(networks, torch.zeros((), device=self.device))
        for rows in parts_of(cfg.batch, cfg.accumulate):
            draws = self.draws(CHECK + 1_000, rows)
            video, words, way = draws.cut_own(x0), draws.cut_own(text), draws.cut_own(ways)
            sigma, eps = self.score_level(draws), self.score_noise(draws, way)
            for name, network in networks.items():
                loss = critic_loss(partial(network, travel=way), video, words, sigma, eps).mean()
                errors[name] = errors[name] + loss / cfg.accumulate
        life = signs_of_life(x0, [start for start, _ in self.bounds[1:]])
        told = {"critic_lead": errors["teacher"] - errors["critic"], "newest": errors["critic"], **life}
        values = {name: float(parallel.mean_over_ranks(value)) for name, value in told.items()}
        by_level = {name.replace("loss", "dmd"): value for name, value in self.by_sigma.read().items()}
        losses, self.critic_losses = self.critic_losses, []
        mean_loss = sum(losses) / max(1, len(losses))
        values |= {"critic_loss": mean_loss, "gradient": norm, "seconds": round(self.seconds, 2), "progress": progress}
        self.run.log(self.step, **values, **by_level, drawn=self.drawn)
        self.run.status(
            f"{progress:6.1%}  step {self.step}  critic {mean_loss:.4f} lead {values['critic_lead']:+.4f}  "
            f"std {values['std']:.3f} motion {values['motion']:.3f}  gradient {norm:.3f}  "
            f"{self.seconds / self.step:.2f} s/step",
            every=STATUS_SECONDS,
        )

    def show(self) -> None:
        """This student as a candidate for whoever chooses the best, and a sheet of samples."""
        cfg, name = self.cfg, f"step-{self.step:08d}"
        folder = self.run.folder / "weights" / "candidates"
        if cfg.candidates:
            write_student(self.actors, cfg.sizes["student"], folder / name)
            hand_on_words(cfg.init or cfg.teacher, folder / name)
        if parallel.is_first():
            for old in sorted(folder.glob("step-*"), reverse=True)[cfg.candidates :]:
                for weights in old.iterdir():
                    weights.unlink()
                old.rmdir()
        average = Network(self.actors.average.model, cfg.dtype, acting=self.actors.average.acting)
        file = self.run.folder / "samples" / f"{name}.png"
        clips = write_student_sheet(
            file, average, cfg.student, cfg.clip, self.student_words, self.gallery, cfg.view_noise
        )
        life = signs_of_life(clips, [start for start, _ in self.bounds[1:]])
        values = {f"sample_{key}": float(value) for key, value in life.items()}
        self.run.log(self.step, sample_spread=float(spread(clips)), **values)

    def save(self) -> None:
        save_checkpoint(
            self.run.folder / "checkpoints",
            self.step,
            modules=self.modules,
            optimizers=self.flat_optimizers,
            state={"seconds": self.seconds, "drawn": self.drawn, "ema_updates": self.actors.ema.num_updates},
            about=self.run.about,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, modules=self.modules, optimizers=self.flat_optimizers)
        self.step, state = checkpoint.step, checkpoint.state
        self.seconds, self.drawn, self.actors.ema.num_updates = state["seconds"], state["drawn"], state["ema_updates"]
        self.run.status(f"resuming at step {self.step}, after {self.seconds / 60:.1f} minutes of training")

    @property
    def flat_optimizers(self) -> dict[str, Any]:
        return {f"{who}.{kind}": o for who, kinds in self.optimizers.items() for kind, o in kinds.items()}
