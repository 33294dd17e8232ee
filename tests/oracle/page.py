"""docs/proof.md: what was shown, as tables, and what it does not show."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oracle.methods import ROWS
from oracle.problem import PROBLEM

Z_BOUND = 4.0


@dataclass
class Row:
    """Where one training ended, in nats per response."""

    group: str
    name: str
    to_target: float
    to_optimum: float
    bound: float
    seed: int | None = None
    trust_region: tuple[float, float, int, int] | None = None

    @property
    def holds(self) -> bool:
        """Whether it ended within its bound."""
        return self.to_target < self.bound

    def __str__(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        verdict = "" if self.holds else "  MISSED"
        return f"{self.group:9}{self.name}{seed}: {self.to_target:.1e} (bound {self.bound:.0e}){verdict}"


@dataclass
class Evidence:
    """Everything the page is made of."""

    rows: list[Row]
    gradients: list[tuple[str, float]]
    baselines: dict[str, tuple[float, float]]
    variance: tuple[float, list[tuple[float, float]]]
    recovered: list[tuple[str, float, float | None]]

    def of(self, group: str) -> list[Row]:
        """The rows of one group."""
        return [row for row in self.rows if row.group == group]

    def faults(self) -> list[str]:
        """Every bound that was missed."""
        found = [str(row) for row in self.rows if not row.holds]
        found += [f"gradient of {name}: z = {z:.2f}" for name, z in self.gradients if not z < Z_BOUND]
        found += [f"{name}: off by {off:.1e}" for name, off, bound in self.recovered if bound and not off < bound]
        for row in self.rows:
            if row.trust_region and (row.trust_region[0] < 0 or row.trust_region[1] > 0):
                found.append(f"{row.name}: an accepted step broke its bounds")
        return found


def trust_region(history: Sequence[dict[str, float]]) -> tuple[float, float, int, int]:
    """Least gain of the surrogate, largest KL over δ (0 or less: within), accepted steps and failed line searches.

    δ follows the schedule.
    """
    accepted = [step for step in history if not step["line_search_failed"]]
    gain = min(step["surrogate_gain"] for step in accepted)
    over = max(step["trust_region_kl"] - step["trust_region_limit"] for step in accepted)
    return gain, over, len(accepted), len(history) - len(accepted)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]


def nats(value: float) -> str:
    """A distance; rounding may leave it a hair below 0."""
    return f"{max(value, 0.0):.1e}"


HEAD = f"""# Proof: each method reaches its optimum

Made by `make oracle`. The problem: {PROBLEM.words} tokens and an end token, responses of at most {PROBLEM.longest}
tokens (cut-off ones included: {len(PROBLEM.responses())} in all), two prompts, a table of rewards, β = {PROBLEM.beta},
and a GPT-2 of two layers in float64 whose random start is π_ref. All of it can be enumerated, so
π* ∝ π_ref exp(r/β) is exact. Everything below goes through the loops, losses, algorithms and (where sampled) the
sampler that train real models; where *exact* is said, the enumeration of all responses, weighted with their
probabilities, stands in for the sampler, and the exact value function for the critic. Distances are
KL(π_θ ‖ target) in nats per response, the mean over prompts; π_ref itself lies {{start}} from π*.
`tests/project/test_oracle.py` runs a short form in `make test`.
"""

TAIL = """## What this does not prove
- That a method finds its optimum on a real task: there the expectation is never exact, the critic is learnt, the
  learning rate is not tuned to the problem, and a run ends long before it converges.
- That the optimum is worth reaching: π* maximises the *reward model's* score. Whether that is what people want is a
  question of the labels and of evaluation.
