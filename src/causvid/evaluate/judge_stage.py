"""`causvid train judges`: the instruments that learn, a preset each.

Reads:  rendered scenes that no generator sees, and the packaged codec.
Writes: a run folder; judge_ROLE.safetensors is the file that is packaged.
"""

from pathlib import Path

from rich.console import Console

from causvid.errors import UserError
from causvid.evaluate import train_judges, train_quality
from causvid.evaluate.train_judges import JudgeTraining
from causvid.evaluate.train_quality import QualityTraining

PRESETS: dict[str, JudgeTraining | QualityTraining] = {
    "report": JudgeTraining("report", seed=11),
    "select": JudgeTraining("select", seed=22),
    "quality": QualityTraining(),
}


def train(
    cfg: JudgeTraining | QualityTraining,
    run_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
) -> Path:
    """Train one of the PRESETS, or resume and do so. Returns the weight file."""
    if minutes is None or steps is not None:
        raise UserError("judges divide their time between rendering and training: give --minutes and no --steps")
    if device != "cpu":
        Console(stderr=True).print(f"judges are rendered for and trained on the CPU; {device} is not used")
    if isinstance(cfg, QualityTraining):
        return train_quality.train(cfg, run_dir, minutes)
    return train_judges.train(cfg, run_dir, minutes)
