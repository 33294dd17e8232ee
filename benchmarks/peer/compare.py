"""Compare the speed and memory of rlhf_core with TRL on identical work.

    make bench-peer                                       # all cells, about an hour and a half on two cores
    python -m benchmarks.peer.compare --cells "grpo tiny32" "dpo small256" --steps 5

Each cell starts one process per side: ours, TRL at its defaults (`trl`) and TRL with its best options (`trl_best`, see
theirs.py). They take optimiser steps in turn: one works while the others wait. One thread, process CPU seconds, fp32;
equal weights, prompts, response lengths, epochs and optimiser. Results go to benchmarks/results/peer.json after each
cell, and to the page benchmarks/README.md at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from benchmarks import page
from benchmarks.peer.cells import CELLS, Cell, write_model
from benchmarks.peer.recorder import READY
from benchmarks.peer.theirs import BEST
from benchmarks.stored import RESULTS, ROOT, add

OUT = RESULTS / "peer.json"
PEER_PYTHON = ROOT / ".bench" / "peer" / "bin" / "python"  # made by `make bench-peer`
SIDES = ("ours", "trl", "trl_best")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


class SideError(Exception):
    """A side ended without a result."""


class Side:
    """A process that waits for its turn before each step."""

    def __init__(self, name: str, spec: dict[str, Any], folder: Path) -> None:
        self.name, self.out, self.log = name, folder / f"{name}.json", folder / f"{name}.log"
        python, module = (sys.executable, "ours") if name == "ours" else (peer_python(), "theirs")
        spec = spec | {"best": name == "trl_best", "out": str(self.out)}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-m", f"benchmarks.peer.{module}", json.dumps(spec)],
                cwd=ROOT,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def waits(self) -> bool:
        """Read until the side waits for its turn; False once it has ended."""
        return any(line.startswith(READY) for line in _stream(self.process.stdout))

    def turn(self) -> bool:
        """Let the side take one step; False once it has ended."""
        try:
            print("go", file=_stream(self.process.stdin), flush=True)
        except BrokenPipeError:
            return False
        return self.waits()

    def result(self) -> dict[str, Any]:
        """What the side has measured.

        Raises:
            SideError: it ended with an error; quotes the end of its log.
        """
        self.process.communicate()
        if self.process.returncode or not self.out.is_file():
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise SideError(f"{self.name} ended with code {self.process.returncode}:\n{last}")
        return json.loads(self.out.read_text(encoding="utf-8"))

    def stop(self) -> None:
        """End the process if it still runs."""
        self.process.kill()
        self.process.wait()


def peer_python() -> str:
    """The Python of the peer's environment: PEER_PYTHON, or the one that `make bench-peer` makes."""
    return os.environ.get("PEER_PYTHON") or str(PEER_PYTHON)


def measure(
    cell: Cell, sides: Sequence[str], steps: int, warmup: int, profiled: int, models: Path
) -> dict[str, dict[str, Any]]:
    """Run all sides of a cell in turn; return the result of each.

    Raises:
        SideError: a side ended with an error.
    """
    spec = {
        "cell": asdict(cell),
        "model": str(write_model(cell, models)),
        "steps": steps,
        "warmup": warmup,
        "profiled": profiled,
    }
    with tempfile.TemporaryDirectory() as folder:
        running: list[Side] = []
        try:
            for name in sides:  # loaded one after the other
                if name == "trl_best" and cell.method not in BEST:
                    continue  # it has no option that helps
                running.append(Side(name, spec, Path(folder)))
                if not running[-1].waits():
                    running[-1].result()
            while any([side.turn() for side in running]):
                pass
            return {side.name: side.result() for side in running}
        finally:
            for side in running:
                side.stop()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def line(name: str, found: dict[str, dict[str, Any]], seconds: float) -> str:
    """One cell's result in one line."""
    ours = found["ours"]["seconds"]
    sides = (f"{side} {result['seconds']:.3f} s ({result['seconds'] / ours:.2f})" for side, result in found.items())
    growth = "/".join(f"{result['growth_mib']:.0f}" for result in found.values())
    return f"{name:15s} {', '.join(sides)}, growth {growth} MiB, in {seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen cells; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, help='e.g. "grpo tiny32"; default: all')
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--steps", type=int, default=5, help="measured optimiser steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--profiled", type=int, default=2, help="steps after them, with operations recorded")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    failed = False
    for name in given.cells:
        began = time.monotonic()
        try:
            cell = Cell.named(name)
            found = measure(cell, given.sides, given.steps, given.warmup, given.profiled, ROOT / ".bench" / "models")
        except (SideError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        add(given.out, name, {"steps": given.steps, "warmup": given.warmup, "sides": found})
        print(line(name, found, time.monotonic() - began), flush=True)
    if given.out == OUT:
        page.write()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