- Anything about learnt critics (their bias moves PPO's fixed point), about bf16, adapters, several processes, or
  about speed.
- Uniqueness: with the group's std in the loss there are several fixed points, and the tables show the one that is
  reached from π_ref.
"""


def render(evidence: Evidence) -> str:
    """The whole page."""
    from oracle.problem import kl

    start = kl(PROBLEM.logprobs(PROBLEM.reference()), PROBLEM.optimum())
    lines = [HEAD.format(start=f"{start:.2f}")]
    lines += ["## 1. Exact expectation: the optimum π*", ""]
    lines += table(
        ["method", "distance to π*", "bound"],
        ([row.name, nats(row.to_optimum), f"{row.bound:.0e}"] for row in evidence.of("EXACT")),
    )
    lines += [
        "## 2. Sampled: three seeds",
        "",
        f"{ROWS} responses from the sampler in each step; for DPO, {ROWS} of all pairs, their labels drawn. A drawn",
        "label is one bit, and online DPO sees only pairs that its policy still draws: with such labels it is held",
        "to a wider bound, and section 4 shows that its gradient is right in the mean.",
        "",
    ]
    lines += table(
        ["method", "distance to π*, seeds 0, 1, 2", "bound"],
        (
            [name, ", ".join(nats(row.to_optimum) for row in rows), f"{rows[0].bound:.0e}"]
            for name, rows in by_name(evidence.of("SAMPLED")).items()
        ),
    )
    lines += [
        "## 3. What each switch really optimises",
        "",
        "PPO with the exact critic, the KL in the loss: estimator and place. The target is the formula of",
        "[algorithms.md](algorithms.md); the last column is what the switch costs, the distance of that to π*.",
        "",
    ]
    lines += table(["KL in the loss", "distance to the formula", "bound", "distance to π*"], costs(evidence, "PLACES"))
    lines += [
        "k1 in the loss, unweighted, has no expected gradient (test_oracle.py computes it): as if β were 0.",
        "",
        "GRPO, G = 2: the target is the fixed point of its expected update, written out by hand for a table of logits",
        "(`tests/oracle/tabular.py`), or the formula where there is one. Without the std, and the KL in the loss, the",
        "mean that a response is part of shrinks its advantage by 1 − 1/G, so that β counts double.",
        "",
    ]
    lines += table(["GRPO", "distance to the fixed point", "bound", "distance to π*"], costs(evidence, "SWITCHES"))
    lines += ["Other losses on all pairs: the minimiser of the expected loss (of IPO, its formula).", ""]
    lines += table(["method", "distance to the minimiser", "bound", "distance to π*"], costs(evidence, "OFFLINE"))
    lines += [
        "## 4. Gradients and baselines",
        "",
        "Sampled against enumerated gradients along 20 random directions.",
        "",
    ]
    lines += table(
        ["method", "largest z", "bound"], ([name, f"{z:.2f}", f"{Z_BOUND:.0f}"] for name, z in evidence.gradients)
    )
    lines += ["The expected gradient with a baseline against that without one, exact:", ""]
    lines += table(
        ["baseline", "length", "cosine"],
        ([name, f"{length:.6f}", f"{cosine:.6f}"] for name, (length, cosine) in evidence.baselines.items()),
    )
    best, ratios = evidence.variance
    lines += [
        "The variance of the gradient with a constant baseline b, against none, is lower exactly between 0 and 2b*:",
        f"b* = E[|∇log π|² R]/E[|∇log π|²] = {best:.4f}.",
        "",
    ]
    lines += table(
        ["b / b*", *(f"{ratio:g}" for ratio, _ in ratios)], [["variance", *(f"{value:.4f}" for _, value in ratios)]]
    )
    lines += [
        "## 5. Reward models",
        "",
        "Fitted on exact probabilities of their own link: the largest error of r* after a constant per prompt.",
        "",
    ]
    lines += table(
        ["reward model", "largest error", "bound"],
        (
            [name, f"{off:.1e}", "biased, on purpose" if bound is None else f"{bound:.0e}"]
            for name, off, bound in evidence.recovered
        ),
    )
    lines += ["## 6. TRPO keeps its promises", ""]
    lines += table(
        ["run", "least gain of the surrogate", "largest KL − δ", "accepted steps", "failed line searches"],
        (
            [
                row.name + ("" if row.seed is None else f", seed {row.seed}"),
                f"{gain:.1e}",
                f"{over:.1e}",
                str(accepted),
                str(failed),
            ]
            for row in evidence.rows
            if row.trust_region
            for gain, over, accepted, failed in [row.trust_region]
        ),
    )
    return "\n".join([*lines, TAIL])


def costs(evidence: Evidence, group: str) -> list[list[str]]:
    """Rows with both distances."""
    return [[row.name, nats(row.to_target), f"{row.bound:.0e}", nats(row.to_optimum)] for row in evidence.of(group)]


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one method together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return found
