"""Put trained networks where the package ships them from: bfloat16, how they are run, and checksums.

    python scripts/package_vista.py --teacher RUN/weights [--student RUN/weights ...]
    python scripts/package_vista.py --codec RUN/weights/codec.safetensors
    python scripts/package_vista.py --teacher RUN/weights --student RUN/weights --out FOLDER    # a model of its own

Model cards stand beside the weights and are written by hand: data, recipe, figures, commit.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from causvid import config
from causvid.atomic import whole_file
from causvid.bundle import SPEC_FILE, ModelConfig, TeacherSampling
from causvid.checkpoints import config_metadata, load_dit
from causvid.codecs.vista import VistaCodec
from causvid.differences import write_difference
from causvid.export import save_original
from causvid.flow import Guidance
from causvid.models.dit import VideoDiT
from causvid.presets import VISTA_MOVING_STUDENT, VISTA_NOISE, VISTA_STUDENT, VISTA_STUDENT_FRAMEWISE
from causvid.rollout import RolloutConfig
from causvid.sample import Renewal
from causvid.text.vista import VistaText

RENEWAL = Renewal(eta=1.0, until=0.4)  # no better nor worse than the ODE by the reporting judge (docs/log.md)
FIRST_SIGMAS = (1.0, 0.97, 0.9, 0.75, 0.0)  # one latent frame alone needs more steps where scenes are decided
STEADY = 0.9
TEACHER_SHIFT = 3.0

PACKAGED = Path(__file__).parent.parent / "src/causvid/weights/vista"


def spec(guidance: Guidance, student: RolloutConfig, is_told_of_the_view: bool) -> ModelConfig:
    return ModelConfig(
        name="vista",
        fps=12,
        height=64,
        width=112,
        num_latents=21,
        codec="vista",
        text="vista",
        rollout=student,
        recipes={"framewise": replace(student, chunk=1)} if student.chunk > 1 else {},
        teacher=TeacherSampling(steps=50, guidance=guidance, shift=TEACHER_SHIFT, renewal=RENEWAL),
        view_noise=VISTA_NOISE if is_told_of_the_view else None,
        steady=STEADY,
    )


def read_guidance(text: str) -> Guidance:
    """3, or {"steps": [[1, 3], [0.8, 2]]}."""
    return TypeAdapter(Guidance).validate_json(text)


def mean_of(folders: list[Path], name: str) -> VideoDiT:
    first, *others = [load_dit(folder / name).float() for folder in folders]
    with torch.no_grad():
        for p, *same in zip(*(network.parameters() for network in (first, *others)), strict=True):
            p.copy_(torch.stack([p, *same]).mean(0))
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        help="folder with teacher.safetensors, text.safetensors; of several, the mean of their weights",
    )
    parser.add_argument("--guide", type=Path, help="a worse teacher to guide that one, guide.safetensors of its run")
    parser.add_argument(
        "--student", type=Path, nargs="+", help="folder with student.safetensors; of several, the mean of their weights"
    )
    parser.add_argument("--framewise", action="store_true", help="the student makes one latent frame at a time")
    parser.add_argument("--codec", type=Path, help="codec.safetensors of a run (default: the packaged one)")
    parser.add_argument("--guidance", type=read_guidance, default=3.0, help="the teacher's, as chosen by a sweep")
    parser.add_argument("--out", type=Path, default=PACKAGED, help="another folder, to be loaded as a model")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    codec = options.codec or PACKAGED / "codec.safetensors"
    if codec != out / "codec.safetensors":
        VistaCodec.load(codec)  # or it is refused
        shutil.copyfile(codec, out / "codec.safetensors")
    guide = load_dit(options.guide) if options.guide else None  # which may differ from the teacher that is replaced
    student = mean_of(options.student, "student.safetensors") if options.student else None
    if options.teacher:
        teacher = mean_of(options.teacher, "teacher.safetensors")
        save_original(teacher, out / "teacher.safetensors", dtype=torch.bfloat16)
        VistaText.load(options.teacher[0] / "text.safetensors").save(out / "text.safetensors")
        levels = VISTA_MOVING_STUDENT if student is not None and student.cfg.parallax else VISTA_STUDENT
        in_chunks = replace(levels, first_sigmas=FIRST_SIGMAS)
        rollout = VISTA_STUDENT_FRAMEWISE if options.framewise else in_chunks
        how = spec(options.guidance, rollout, is_told_of_the_view=bool(teacher.cfg.parallax))
        (out / SPEC_FILE).write_text(json.dumps(config.to_json(how), indent=2) + "\n")
    if guide is not None:
        with whole_file(out / "guide.safetensors") as temporary:
            write_difference(temporary, guide.state_dict(), out / "teacher.safetensors", config_metadata(guide.cfg))
    if student is not None:
        save_original(student, out / "student.safetensors", dtype=torch.bfloat16)
    (out / "config.json").unlink(missing_ok=True)  # the weight files carry their configuration themselves
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in sorted(out.glob("*.safetensors"))]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
