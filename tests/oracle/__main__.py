"""`make oracle`: run the whole suite in two processes, print the results, and write docs/proof.md.

Exits 1 if a bound is missed.
"""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "support", ".."))

from oracle import page
from oracle.page import Row
from tasks.runtime.stage import quiet_libraries
from tools.sections import write_section

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "proof.md"
SEEDS = (0, 1, 2)


def quiet() -> None:
    """Print only results: silence warnings and library logs."""
    warnings.simplefilter("ignore")
    quiet_libraries()


def one_case(group: str, number: int, seed: int | None) -> Row:
    """Run one training; return its distances to the target and to π*, with the bound."""
    from oracle import methods

    case = getattr(methods, group)[number]
    result = case.run() if seed is None else case.sample(seed)
    to_target, to_optimum = methods.distance(case, result)
    row = Row(group, case.name, to_target, to_optimum, case.bound, seed)
    if "TRPO" in case.name:
        row.trust_region = page.trust_region(result.history)
    return row


def one_gradient(name: str) -> tuple[str, float]:
    """The largest |z| of a method's sampled gradient."""
    from oracle import gradients

    return name, gradients.largest_z(gradients.METHODS[name])


def one_recovery(name: str) -> tuple[str, float, float | None]:
    """The largest deviation of a fitted reward model from r*."""
    from oracle import reward_models

    return reward_models.recover(name)


def main() -> int:
    """Run the suite; return 0 if every bound holds, else 1."""
    from oracle import gradients, methods, reward_models

    with ProcessPoolExecutor(2, get_context("spawn"), quiet) as pool:
        trainings = [
            pool.submit(one_case, group, number, seed)
            for group, seeds in (
                ("EXACT", (None,)),
                ("PLACES", (None,)),
                ("SWITCHES", (None,)),
                ("OFFLINE", (None,)),
                ("SAMPLED", SEEDS),
            )
            for number in range(len(getattr(methods, group)))
            for seed in seeds
        ]
        sampled = [pool.submit(one_gradient, name) for name in gradients.METHODS]
        recovered = [pool.submit(one_recovery, name) for name in reward_models.MODELS]
        rows = []
        for future in trainings:
            rows.append(future.result())
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
        evidence = page.Evidence(
            rows=rows,
            gradients=[future.result() for future in sampled],
            baselines=gradients.compare_baselines(),
            variance=gradients.variance_by_baseline(),
            recovered=[future.result() for future in recovered],
        )
    write_section(PAGE, "oracle", page.render(evidence))
    sys.stdout.write(f"wrote docs/{PAGE.name}\n")
    for fault in evidence.faults():
        sys.stdout.write(f"missed: {fault}\n")
    return int(bool(evidence.faults()))


if __name__ == "__main__":
    sys.exit(main())
