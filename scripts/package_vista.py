"""Put trained networks where the package ships them from: bfloat16, how they are run, and checksums.

    python scripts/package_vista.py --teacher RUN/weights [--student RUN/weights]

Model cards stand beside the weights and are written by hand: data, recipe, figures, commit.
"""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from causvid import config
from causvid.bundle import SPEC_FILE, ModelConfig, TeacherSampling
from causvid.checkpoints import load_dit
from causvid.export import save_original
from causvid.presets import VISTA_DIT, VISTA_STUDENT
from causvid.text.vista import VistaText

OUT = Path(__file__).parent.parent / "src/causvid/weights/vista"


def spec(guidance: float) -> ModelConfig:
    assert VISTA_STUDENT.shift is not None
    return ModelConfig(
        name="vista",
        fps=12,
        height=64,
        width=112,
        num_latents=21,
        codec="vista",
        text="vista",
        rollout=VISTA_STUDENT,
        teacher=TeacherSampling(steps=50, guidance=guidance, shift=VISTA_STUDENT.shift),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="folder with teacher.safetensors, text.safetensors")
    parser.add_argument("--student", type=Path, help="folder with student.safetensors")
    parser.add_argument("--guidance", type=float, default=3.0, help="the teacher's, as chosen by a sweep")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    # runs of before weight files carried their configuration have the preset's
    teacher = load_dit(options.teacher / "teacher.safetensors", overrides=asdict(VISTA_DIT))
    save_original(teacher, OUT / "teacher.safetensors", dtype=torch.bfloat16)
    VistaText.load(options.teacher / "text.safetensors").save(OUT / "text.safetensors")
    if options.student:
        student = load_dit(options.student / "student.safetensors")
        save_original(student, OUT / "student.safetensors", dtype=torch.bfloat16)
    (OUT / "config.json").unlink(missing_ok=True)  # the weight files carry their configuration themselves
    (OUT / SPEC_FILE).write_text(json.dumps(config.to_json(spec(options.guidance)), indent=2) + "\n")
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in sorted(OUT.glob("*.safetensors"))]
    (OUT / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    for path in sorted(OUT.iterdir()):
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
