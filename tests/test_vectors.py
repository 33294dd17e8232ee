"""rlhf_core against the test vectors of `tests/vectors`, in float64, at each file's own tolerance.

Every entry of every file is either computed here or listed in NOT_OFFERED with the reason.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_core.advantages import gae, group_standardize, whiten
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.batch import Example, Outputs, collate, not_computed
from rlhf_core.kl import kl_k1, kl_k2, kl_k3
from rlhf_core.losses import bradley_terry, cross_entropy, dpo, exact_kl, token_entropies, token_logprobs
from rlhf_core.metrics import pair_metrics
from rlhf_core.reductions import sequence_mean, sequence_sum, token_mean
from tiny import END, PAD, USER

FOLDER = Path(__file__).parent / "vectors"
VECTORS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}

NOT_OFFERED = {
    "dpo": {
        "hinge_beta0.1": "hinge (SLiC) loss: not offered yet",
        "ipo_avg_beta0.1": "IPO per token: not offered yet",
        "ipo_sum_beta0.1": "IPO: not offered yet",
        "robust_beta0.1_eps0.1": "robust DPO: not offered yet",
    },
    "grpo_advantages": {"batch": "division by the std of the whole batch: not offered yet"},
    "kto": {
        "kl_positive": "KTO: not offered yet",
        "kl_clamped_to_zero": "KTO: not offered yet",
        "weights_1_1p5": "KTO: not offered yet",
    },
    "reward_bt": {"loss_center": "a centring term in the loss: rewards are centred after training instead"},
    "rloo": {
        "advantages": "RLOO: not offered yet",
        "advantages_kl": "RLOO: not offered yet",
        "advantages_normalized": "RLOO: not offered yet",
        "loss": "RLOO: not offered yet",
        "grad_token_logps": "RLOO: not offered yet",
    },
    "sft_ce": {"loss_dft": "DFT weighting: not offered yet"},
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
    return entries | {"rewards_beta0.1": implicit_rewards(inputs)}


def implicit_rewards(inputs):
    """Through the algorithm: rows alternate chosen, rejected, one token each."""
    batch = collate([Example([USER], [END])] * 2 * len(inputs["policy_chosen_logps"]), PAD)
    sides = (inputs["policy_chosen_logps"], inputs["policy_rejected_logps"])
    ref_sides = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
    nothing = not_computed(batch.rows)
    outputs = Outputs(tensor(sides).T.reshape(-1, 1), nothing, nothing, nothing)
    batch = replace(batch, ref_logprobs=tensor(ref_sides).T.reshape(-1, 1))
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
    group = group_standardize(scores, size, divide_by_std=True, unbiased_std=True, eps=inputs["eps"])
    none = group_standardize(scores, size, divide_by_std=False)
    return {"group": group.reshape(-1, size), "none": none.reshape(-1, size)}


def kl_entries(inputs):
    """p is the policy that samples, q the reference; the expectations are over all seven outcomes."""
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
    """logits[t] predict labels[t + 1]. Ten tokens are labelled; 40 is the count of a minibatch that holds 30 more."""
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
    """Nothing is shifted here: logits[t] score labels[t]."""
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
    "reward_bt": reward_entries,
    "sft_ce": sft_entries,
    "token_logprobs": logprob_entries,
}


def assert_equal_entry(found, expected, tolerance, where):
    """Walk nested entries; both sides hold the same keys, and every number agrees."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal_entry(found[key], value, tolerance, f"{where}.{key}")
    else:
        if isinstance(found, float):  # a number made to be reported, averaged in float32
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


def test_nothing_is_skipped_silently():
    """Offered and left-out entries together are all entries of all files, and no entry is both."""
    for name, vectors in VECTORS.items():
        offered = set(OFFERED[name](vectors["inputs"])) if name in OFFERED else set()
        left_out = set(NOT_OFFERED.get(name, {}))
        assert offered | left_out == set(vectors["expected"]), name
        assert not offered & left_out, name
    assert OFFERED.keys() | NOT_OFFERED.keys() == VECTORS.keys()
