"""Put trained judges where the package ships them from, and measure what belongs to them: anchors and responses.

    python scripts/package_judges.py [RUN/judge_select.safetensors ...] [--prompts 10] [--responses 8]

Also needed after a change of the codec, whose round trip is the ceiling. Model cards are written by hand: data, recipe,
accuracy, commit.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from causvid.codecs.vista import VistaCodec
from causvid.evaluate.figures import draw_responses
from causvid.evaluate.judges import WEIGHTS
from causvid.evaluate.protocol import fingerprint, prompts, through_codec
from causvid.evaluate.report import measure_anchors
from causvid.evaluate.responses import in_spreads, response_table
from causvid.evaluate.scoring import file_hash, load_instruments

FIGURE = Path(__file__).parent.parent / "docs/figures/judge_responses.png"
STRENGTH = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="*", help="judge_ROLE.safetensors of finished runs")
    parser.add_argument("--prompts", type=int, default=10, help="of `val`, for the anchors")
    parser.add_argument("--responses", type=int, default=8, help="prompts of `val` for the response table; 0: leave it")
    options = parser.parse_args()
    for path in options.weights:
        shutil.copyfile(path, WEIGHTS / path.name)
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in sorted(WEIGHTS.glob("*.safetensors"))]
    (WEIGHTS / "SHA256SUMS").write_text("\n".join(sums) + "\n")

    instruments = load_instruments()
    listed = prompts("val", options.prompts)
    about = {"prompts": f"val {len(listed)} {fingerprint(listed)}", "codec": file_hash(WEIGHTS / "codec.safetensors")}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("anchors", total=len(listed))
        round_trip = through_codec(VistaCodec.load_packaged())
        anchors = measure_anchors(instruments, listed, round_trip, about, lambda _: progress.advance(task))
        anchors.save(WEIGHTS / "judge_anchors.json")
        for column, ceiling in anchors.ceiling.items():
            print(f"{column:>9}: floor {anchors.floor(column):.3f}, ceiling {ceiling:.3f}")
        if options.responses:
            task = progress.add_task("responses", total=options.responses)
            table = response_table(
                instruments, prompts("val", options.responses), STRENGTH, on_clip=lambda _: progress.advance(task)
            )
            title = f"Response to named distortions at strength {STRENGTH}, in spreads between clean clips"
            draw_responses(in_spreads(table), FIGURE, f"{title} ({options.responses} prompts)")


if __name__ == "__main__":
    main()
