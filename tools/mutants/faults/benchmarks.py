"""Faults in the benchmarks: figures that look right and compare unequal work."""

from tools.mutants.fault import Fault, Module

COMPARISON = "tests/benchmarks/test_peer.py"
PAGES = "tests/benchmarks/test_pages.py"

MODULES = [
    Module(
        "benchmarks/peer/lengths.py",
        COMPARISON,
        Fault("ForcedLengths.__call__", "drawn + 1", "drawn", "responses one token longer than the cell's"),
    ),
    Module(
        "benchmarks/peer/arithmetic.py",
        COMPARISON,
        Fault("Size.forward", "len(lengths) // rows_per_prompt", "len(lengths)", "shared prompts counted for each row"),
        Fault("training", "trained + 1", "trained", "the reference's pass of DPO not counted"),
    ),
    Module(
        "benchmarks/peer/recorder.py",
        COMPARISON,
        Fault("Recorder.once", "seconds / self.total", "0.0", "the reference's pass of DPO costs nothing"),
    ),
    Module(
        "benchmarks/peer/ours.py",
        COMPARISON,
        Fault("_units", "placed[place] = unit", "pass", "the two sides train on different rows in a step"),
    ),
    Module(
        "benchmarks/page.py",
        PAGES,
        Fault("_reached", "value >= floor", "value <= floor", "a missed floor looks reached"),
    ),
    Module(
        "benchmarks/demo.py",
        PAGES,
        Fault("stage_times", "max(ready, free)", "ready", "waiting for a place counts as bookkeeping"),
    ),
    Module(
        "benchmarks/gpu.py",
        PAGES,
        Fault("decoded_bytes", "cell.units * cell.prompt", "cell.rows * cell.prompt", "prompts read once for each row"),
    ),
]
