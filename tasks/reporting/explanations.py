"""Sentences on the report page that explain how its figures were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reporting.findings import label, labels

Report = Mapping[str, Any]


def sampling_sentences(report: Report) -> list[str]:
    """Explain the sampling temperature of the responses, and how KL is measured."""
    policies = report["policies"]
    described = {"SFT": report["sft"]} | {label(name): figures for name, figures in policies.items()}
    judged = {name: figures["temperature"] for name, figures in described.items()}
    own = {name: figures["kl_temperature"] for name, figures in described.items() if not figures["kl_is_bound"]}
    at = f"temperature {judged['SFT']:g}" if _alike(judged) else f"each policy's own temperature ({_listed(judged)})"
    kl = "KL is measured against the SFT model, in nats per response, summed over the vocabulary at each sampled token"
    if any(own[name] != judged[name] for name in own):
        own_at = f"temperature {own['SFT']:g}" if _alike(own) else f"each policy's own temperature ({_listed(own)})"
        kl += f", on a second sample at {own_at}"
    if set(own.values()) != {1.0}:
        kl += "; the temperature also divides the SFT model's logits"
    bounds = [name for name, figures in policies.items() if figures["kl_is_bound"]]
    return [
        f"Responses are sampled at {at}.",
        f"{kl}.",
        *([f"The KL of {labels(bounds)} is an upper bound, not a measurement."] if bounds else []),
    ]


def _alike(temperatures: Mapping[str, float]) -> bool:
    return len(set(temperatures.values())) == 1


def _listed(temperatures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {temperature:g}" for name, temperature in temperatures.items())


def reward_sentence(report: Report) -> str:
    """Explain the terms of the reward, and which policies were optimised for it."""
    if not report["rewards"]:
        return "There is no reward: policy.rewards has no term that this data supports."
    terms = [
        f"{term['weight']:g} × {term['name']}" + ("" if term["clamp"] is None else f" (within ±{term['clamp']:g})")
        for term in report["rewards"]
    ]
    optimised = {name: figures["reward_optimised"] for name, figures in report["policies"].items()}
    did, did_not = ([name for name in optimised if optimised[name] is wanted] for wanted in (True, False))
    uses = [f"{labels(did)} {_verb(did)} optimised for it, apart from any KL penalty"] if did else []
    what = "not" if did else "not optimised for it"
    uses += [f"{labels(did_not)} {_verb(did_not)} {what}, but trained on feedback"] if did_not else []
    return (
        f"Reward is the sum of policy.rewards: {' + '.join(terms)}. "
        "Each term is shown as its mean before weighting. "
        f"{'; '.join(uses)}."
    )


def _verb(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def glossary(report: Report) -> list[tuple[str, str]]:
    """Return the terms of the page with their meanings; only those that this report uses."""
    has_gold = "gold" in report["judge"] or "agreement_with_gold" in report["feedback"]
    words = [
        ("SFT", "the model after supervised fine-tuning, from which every policy starts", True),
        ("reference", "the response that the data gives for a prompt", True),
        ("judge", "scores each response; a win is a higher score on the same prompt", True),
        ("gold", "the exact score of a response by the rubric of the built-in data", has_gold),
        *((term["name"], term["meaning"], True) for term in report["rewards"]),
        ("KL", "divergence from the SFT model: how far a policy has moved", True),
        ("length", "mean tokens of a response", True),
        ("share ended", "share of responses that ended before the token limit", True),
        ("distinct-1, distinct-2", "share of different words, and of word pairs, in all responses", True),
        ("ECE", "expected calibration error of the predicted probabilities", _has_ece(report)),
    ]
    return [(word, meaning) for word, meaning, is_used in words if is_used]


def _has_ece(report: Report) -> bool:
    return any("ece" in (report[model] or {}) for model in ("reward_model", "judge_model"))
