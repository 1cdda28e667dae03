"""Images a second that `synth-pedes` is drawn at, on all cores.

python benchmarks/drawing.py              # 400 identities, 1,600 images, three times
python benchmarks/drawing.py --quick      # a few seconds
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _report import Report, parser, publish, survey, verdict

from tiprctl.cores import cores
from tiprctl.data.synth_pedes import Drawing
from tiprctl.data.synth_pedes.rendering import generate

GOAL = 300
"""Images a second, on two cores."""


def seconds(drawing: Drawing, workers: int) -> float:
    """How long it takes from nothing to a whole data set, the start of the processes included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        generate(Path(folder) / "synth-pedes", drawing, workers=workers)
        return time.perf_counter() - start


def shortfalls(rate: float) -> list[str]:
    """What falls short of the goal, a sentence each."""
    return [f"{rate:.0f} images a second are fewer than {GOAL}"] if rate < GOAL else []


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="100 identities, once; the goal is not enforced")
    known.add_argument("--ids", type=int, default=400, help="identities, four images each")
    known.add_argument("--repeat", type=int, default=3, help="times; the fastest counts")
    known.add_argument("--workers", type=int, default=cores(), help="processes (default: the cores)")
    chosen = known.parse_args()
    if chosen.quick:
        chosen.ids, chosen.repeat = 100, 1
    if min(chosen.ids, chosen.repeat, chosen.workers) < 1:
        known.error("every number is at least 1")
    return chosen


def main() -> int:
    chosen = options()
    drawing = Drawing(ids=chosen.ids, val_ids=0, test_ids=0)
    fastest = min(seconds(drawing, chosen.workers) for _ in range(chosen.repeat))
    rate = drawing.images / fastest
    cells = (f"{drawing.images:,}", f"{chosen.workers}", f"{fastest:.2f}", f"{rate:.0f}", f"{rate / GOAL:.2f} x")
    report = Report(
        "Drawing synth-pedes",
        ("", "images", "processes", "seconds", "images a second", f"of the goal, {GOAL}"),
        [("tiprctl", *cells)],
        {
            "images": drawing.images,
            "workers": chosen.workers,
            "seconds": fastest,
            "images_per_second": rate,
            "goal": GOAL,
            "ratio": rate / GOAL,
        },
    )
    publish(report, survey(chosen.workers, packages=("Pillow", "numpy", "torch")), as_json=chosen.json)
    return verdict(shortfalls(rate), enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())
