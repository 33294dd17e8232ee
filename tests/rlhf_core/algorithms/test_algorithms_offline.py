"""Methods on fixed data, worked by hand: DPO, cDPO, IPO, KTO."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_core.algorithms.best_of_n import BestOfN
from rlhf_core.algorithms.cdpo import CDPO
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.ipo import IPO
from rlhf_core.algorithms.kto import KTO
from rlhf_core.common.batch import Example, Outputs, collate_units
from rlhf_core.loops.common.update import GradientStep, MicroSize, OptimizerConfig
from tiny import END, PAD, USER, paired


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.tensor(expected).double(), atol=tolerance, rtol=0)


def pairs(*lengths, preference=1.0):
    """Units of two rows with these lengths; every reference log-probability is -1."""
    rows = [Example([USER], [END] * length, ref_logprobs=[-1.0] * length) for length in lengths]
    units = [(replace(a, preference=preference), replace(b, preference=1 - preference)) for a, b in paired(rows)]
    return collate_units(units, PAD)


def outputs_for(batch, logratios):
    """Log-probabilities of row i are the reference's plus logratios[i]."""
    above = torch.tensor(logratios)[:, None]
    return Outputs.of(batch, logprobs=(above - 1) * batch.response_mask)


def test_dpo_sums_over_tokens():
    """Chosen: 2 tokens of +0.5; rejected: 1 token of -0.5. Log-ratios 1 and -0.5, β = 2: -log σ(3)."""
    batch = pairs(2, 1)
    losses = DPO(beta=2.0).losses(outputs_for(batch, [0.5, -0.5]), batch)
    close(losses, [math.log(1 + math.exp(-3))])


def test_a_tie_pulls_the_margin_to_zero():
    """Preference ½ gives the mean of both directions, with minimum log 2 at margin 0."""
    batch = pairs(1, 1, preference=0.5)
    at = [DPO(beta=1.0).losses(outputs_for(batch, [margin, 0.0]), batch).item() for margin in (-1.0, 0.0, 1.0)]
    assert at[1] == pytest.approx(math.log(2))
    assert at[0] == pytest.approx(at[2])
    assert at[0] > at[1]


def test_cdpo_has_a_finite_optimum():
    """ε = 0.1: the minimum is at margin log(0.9/0.1), with the entropy of 0.1 as loss."""
    batch, best = pairs(1, 1), math.log(9)
    algorithm = CDPO(beta=1.0, label_smoothing=0.1)
    logprobs = torch.tensor([[best - 1], [-1.0]], requires_grad=True)
    loss = algorithm.losses(Outputs.of(batch, logprobs=logprobs), batch).sum()
    loss.backward()
    assert loss.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    close(logprobs.grad, [[0.0], [0.0]])


@pytest.mark.pitfall(22)
def test_ipo_sums_over_tokens_by_default():
    """h = 2 · 0.5 - 1 · (-0.5) = 1.5, 1/(2τ) = 1: ¼. Per token h = 1: 0."""
    batch = pairs(2, 1)
    outputs = outputs_for(batch, [0.5, -0.5])
    close(IPO(beta=0.5).losses(outputs, batch), [0.25])
    close(IPO(beta=0.5, per_token=True).losses(outputs, batch), [0.0])


@pytest.mark.pitfall(22)
def test_ipo_per_token_divides_policy_and_reference():
    """A policy equal to the reference has h = 0 for all lengths."""
    batch = pairs(5, 2)
    close(IPO(beta=0.5, per_token=True).losses(outputs_for(batch, [0.0, 0.0]), batch), [1.0])


def test_pairs_have_equal_weight_for_all_lengths():
    """Each of two pairs has weight ½."""
    close(DPO(beta=1.0).weights(pairs(2, 1, 3, 3)), [0.5, 0.5])


def test_pair_statistics():
    """β = 2: implicit rewards 2 and -1 and their margin; log π(chosen) = 2 · (-0.5)."""
    batch = pairs(2, 1)
    statistics = DPO(beta=2.0).statistics(outputs_for(batch, [0.5, -0.5]), batch)
    found = {name: value.tolist() for name, value in statistics.items()}
    assert found == {
        "implicit_reward_chosen": [2.0],
        "implicit_reward_rejected": [-1.0],
        "margin": [3.0],
        "accuracy": [1.0],
        "logprobs_chosen": [-1.0],
    }


