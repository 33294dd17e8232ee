"""Sentences on the report page that say how its figures were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reporting.findings import label, labels

Report = Mapping[str, Any]


def sampling_sentences(report: Report) -> list[str]:
    """At which temperature the responses were sampled, and what KL is."""
    policies = report["policies"]
    described = {"SFT": report["sft"]} | {label(name): figures for name, figures in policies.items()}
    judged = {name: figures["temperature"] for name, figures in described.items()}
    own = {name: figures["kl_temperature"] for name, figures in described.items() if not figures["kl_is_bound"]}
    at = f"temperature {judged['SFT']:g}" if _alike(judged) else f"each policy's own temperature ({_listed(judged)})"
    kl = "KL is to the SFT model, in nats per response, summed over the vocabulary at each sampled token"
    if any(own[name] != judged[name] for name in own):
        own_at = f"temperature {own['SFT']:g}" if _alike(own) else f"each policy's own temperature ({_listed(own)})"
        kl += f", on a second sample at {own_at}"
    if set(own.values()) != {1.0}:
        kl += "; the temperature divides the SFT model's logits too"
    bounds = [name for name, figures in policies.items() if figures["kl_is_bound"]]
    return [
        f"Responses are sampled at {at}.",
        f"{kl}.",
        *([f"That of {labels(bounds)} is not measured: it is the upper bound."] if bounds else []),
    ]


def _alike(temperatures: Mapping[str, float]) -> bool:
    return len(set(temperatures.values())) == 1


def _listed(temperatures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {temperature:g}" for name, temperature in temperatures.items())


def reward_sentence(report: Report) -> str:
    """What the figure called reward adds up, and which policies were optimised for it."""
    if not report["rewards"]:
        return "There is no reward: policy.rewards names none that this data gives."
    terms = [
        f"{term['weight']:g} × {term['name']}" + ("" if term["clamp"] is None else f" (within ±{term['clamp']:g})")
        for term in report["rewards"]
    ]
    optimised = {name: figures["reward_optimised"] for name, figures in report["policies"].items()}
    did, did_not = ([name for name in optimised if optimised[name] is wanted] for wanted in (True, False))
    uses = [f"{labels(did)} {_verb(did)} optimised for it, apart from any KL penalty"] if did else []
    what = "not" if did else "not optimised for it"
    uses += [f"{labels(did_not)} {_verb(did_not)} {what}: trained on given data, without it"] if did_not else []
    return (
        f"Reward is the whole of policy.rewards: {' + '.join(terms)}; each term's mean before its weight is beside it. "
        f"{'; '.join(uses)}."
    )


def _verb(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"
