"""A take made anew: checked against itself, with other steps, by another student, or by the teacher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from causvid import flow, sample
from causvid.errors import UserError
from causvid.pixels import frames_from_video
from causvid.session import Chunk, Session
from causvid.situation import through_chunk
from causvid.story import first_words
from causvid.take import Event, Shown, Take

if TYPE_CHECKING:
    from causvid.bundle import Model


def render(take: Take, model: Model, **options: Any) -> Iterator[Chunk]:
    """Make a take again with another student, or with other `options`: steps, window, sink, relative."""
    take.check_codec(model)
    size = model.cfg.rollout.chunk
    if any(chunk.kind == "restyled" and chunk.num_latents != size for chunk in take.chunks[1:]):
        raise UserError(
            f"this take restyles chunks of another size than the {size} latent frames of '{model.cfg.name}'; "
            "render it with a student of the same chunk size"
        )
    session = Session.from_start(take, model, **options)
    events, starts = deque(take.events[1:]), take.starts()
    given = deque(index for index, note in enumerate(take.chunks) if note.kind == "given")
    place = made = 0  # the chunk of the take, and the latent frame, that come next
    while made < take.num_latents or given:
        while place + 1 < len(starts) and starts[place + 1] <= made:
            place += 1
        if given and starts[given[0]] <= made:
            place = given.popleft()  # late, if a larger chunk was made of what came before
        while events and events[0].chunk <= place:
            ask(session, events.popleft(), options)
        note = take.chunks[place]
        if note.kind == "given":
            session.give(take.latents[place])
        elif note.kind == "restyled":
            session.follow(take.sources[place], note)
        chunk = session.next_chunk()
        made += chunk.latents.shape[1]
        yield chunk


def ask(session: Session, event: Event, fixed: dict[str, Any]) -> None:
    """Ask for what was asked before, but for settings that are `fixed` now. Sources are followed as recorded, and a
    session tells the parts of a story itself."""
    value = event.value
    if value.get("told"):
        return
    if event.kind == "settings":
        value = {key: setting for key, setting in value.items() if key not in fixed}
    if event.kind != "source" and value:
        session.repeat(replace(event, value=value))


@dataclass(frozen=True)
class Verdict:
    """What making a take again showed."""

    num_chunks: int  # that were compared: all but the given ones
    different: tuple[int, ...]  # chunks that came out otherwise
    expected: tuple[int, ...]  # of those, the ones that were computed together with other streams
    max_difference: float  # of a latent

    @property
    def equal(self) -> bool:
        return not self.different

    def __str__(self) -> str:
        if self.equal:
            return f"{self.num_chunks} chunks made again, equal to the last bit"
        some = ", ".join(map(str, self.different[:5])) + (", ..." if len(self.different) > 5 else "")
        return (
            f"{len(self.different)} of {self.num_chunks} chunks differ, by at most {self.max_difference:.2g} ({some}); "
            f"{len(self.expected)} of them were computed in a batch with other streams"
        )


def verify(take: Take, model: Model) -> Verdict:
    """Make every chunk again after the recorded past, and compare."""
    take.check_codec(model)
    session = Session.from_start(take, model)
    events = deque(take.events[1:])
    compared, different, worst = 0, [], 0.0
    for index, (note, recorded) in enumerate(zip(take.chunks, take.latents)):
        while events and events[0].chunk <= index:
            ask(session, events.popleft(), {})
        if note.kind == "given":
            session.give(recorded)
        elif note.kind == "restyled":
            session.follow(take.sources[index], note)
        made = session.next_chunk().latents.cpu()
        if note.kind == "given":
            continue
        compared += 1
        if made.shape != recorded.shape:
            raise UserError(f"chunk {index} of this take has another size; it was made by another student")
        if not torch.equal(made, recorded):
            different.append(index)
            worst = max(worst, float((made - recorded).abs().max()))
            session.amend(recorded)
    expected = tuple(index for index in different if not take.chunks[index].exact)
    return Verdict(compared, tuple(different), expected, worst)


@torch.no_grad()
def render_with_teacher(
    take: Take,
    model: Model,
    *,
    strength: float = 0.6,
    steps: int | None = None,
    guidance: flow.Guidance | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Shown]:
    """Refine a take by the bidirectional teacher: its latents are noised to `strength` and denoised in many steps, in
    pieces of at most a training clip that end where a prompt or a shot does. 1 keeps nothing of it but the prompts.
    `on_step` is told (steps done, of all)."""
    take.check_codec(model)
    if not 0 < strength <= 1:
        raise UserError(f"strength is a noise level above 0 and at most 1, got {strength:g}")
    how = model.cfg.teacher
    guidance = how.guidance if guidance is None else guidance
    grid = flow.sigma_grid(how.steps if steps is None else steps, how.shift)
    levels = [strength, *(sigma for sigma in grid if sigma < strength)]
    pieces, ways = cut_into_clips(take, model.cfg.num_latents), ways_of_chunks(take, model)
    for number, (indices, prompt) in enumerate(pieces):
        x0 = torch.cat([take.latents[index] for index in indices], dim=1).to(device=model.device, dtype=model.dtype)
        travel = None if ways is None else torch.cat([ways[index] for index in indices])[None]
        noise = model.noise(take.seed, indices[0], tuple(x0.shape), travel)
        x = flow.add_noise(x0, noise(0), torch.full(x0.shape[:2], strength, device=x0.device))
        field = model.guided(model.embed([prompt]), guidance, travel)
        first = number * (len(levels) - 1)
        tell = _reporter(on_step, first, len(pieces) * (len(levels) - 1))
        refined = sample.euler(field, x, levels, tell, how.renewal, noise)
        if number == 0 or take.chunks[indices[0]].begins_shot:
            decode = model.decode_stream()
        yield Shown(frames_from_video(decode(refined.to(model.codec.dtype))), indices[0], prompt)


def ways_of_chunks(take: Take, model: Model) -> list[Tensor] | None:
    """How far the view had come at the frames of every chunk. None: this teacher is not told, or the student was not
    and let its view move as it liked."""
    course, events, ways = model.course(take.seed, model.need_teacher()), deque(take.events), []
    if course is None:
        return None
    if model.student_source is not None and model.view_noise(model.need_student()) is None:
        return None
    for index, note in enumerate(take.chunks):
        while events and events[0].chunk <= index:
            event = events.popleft()
            if event.kind in ("start", "prompt"):
                course = course.after(first_words(event.value))
        way, course = through_chunk(course, note.kind, note.num_latents)
        ways.append(way)
    return ways


def cut_into_clips(take: Take, max_latents: int) -> list[tuple[list[int], str]]:
    """Runs of chunks of one shot and one prompt, no longer than a training clip."""
    clips: list[tuple[list[int], str]] = []
    length = 0
    for index, (note, prompt) in enumerate(zip(take.chunks, take.prompts(told=True))):
        new = not clips or note.begins_shot or prompt != clips[-1][1] or length + note.num_latents > max_latents
        if new:
            clips.append(([], prompt))
            length = 0
        clips[-1][0].append(index)
        length += note.num_latents
    return clips


def _reporter(on_step: Callable[[int, int], None] | None, first: int, total: int) -> Any:
    return None if on_step is None else lambda done, _: on_step(first + done, total)