def kto_batch(*desirable):
    """Units of a labelled row and a mismatched row with one token each; reference log-probabilities are -1."""
    row = Example([USER], [END], ref_logprobs=[-1.0])
    return collate_units([(replace(row, desirable=value), row) for value in desirable], PAD)


def column(logratios):
    return torch.tensor(logratios)[:, None] - 1


@pytest.mark.pitfall(23)
def test_kto_reference_point_is_the_mean_over_mismatched_rows():
    """Mismatched log-ratios 1 and 0: z_0 = ½, without gradient, for every labelled row. -3 and 1: clamped to 0."""
    batch = kto_batch(1.0, 0.0)
    for mismatched, expected in (([1.0, 0.0], 0.5), ([-3.0, 1.0], 0.0)):
        logprobs = column(mismatched).requires_grad_()
        prepared = KTO().prepare(batch, lambda part, logprobs=logprobs: Outputs.of(part, logprobs=logprobs.detach()))
        assert prepared.reference_points.tolist() == [expected] * 2
        assert prepared.margins.isnan().all()  # unpaired data has no margins
        assert prepared.desirable.tolist() == [1.0, 0.0]
        assert not prepared.reference_points.requires_grad


def test_kto_losses_and_weights():
    """β = 1, z_0 = 0, r = log 3: good (1 - ¾) λ_D with λ_D = 2, bad (1 - ¼) λ_U with λ_U = 3; each row has weight ½."""
    batch = replace(kto_batch(1.0, 0.0).select(slice(0, None, 2)), reference_points=torch.zeros(2))
    algorithm = KTO(beta=1.0, desirable_weight=2.0, undesirable_weight=3.0)
    outputs = Outputs.of(batch, logprobs=column([math.log(3)] * 2))
    close(algorithm.losses(outputs, batch), [0.5, 2.25])
    close(algorithm.weights(batch), [0.5, 0.5])
    close(algorithm.statistics(outputs, batch)["margin"], [math.log(3), -math.log(3)])


@pytest.mark.pitfall(15)
def test_kto_reference_point_is_of_the_whole_minibatch(accelerator):
    """Four units with mismatched log-ratios 4, 0, 0, 0: z_0 = 1 for any microbatch size, not 4 or 0."""
    batch = kto_batch(1.0, 0.0, 1.0, 0.0)
    found = []
    for size in (4, 2, 1):
        weights = torch.nn.Parameter(torch.tensor([[0.5], [4.0], [0.5], [0.0], [0.5], [0.0], [0.5], [0.0]]))
        table = torch.nn.ParameterList([weights])
        numbered = replace(batch, ref_logprobs=torch.arange(8.0)[:, None])  # numbers the rows for lookup

        def forward(part, weights=weights):
            numbers = part.ref_logprobs[:, 0].long()
            return Outputs.of(part, logprobs=weights[numbers] + part.ref_logprobs)

        step = GradientStep(
            accelerator, KTO(beta=1.0), forward, {"model": (table, 1e-3)}, OptimizerConfig(), MicroSize(size)
        )
        metrics = step.accumulate(numbered, 0)
        assert metrics["reference_point"] == pytest.approx(1.0)
        found.append(weights.grad.clone())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert found[0][1::2].abs().max() == 0  # mismatched rows are not trained on


def test_best_of_n_kl_bound():
    """log 4 - ¾."""
    assert BestOfN(best_of=4).kl_bound == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DPO, {"beta": 0.0}, r"beta is 0\.0; it must be above 0"),
        (CDPO, {"label_smoothing": 0.0}, r"label_smoothing is 0\.0; it must be above 0"),
        (CDPO, {"label_smoothing": 0.5}, r"label_smoothing is 0\.5; it must be below 0\.5"),
        (IPO, {"beta": -1.0}, "beta is -1"),
        (KTO, {"undesirable_weight": 0.0}, r"undesirable_weight is 0\.0"),
        (BestOfN, {"best_of": 1}, "best_of is 1; it must be at least 2"),
    ],
)
def test_values_out_of_range_raise(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
