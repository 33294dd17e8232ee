"""rlhf_core against the test vectors of `tests/vectors`, in float64, with the tolerance of each file.

Every entry of every file is either computed here or listed in NOT_OFFERED with the reason.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.ipo import IPO
from rlhf_core.algorithms.kto import KTO
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.common.batch import Example, Outputs, collate, collate_units
from rlhf_core.maths.advantages import gae, group_standardize, whiten
from rlhf_core.maths.kl import kl_k1, kl_k2, kl_k3
from rlhf_core.maths.losses import bradley_terry, cross_entropy, dpo, exact_kl, token_entropies, token_logprobs
from rlhf_core.maths.metrics import pair_metrics
from rlhf_core.maths.reductions import sequence_mean, sequence_sum, token_mean
from tiny import END, PAD, USER, paired, rollout_of

FOLDER = Path(__file__).parent / "vectors"
VECTORS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}

NOT_OFFERED = {
    "dpo": {
        "hinge_beta0.1": "the hinge loss of SLiC: no seed names it",
        "robust_beta0.1_eps0.1": "robust DPO: no seed names it; cDPO is offered",
    },
    "reward_bt": {"loss_center": "a centring term in the loss: rewards are centred after training instead"},
    "sft_ce": {"loss_dft": "DFT weighting: no seed names it"},
}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def leaf(values):
    return tensor(values).requires_grad_()


def dpo_entries(inputs):
    ref_chosen, ref_rejected = tensor(inputs["ref_chosen_logps"]), tensor(inputs["ref_rejected_logps"])
    entries = {}
    for beta in inputs["betas"]:
        chosen, rejected = leaf(inputs["policy_chosen_logps"]), leaf(inputs["policy_rejected_logps"])
        losses = dpo(chosen - ref_chosen, rejected - ref_rejected, beta)
        losses.mean().backward()
        entries[f"sigmoid_beta{beta}"] = {
            "loss": losses.mean(),
            "per_sequence": losses,
            "grad_chosen_logp": chosen.grad,
            "grad_rejected_logp": rejected.grad,
        }
    ipo_entries = {f"ipo_{form}_beta0.1": ipo_entry(inputs, form) for form in ("sum", "avg")}
    return entries | ipo_entries | {"rewards_beta0.1": implicit_rewards(inputs)}


def ipo_entry(inputs, form):
    """Computed with the algorithm; per token, it divides both policy and reference by the length."""
    algorithm, (outputs, batch) = IPO(beta=0.1, per_token=form == "avg"), pair_batch(inputs)
    losses = algorithm.losses(outputs, batch)
    return {"loss": losses.mean(), "per_sequence": losses}


def pair_batch(inputs):
    """Rows alternate between chosen and rejected, with the lengths of the vectors; the first token has the sum."""
    lengths = [n for pair in zip(inputs["chosen_lengths"], inputs["rejected_lengths"], strict=True) for n in pair]
    batch = collate_units(paired([Example([USER], [END] * length) for length in lengths]), PAD)
    sides = [tensor(inputs[f"policy_{side}_logps"]) for side in ("chosen", "rejected")]
    ref_sides = [tensor(inputs[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]
    logprobs, ref_logprobs = (first_token(pair, batch) for pair in (sides, ref_sides))
    return Outputs.of(batch, logprobs=logprobs), replace(batch, ref_logprobs=ref_logprobs)


def first_token(sides, batch):
    return first_column(torch.stack(sides, -1).flatten(), batch)


def first_column(sums, batch):
    return torch.where(torch.arange(batch.response_length) == 0, sums[:, None], tensor(0.0))


def implicit_rewards(inputs):
    """Computed with the algorithm."""
    outputs, batch = pair_batch(inputs)
    statistics = DPO(beta=0.1).statistics(outputs, batch)
    return {
        "chosen": statistics["implicit_reward_chosen"],
        "rejected": statistics["implicit_reward_rejected"],
        "accuracy": statistics["accuracy"].double().mean(),
        "margin": statistics["margin"].mean(),
    }


def gae_entries(inputs):
    mask = tensor(inputs["mask"])
    entries = {}
    for gamma, lam in ((1.0, 0.95), (0.99, 0.95), (0.9, 0.0), (1.0, 1.0)):
        advantages, returns = gae(tensor(inputs["rewards"]), tensor(inputs["values"]), mask, gamma, lam)
        whitened = whiten(advantages, mask, shift_mean=True, unbiased=True)
        entries[f"gamma{gamma}_lam{lam}"] = {
            "advantages": advantages,
            "returns": returns,
            "advantages_whitened": whitened,
        }
    return entries


def grpo_entries(inputs):
    scores, size = tensor(inputs["rewards"]).reshape(-1), inputs["group_size"]
    stds = ("group", "batch", "none")
    found = {std: group_standardize(scores, size, std=std, unbiased_std=True, eps=inputs["eps"]) for std in stds}
    return {std: advantages.reshape(-1, size) for std, advantages in found.items()}


def kto_entry(inputs, **changes):
    """Computed with the algorithm, on units of a labelled row and a mismatched row with one token each."""
    policy, algorithm = leaf(inputs["policy_logps"]), KTO(beta=inputs["beta"], **changes)
    rows = [
        (Example([USER], [END], desirable=float(good)), Example([USER], [END])) for good in inputs["label_desirable"]
    ]
    batch = collate_units(rows, PAD)
    alternating = torch.stack([policy, tensor(inputs["policy_KL_logps"])], -1).reshape(-1, 1)
    ref = torch.stack([tensor(inputs["ref_logps"]), tensor(inputs["ref_KL_logps"])], -1).reshape(-1, 1)
    batch = replace(batch, ref_logprobs=ref)
    mismatched = lambda part: Outputs.of(part, logprobs=alternating.detach()[1::2])  # noqa: E731
    labelled = algorithm.prepare(batch, mismatched)
    losses = algorithm.losses(Outputs.of(labelled, logprobs=alternating[0::2]), labelled)
    losses.mean().backward()
    return {
        "kl": labelled.reference_points[0],
        "per_sequence": losses,
        "loss": losses.mean(),
        "grad_policy_logp": policy.grad,
    }


def kto_entries(inputs):
    swapped = {"policy_KL_logps": inputs["ref_KL_logps"], "ref_KL_logps": inputs["policy_KL_logps"]}
    return {
        "kl_positive": kto_entry(inputs),
        "kl_clamped_to_zero": kto_entry(inputs | swapped),
        "weights_1_1p5": kto_entry(inputs, undesirable_weight=1.5),
    }


def rloo_entries(inputs):
    size, scores = inputs["group_size"], tensor(inputs["rewards"]).reshape(-1)
    old, ref = tensor(inputs["old_token_logps"]), tensor(inputs["ref_token_logps"])
    batch = collate([Example([USER], [END] * old.shape[1])] * len(scores), PAD)
    batch = replace(batch, response_mask=batch.response_mask.double())
    rollout = rollout_of(batch, old_logprobs=old, ref_logprobs=ref, scores=scores)
    found = {}
    forms = {
        "": {"kl_coef": 0.0},
        "_kl": {"kl_coef": inputs["beta"]},
        "_normalized": {"kl_coef": 0.0, "normalize_advantages": True},
    }
    for name, changes in forms.items():
        advantages = RLOO(group_size=size, **changes).targets(rollout, {}).advantages
        found[f"advantages{name}"] = advantages[:, 0].reshape(-1, size)
    return found | rloo_loss(inputs["loss"])


def rloo_loss(inputs):
    logprobs, mask = leaf(inputs["token_logps"]), tensor(inputs["mask"])
    batch = replace(collate([Example([USER], [END] * mask.shape[1])] * len(mask), PAD), response_mask=mask)
    old = first_column(tensor(inputs["old_sequence_logps"]), batch)
    rollout = rollout_of(batch, old_logprobs=old)
    rollout = rollout.with_targets(advantages=tensor(inputs["advantages"])[:, None] * mask)
    algorithm = RLOO(clip=inputs["epsilon"])
    losses = algorithm.losses(Outputs.of(rollout, logprobs=logprobs), rollout)
    loss = (losses * algorithm.weights(rollout)).sum()
    loss.backward()
    return {"loss": loss, "grad_token_logps": logprobs.grad}


def kl_entries(inputs):
    """p is the policy that samples, q the reference; expectations are over all seven outcomes."""
    logp, logq = tensor(inputs["logp"]), tensor(inputs["logq"])
    entries = {"k1": kl_k1(logp, logq), "k2": kl_k2(logp, logq), "k3": kl_k3(logp, logq)}
    expected = {f"E_{name}": (logp.exp() * value).sum() for name, value in entries.items()}
    return entries | expected | {"exact_kl": exact_kl(logp, logq)}


def reward_entries(inputs):
    chosen, rejected = leaf(inputs["rewards_chosen"]), leaf(inputs["rewards_rejected"])
    loss = bradley_terry(chosen, rejected).mean()
    loss.backward()
    return {
        "loss": loss,
        "loss_margin": bradley_terry(chosen, rejected, tensor(inputs["margin"])).mean(),
        "grad_chosen": chosen.grad,
        "grad_rejected": rejected.grad,
        "accuracy": pair_metrics(chosen.detach(), rejected.detach())["accuracy"],
    }


def sft_entries(inputs):
    """logits[t] predict labels[t + 1]. Ten tokens are labelled; 40 is the count of a minibatch with 30 more tokens."""
    logits, labels = leaf(inputs["logits"]), torch.tensor(inputs["labels"])[:, 1:]
    mask = (labels != -100).double()
    losses = cross_entropy(token_logprobs(logits[:, :-1], labels.clamp(min=0)))
    loss = (losses * token_mean(mask)).sum()
    loss.backward()
    minibatch = torch.cat([mask, torch.ones(5, 6, dtype=torch.float64)])
    assert minibatch.sum() == inputs["num_items_in_batch"]
    return {
        "loss_token_mean": loss,
        "loss_num_items_40": (losses * token_mean(minibatch)[:3]).sum(),
        "loss_seq_mean": (losses * sequence_mean(mask)).sum(),
        "grad_logits": logits.grad,
    }


def logprob_entries(inputs):
    """There is no shift: logits[t] score labels[t]."""
    logits, labels = tensor(inputs["logits"]), torch.tensor(inputs["labels"])
    mask, ids = (labels != -100).double(), labels.clamp(min=0)
    logprobs = token_logprobs(logits, ids) * mask
    return {
        "logprobs": logprobs,
        "logprobs_temperature": token_logprobs(logits, ids, inputs["temperature"]) * mask,
        "logprobs_extreme": token_logprobs(tensor(inputs["logits_extreme"]), ids) * mask,
        "entropy": token_entropies(logits),
        "sum": sequence_sum(logprobs, mask),
    }


OFFERED = {
    "dpo": dpo_entries,
    "gae": gae_entries,
    "grpo_advantages": grpo_entries,
    "kl_estimators": kl_entries,
    "kto": kto_entries,
    "rloo": rloo_entries,
    "reward_bt": reward_entries,
    "sft_ce": sft_entries,
    "token_logprobs": logprob_entries,
}


def assert_equal_entry(found, expected, tolerance, where):
    """Compare nested entries: both sides have the same keys, and all numbers agree."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal_entry(found[key], value, tolerance, f"{where}.{key}")
    else:
        if isinstance(found, float):  # a reported number, averaged in float32
            tolerance = max(tolerance, 1e-7)
        found = torch.as_tensor(found, dtype=torch.float64).detach()
        torch.testing.assert_close(found, tensor(expected), atol=tolerance, rtol=0, msg=lambda text: f"{where}: {text}")


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_every_offered_entry_equals_its_vector(name):
    vectors = VECTORS[name]
    left_out = NOT_OFFERED.get(name, {})
    expected = {key: value for key, value in vectors["expected"].items() if key not in left_out}
    assert vectors["tolerance"] <= 1e-6
    assert_equal_entry(OFFERED[name](vectors["inputs"]), expected, vectors["tolerance"], name)


def test_every_entry_is_computed_or_listed():
    """Every entry of every file is either computed or listed as not offered, and none is both."""
    for name, vectors in VECTORS.items():
        offered = set(OFFERED[name](vectors["inputs"])) if name in OFFERED else set()
        left_out = set(NOT_OFFERED.get(name, {}))
        assert offered | left_out == set(vectors["expected"]), name
        assert not offered & left_out, name
    assert OFFERED.keys() | NOT_OFFERED.keys() == VECTORS.keys()
