"""The first sentences of the report: only what the run's figures support.

- A policy did not move if its KL to the SFT model is below `STILL`.
- A reward model is not better than chance if its log-loss on held-out pairs is not below log 2 by both two standard
  errors and `LEAST_GAIN`, or if the 95 % interval of its accuracy is not above one half. Pairs are treated as
  independent. The same applies to a judge model.
- Both are stated first. With such a model, or if no policy moved, no policy is called best.
- A policy is better than the SFT model if the 95 % interval of its win rate is above one half. The one with the
  highest win rate is the best if its interval also overlaps with no other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_core.algorithms.base.table import policy_algorithms
from tasks.reporting.formats import percent

Report = Mapping[str, Any]
STILL = 1e-3  # nats per response
LEAST_GAIN = 1e-3  # nats per pair: less than this below log 2 is shown as 0.693 or 0.692


def label(name: str) -> str:
    """A policy's title, such as PPO-penalty; for a method that no longer exists, its name in capitals."""
    method = policy_algorithms().get(name)
    return name.upper() if method is None else str(method.title)


def join(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def labels(names: Sequence[str]) -> str:
    """The labels of policies as one text: `A, B and C`."""
    return join([label(name) for name in names])


def title(names: Sequence[str]) -> str:
    """What was compared."""
    if len(names) == 1:
        return f"{label(names[0])} against the SFT model"
    return f"{labels(names) if len(names) < 5 else f'{len(names)} policies'} against each other"


def ranked(policies: Report) -> dict[str, Any]:
    """Policies by their win rate against the SFT model, the highest first; those without one last."""
    return dict(sorted(policies.items(), key=lambda item: -(_rate(item[1]) or {"value": -1.0})["value"]))


def summary(report: Report) -> list[str]:
    """What was not learned; the best policy, its win rate and its judge; the other policies; the reward model."""
    policies = report["policies"]
    still = [name for name, figures in policies.items() if did_not_move(figures)]
    several = {f"reward model {name}": model for name, model in report.get("reward_models", {}).items()}
    models = {"reward model": report["reward_model"], "judge, a second reward model,": report["judge_model"], **several}
    at_chance = [name for name, model in models.items() if model is not None and is_at_chance(model)]
    rates = {name: rate for name, figures in ranked(policies).items() if (rate := _rate(figures))}
    moved = {name: rate for name, rate in rates.items() if name not in still}
    sentences = [_chance(name, models[name]) for name in at_chance]
    if still:
        sentences.append(_still(still, policies))
    if not rates:
        sentences.append("No policy was judged against the SFT model.")
    elif at_chance or not moved:
        sentences.append(_all_rates(rates))
    else:
        best = next(iter(moved))
        sentences += [_best(best, moved, bool(still)), _others(best, rates, policies[best])]
    return sentences if "reward model" in at_chance else [*sentences, _learnt_from(report)]


def did_not_move(figures: Report) -> bool:
    """Whether a policy's KL to the SFT model is 0 up to rounding and a few early steps."""
    return figures.get("kl") is not None and figures["kl"] < STILL


def is_at_chance(model: Report) -> bool:
    """Whether a reward model's held-out figures are compatible with having learned nothing."""
    low, _ = accuracy_interval(model)
    log_loss, error = model.get("log_loss"), model.get("log_loss_se") or 0.0
    return low <= 0.5 or (log_loss is not None and log_loss > math.log(2) - max(2 * error, LEAST_GAIN))


def accuracy_interval(model: Report) -> tuple[float, float]:
    """The 95 % interval of a reward model's accuracy on its held-out pairs (Wilson 1927)."""
    share, count, z = model["accuracy"], model["held_out_pairs"], 1.96
    middle = share + z**2 / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - spread) / (1 + z**2 / count), (middle + spread) / (1 + z**2 / count)


def _rate(figures: Report) -> Report | None:
    """A policy's win rate against the SFT model; None if it was not judged."""
    rate = figures.get("win_rate_vs_sft")
    return rate if rate and rate.get("value") is not None else None


