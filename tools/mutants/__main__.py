"""`make mutants`: plant every fault of the list, run its tests, print the survivors, and write docs/proof.md.

    python -m tools.mutants [NUMBER | PATH ...] [--list]

Numbers or beginnings of paths (`17`, `rlhf_core/maths`) select faults. The page is written only if all are planted.
The exit code is 1 if a fault survives, is outdated, or makes pytest end without a failed test.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tools.mutants.copies import Result, make_copy, run_tests, try_fault
from tools.mutants.fault import Module, Planted, numbered
from tools.mutants.faults import MODULES
from tools.mutants.page import section
from tools.sections import write_section

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2


def main(arguments: Sequence[str] | None = None, modules: Sequence[Module] = MODULES, root: Path = ROOT) -> int:
    """Plant the chosen faults of `modules` in copies of `root`. Return 0 if the tests noticed all of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description="Plant faults and run their tests.")
    parser.add_argument("chosen", nargs="*", metavar="NUMBER|PATH", help="faults to plant; default: all")
    parser.add_argument("--list", action="store_true", help="print the faults without planting them")
    options = parser.parse_args(arguments)
    faults = numbered(modules)
    chosen = [fault for fault in faults if not options.chosen or is_chosen(fault, options.chosen)]
    if options.list or not chosen:
        _say("\n".join(map(str, chosen)) or f"no fault matches {' '.join(options.chosen)}")
        return int(not chosen)
    results = plant_all(root, chosen)
    if results is not None and chosen == faults:
        write_section(root / "docs" / "proof.md", "planted faults", section(results))
        _say("wrote docs/proof.md")
    return int(results is None or not all(result.is_noticed for result in results))


def is_chosen(fault: Planted, wanted: Sequence[str]) -> bool:
    """Return whether the words contain the fault's number or the beginning of its path."""
    return any(str(fault.number) == word or (not word.isdigit() and fault.path.startswith(word)) for word in wanted)


def plant_all(root: Path, faults: Sequence[Planted], workers: int = WORKERS) -> list[Result] | None:
    """Return the results of the faults in order, or None if the tests fail without a fault."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(workers) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            copies.put(make_copy(root, Path(folder, str(number))))
        if not _pass_unchanged(pool, copies, faults, workers):
            return None

        def work(fault: Planted) -> Result:
            copy = copies.get()
            try:
                return try_fault(copy, fault)
            finally:
                copies.put(copy)

        futures = [pool.submit(work, fault) for fault in faults]
        for done, future in enumerate(as_completed(futures), 1):
            _say(f"{done:3}/{len(faults)} {future.result()}")
        results = [future.result() for future in futures]
    missed = [result for result in results if not result.is_noticed]
    _say("".join(f"{result}\n" for result in missed) + f"{len(faults)} planted, {len(missed)} not noticed")
    _say(f"{(time.monotonic() - began) / 60:.0f} minutes")
    return results


def _pass_unchanged(
    pool: ThreadPoolExecutor, copies: "SimpleQueue[Path]", faults: Sequence[Planted], workers: int
) -> bool:
    """Return whether the tests pass without a fault. Otherwise, a failure would prove nothing."""
    tests = sorted({test for fault in faults for test in fault.tests})
    held = [copies.get() for _ in range(workers)]
    shares = [(copy, tests[number::workers]) for number, copy in enumerate(held)]
    futures = [pool.submit(run_tests, copy, share, 3600.0) for copy, share in shares if share]
    outcomes = [future.result() for future in futures]
    for copy in held:
        copies.put(copy)
    broken = [output for code, output in outcomes if code != 0]
    if broken:
        _say("\n".join([*broken, "These tests fail without a fault. Fix them first."]))
    else:
        _say(f"{len(tests)} tests and test files pass without a fault")
    return not broken


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
