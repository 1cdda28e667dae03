"""Images a second that `synth-pedes` is drawn at, on all cores.

python benchmarks/drawing.py              # 400 identities, 1,600 images, three times
python benchmarks/drawing.py --quick      # a few seconds
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from _report import machine, print_table, verdict

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, default=400, help="identities, four images each")
    parser.add_argument("--repeat", type=int, default=3, help="times; the fastest counts")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: the cores)")
    parser.add_argument("--quick", action="store_true", help="100 identities, once; the goal is not enforced")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.ids, chosen.repeat = 100, 1
    if min(chosen.ids, chosen.repeat, chosen.workers) < 1:
        parser.error("every number is at least 1")
    return chosen


def main() -> int:
    chosen = options()
    drawing = Drawing(ids=chosen.ids, val_ids=0, test_ids=0)
    fastest = min(seconds(drawing, chosen.workers) for _ in range(chosen.repeat))
    rate = drawing.images / fastest
    figures = {"images": drawing.images, "workers": chosen.workers, "seconds": fastest, "images_per_second": rate}
    where = machine(chosen.workers, packages=("Pillow", "numpy"))
    if chosen.json:
        print(json.dumps({**figures, "goal": GOAL, "ratio": rate / GOAL, "machine": where}))
    else:
        cells = (f"{drawing.images:,}", f"{chosen.workers}", f"{fastest:.2f}", f"{rate:.0f}", f"{rate / GOAL:.2f} x")
        columns = ("", "images", "processes", "seconds", "images a second", f"of the goal, {GOAL}")
        print_table("Drawing synth-pedes", columns, [("tiprctl", *cells)], [where])
    return verdict(shortfalls(rate), enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())
