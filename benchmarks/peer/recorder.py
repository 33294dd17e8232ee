"""What each side measures of its own process: steps in turn, CPU seconds, peak memory, and the machine's limit.

CPU seconds of the process, on one thread, do not count the time in which other processes run.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.peer import arithmetic
from benchmarks.peer.cells import Cell
from benchmarks.peer.operations import Operations

READY = "@ready"  # printed when a side waits for its turn
SIDE = 1536  # of the square matrices of the limit
clock = time.process_time


def matmul_limit(repeats: int = 7) -> float:
    """Floating-point operations per second of a large float32 matrix product on this thread, median."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    times = []
    for _ in range(repeats + 1):
        began = clock()
        a @ b
        times.append(clock() - began)
    return 2 * SIDE**3 / median(times[1:])


class Recorder:
    """Records the steps of one side.

    `begin` once after loading, `end_step` after each step. The first `warmup` steps count for nothing; after them, the
    peak of memory is read over `steps` steps. With `profiled` steps more, the operations of these are recorded.
    """

    def __init__(self, cell: Cell, steps: int, warmup: int, profiled: int = 0) -> None:
        self.cell, self.steps, self.warmup, self.profiled = cell, steps, warmup, profiled
        self.total = warmup + steps + profiled
        self.step_seconds: list[float] = []
        self.decode_seconds: list[float] = []
        self.decoding = self.loaded = 0.0
        self.profiled_wall = 0.0  # the profiler's clock is wall time, which other load stretches evenly
        self.per_step: dict[str, float] = {}  # seconds of work done once, per step
        self.operations: Operations | None = None

    def is_loaded(self) -> None:
        """Note the memory after loading; later calls change nothing."""
        if self.loaded == 0.0:
            self.limit = matmul_limit()
            self.loaded = _status("VmRSS")

    def begin(self) -> None:
        """Wait for the first turn."""
        self.is_loaded()
        self._wait()

    def end_step(self) -> None:
        """Note the step, and wait for the next turn."""
        self.step_seconds.append(clock() - self.began)
        if self.operations is not None:
            self.profiled_wall += time.perf_counter() - self.wall_began
        self.decode_seconds.append(self.decoding)
        done = len(self.step_seconds)
        if done == self.warmup:
            _reset_peak()
        if done == self.warmup + self.steps:
            self.peak = _status("VmHWM")
            if self.profiled:
                self.operations = Operations()
                self.operations.start()
        if done == self.total and self.operations is not None:
            self.operations.stop()
        self._wait()

    def timing_decode(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same, and whose time counts as decoding."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.decoding += clock() - began

        return timed

    def once(self, name: str, seconds: float) -> None:
        """Add work that is done once for all steps, such as the reference's pass over fixed data."""
        self.per_step[name] = self.per_step.get(name, 0.0) + seconds / self.total

    def result(self) -> dict[str, Any]:
        """Median seconds per step, MiB of peak over the level after loading, shares of the matrix-multiply limit."""
        limit = max(self.limit, matmul_limit())
        kept = range(self.warmup, self.warmup + self.steps)
        once = sum(self.per_step.values())
        seconds = median(self.step_seconds[step] for step in kept) + once
        decode = median(self.decode_seconds[step] for step in kept)
        rest = median(self.step_seconds[step] - self.decode_seconds[step] for step in kept) + once
        trained = mean(arithmetic.training(self.cell, step) for step in kept)
        found = {
            "seconds": seconds,
            "steps": self.step_seconds[: self.warmup + self.steps],
            "decode_seconds": decode,
            "once_per_step": self.per_step,
            "growth_mib": self.peak - self.loaded,
            "loaded_mib": self.loaded,
            "limit_gflops": limit / 1e9,
            "training_share": trained / rest / limit,
            "decoding_share": None,
            "operations": self._shares(),
        }
        if decode:
            found["decoding_share"] = mean(arithmetic.decoding(self.cell, step) for step in kept) / decode / limit
        return found

    def _shares(self) -> dict[str, float] | None:
        return self.operations and self.operations.shares(self.profiled_wall)

    def _wait(self) -> None:
        print(READY, flush=True)
        if not sys.stdin.readline():
            os._exit(3)  # the other side has failed
        self.decoding = 0.0
        self.wall_began = time.perf_counter()
        self.began = clock()


def side(run: Callable[[Cell, Path, Recorder, bool], None]) -> None:
    """The command of a side: SPEC, a JSON object with cell, model, steps, warmup, profiled, best and out."""
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    recorder = Recorder(Cell(**spec["cell"]), spec["steps"], spec["warmup"], spec["profiled"])
    run(recorder.cell, Path(spec["model"]), recorder, spec["best"])
    Path(spec["out"]).write_text(json.dumps(recorder.result()), encoding="utf-8")


def _status(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
