"""How the cost of a GRPO step grows with one quantity at a time, ours and TRL's.

    make bench-growth                                    # all quantities, about an hour on two cores
    python -m benchmarks.growth --axes response vocabulary

Results go to benchmarks/results/growth.json, the pictures to docs/images/growth-*.png, the page is written anew.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.peer.cells import SHAPES, Cell
from benchmarks.peer.compare import measure
from benchmarks.stored import RESULTS, ROOT, add, load

OUT = RESULTS / "growth.json"
IMAGES = ROOT / "docs" / "images"
SIDES = ("ours", "trl")
BASE = Cell("grpo", **SHAPES["tiny"], prompt=64, units=2, group=8)
ROWS = 32  # of a step while the group size varies


def of_response(tokens: int) -> Cell:
    """The longest response, in tokens."""
    return replace(BASE, longest=tokens)


def of_prompt(tokens: int) -> Cell:
    """The prompt, in tokens."""
    return replace(BASE, prompt=tokens)


def of_group(size: int) -> Cell:
    """Responses per prompt, at a fixed number of rows."""
    return replace(BASE, prompt=128, units=ROWS // size, group=size)


def of_vocabulary(size: int) -> Cell:
    """Entries of the vocabulary."""
    return replace(BASE, vocabulary=size)


def of_batch(rows: int) -> Cell:
    """Responses per step, 8 to a prompt."""
    return replace(BASE, units=rows // BASE.group)


LENGTHS = (32, 64, 128, 256, 512)
AXES = {
    "response": (of_response, LENGTHS, "longest response, tokens"),
    "prompt": (of_prompt, LENGTHS, "prompt, tokens"),
    "group": (of_group, (2, 4, 8, 16, 32), f"responses per prompt, {ROWS} in all"),
    "vocabulary": (of_vocabulary, (512, 2048, 8192, 16_384, 32_000), "vocabulary"),
    "batch": (of_batch, (8, 16, 32, 64, 128), "responses per step"),
}


def draw(name: str, points: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Draw seconds and memory against one quantity, and return the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for panel, key, label in zip(
        panels, ("seconds", "growth_mib"), ("CPU seconds per step", "growth, MiB"), strict=True
    ):
        for side, title in (("ours", "ours"), ("trl", "TRL")):
            at = [point for point in points if side in point["sides"]]
            panel.plot([p["value"] for p in at], [p["sides"][side][key] for p in at], marker="o", label=title)
        panel.set_xscale("log", base=2)
        panel.set_xticks([point["value"] for point in points], [f"{point['value']:,}" for point in points])
        panel.set(xlabel=AXES[name][2], ylabel=label, ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"growth-{name}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen quantities, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--points", type=int, help="only the first of each quantity's values")
    parser.add_argument("--steps", type=int, default=3, help="measured optimiser steps")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--images", type=Path, default=IMAGES)
    given = parser.parse_args(arguments)
    for name in given.axes:
        cell_of, values, _ = AXES[name]
        points: list[dict[str, Any]] = []
        for value in values[: given.points]:
            began = time.monotonic()
            found = measure(cell_of(value), given.sides, given.steps, 1, 0, ROOT / ".bench" / "models")
            kept = {
                side: {key: found[side][key] for key in ("seconds", "decode_seconds", "growth_mib")} for side in found
            }
            points.append({"value": value, "sides": kept})
            took = time.monotonic() - began
            print(f"{name} {value}: {kept}, in {took:.0f} s", file=sys.stderr, flush=True)
        add(given.out, name, {"steps": given.steps, "points": points})
        draw(name, load(given.out)[name]["points"], given.images)
    if given.out == OUT:
        page.write()


if __name__ == "__main__":
    main()