def _interval(rate: Report) -> str:
    return f"95 % interval {percent(rate['low'])} to {percent(rate['high'])}"


def _chance(name: str, model: Report) -> str:
    low, high = accuracy_interval(model)
    loss = f"log-loss {model['log_loss']:.3f} nats (chance: 0.693), " if model.get("log_loss") is not None else ""
    return (
        f"The {name} is not better than chance on {model['held_out_pairs']} held-out pairs: {loss}"
        f"accuracy {percent(model['accuracy'])} (95 % interval {percent(low)} to {percent(high)}). "
        "Therefore no policy is called best."
    )


def _still(still: Sequence[str], policies: Report) -> str:
    below = f"moved from the SFT model (KL below {STILL} nats per response)"
    if len(still) < len(policies):
        return f"{labels(still)} {'has' if len(still) == 1 else 'have'} not {below}."
    return f"Nothing was learned: {'no policy has' if len(still) > 1 else f'{label(still[0])} has not'} {below}."


def _all_rates(rates: Report) -> str:
    first = next(iter(rates.values()))
    each = ", ".join(f"{label(name)} {percent(rate['value'])} ({_interval(rate)})" for name, rate in rates.items())
    return f"Win rates against the SFT model on {first['n']} held-out prompts, judged by {first['judge']}: {each}."


def _best(best: str, rates: Report, are_some_still: bool) -> str:
    """About the policy with the highest of `rates`, those of the policies that moved."""
    won, others = rates[best], [name for name in rates if name != best]
    wins = (
        f"wins {percent(won['value'])} of {won['n']} held-out prompts against the SFT model ({_interval(won)}), "
        f"judged by: {won['judge']}."
    )
    highest = f"the highest win rate{' of those that moved' if are_some_still else ''}"
    better = [name for name in others if rates[name]["low"] > 0.5]
    if won["low"] > 0.5:
        claim = f"has {highest}" if _overlapping(best, rates) else "is the best policy"
        return f"{label(best)} {claim if others else 'is better than the SFT model'}: it {wins}"
    if better:
        return (
            f"{labels(better)} {'is' if len(better) == 1 else 'are'} better than the SFT model; {label(best)}, with "
            f"{highest}, is not shown to be: it {wins}"
        )
    if others:
        return f"No policy is shown to be better than the SFT model: {label(best)}, with {highest}, {wins}"
    return f"{label(best)} is not shown to be better than the SFT model: it {wins}"


def _overlapping(best: str, rates: Report) -> list[str]:
    """The others whose interval reaches that of the best."""
    return [name for name, rate in rates.items() if name != best and rate["high"] >= rates[best]["low"]]


def _others(best: str, rates: Report, figures: Report) -> str:
    against = figures.get("win_rate_vs_reference")
    reference = f"; {label(best)} wins {percent(against['value'])} against the reference responses" if against else ""
    others = [f"{label(name)} {percent(rate['value'])}" for name, rate in rates.items() if name != best]
    if not others:
        return f"It is the only policy that was judged{reference}."
    close = _overlapping(best, rates)
    overlap = (
        f" The interval of {label(best)} overlaps with that of {labels(close)}: their order may be due to chance."
        if close
        else ""
    )
    return f"The others: {', '.join(others)}{reference}.{overlap}"


def _learnt_from(report: Report) -> str:
    model = report["reward_model"]
    if several := report.get("reward_models"):
        shares = [f"{name} on {percent(one['accuracy'])} of {one['held_out_pairs']}" for name, one in several.items()]
        return f"The reward models are right on held-out pairs of their sources: {', '.join(shares)}."
    if model is None:
        return f"There is no reward model: {report['no_reward_model']}."
    ceiling = report["feedback"].get("agreement_with_gold")
    beside = "" if ceiling is None else f"; the verdicts it learned from agree with gold on {percent(ceiling)}"
    share = percent(model["accuracy"])
    return f"The reward model is right on {share} of {model['held_out_pairs']} held-out pairs{beside}."
