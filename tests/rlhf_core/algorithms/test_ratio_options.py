"""Bounds of the ratio π_θ/π_old and dynamic sampling, worked by hand; options without effect raise."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.check import check_loop
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.common.batch import Outputs

# Two responses, of three tokens and of one. Advantages +2 and -1.
MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
OLD = torch.tensor([[-1.0, -2.0, -1.0], [-0.5, 0.0, 0.0]])
RATIOS = torch.tensor([[1.25, 0.5, 1.0], [4.0, 1.0, 1.0]])
ADVANTAGES = torch.tensor([[2.0, 2.0, 2.0], [-1.0, 0.0, 0.0]])


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.tensor(expected).double(), atol=tolerance, rtol=0)


def batch_of(**changes):
    given = {"old_logprobs": OLD, "sampler_logprobs": OLD} | changes
    return tiny.rollout_of(tiny.mask_batch(MASK), **given).with_targets(advantages=ADVANTAGES)


def grpo(**settings):
    return GRPO(group_size=2, kl_coef=0.0, **settings)


def surrogate_and_gradient(algorithm, batch=None, ratios=RATIOS):
    """The losses, and the gradient of their sum with respect to each token's log-probability."""
    batch = batch or batch_of()
    logprobs = (OLD + ratios.log()).requires_grad_()
    losses = algorithm.losses(Outputs.of(batch, logprobs=logprobs), batch)
    (losses * (MASK if losses.ndim == 2 else 1)).sum().backward()
    return losses.detach(), logprobs.grad


def test_clip_high_bounds_ratios_above_1():
    """ε = 0.2, ε_high = 0.28: 1.25 keeps its gradient, which ε alone stops. 0.5 with a positive advantage does too."""
    losses, gradient = surrogate_and_gradient(grpo(clip_high=0.28))
    close(losses, [[-2.5, -1.0, -2.0], [4.0, 0, 0]])
    close(gradient, [[-2.5, -1.0, -2.0], [4.0, 0, 0]])
    losses, gradient = surrogate_and_gradient(grpo())
    close(losses, [[-2.4, -1.0, -2.0], [4.0, 0, 0]])
    close(gradient, [[0, -1.0, -2.0], [4.0, 0, 0]])
    assert torch.equal(losses, surrogate_and_gradient(grpo(clip_high=0.2))[0])


def test_the_lower_clip_stays_at_clip():
    """ρ = ½ and Â = -1: clipped to 0.8, and to ½ and less only by a clip of 1, which is no lower bound."""
    low = torch.tensor([[1.0, 1, 1], [0.5, 1, 1]])
    for settings, loss, slope in (({"clip_high": 0.28}, 0.8, 0.0), ({"clip": 1.0}, 0.5, 0.5)):
        losses, gradient = surrogate_and_gradient(grpo(**settings), ratios=low)
        close([losses[1, 0], gradient[1, 0]], [loss, slope])


def test_dual_clip_bounds_negative_advantages_only():
    """c = 3: the loss of ρ = 4, Â = -1 is 3 without gradient; ρ = 4, Â = 2 is bounded by 1 + ε as before."""
    losses, gradient = surrogate_and_gradient(grpo(dual_clip=3.0))
    close(losses, [[-2.4, -1.0, -2.0], [3.0, 0, 0]])
    close(gradient, [[0, -1.0, -2.0], [0, 0, 0]])
    losses, _ = surrogate_and_gradient(grpo(dual_clip=3.0), ratios=torch.full((2, 3), 4.0))
    close(losses, [[-2.4] * 3, [3.0, 0, 0]])


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    """The weights are 1.2, 0.8, 1 and 1.2; the gradient of -w Â log π is -w Â."""
    losses, gradient = surrogate_and_gradient(grpo(surrogate="cispo"))
    close(gradient, [[-2.4, -1.6, -2.0], [1.2, 0, 0]])
    logprobs = OLD + RATIOS.log()
    close(losses, (gradient * logprobs).tolist())
    _, gradient = surrogate_and_gradient(grpo(surrogate="cispo", clip=1.0, clip_high=0.28))
    close(gradient, [[-2.5, -1.0, -2.0], [1.28, 0, 0]])


def test_the_ratio_of_the_sequence():
    """1.25 · 0.5 · 1 = 0.625, to the power ⅓; 4 to the power 1. Each token has the loss of its response."""
    s = 0.625 ** (1 / 3)
    assert s == pytest.approx(0.854988)
    losses, gradient = surrogate_and_gradient(grpo(ratio="sequence", clip=0.1, clip_high=0.4))
    close(losses, [[-2 * s] * 3, [4.0, 0, 0]])
    close(gradient, [[-2 * s] * 3, [4.0, 0, 0]])  # three losses, each with a third of the gradient
    losses, gradient = surrogate_and_gradient(grpo(ratio="sequence", clip=0.1, clip_high=0.4), ratios=1 / RATIOS)
    close(losses, [[-2 / s] * 3, [0.9, 0, 0]])  # ¼ < 1 - ε
    close(gradient, [[-2 / s] * 3, [0, 0, 0]])


def test_gspo_averages_over_responses():
    """Eq. 5: the mean of s_i Â_i over responses: (-2 s + 4)/2."""
    algorithm = grpo(ratio="sequence", clip=0.15, clip_high=0.4)
    losses, _ = surrogate_and_gradient(algorithm)
    close((losses * algorithm.weights(batch_of())).sum(), (-2 * 0.625 ** (1 / 3) + 4) / 2)


@pytest.mark.parametrize("averaging", [{}, {"averaging": "token"}, {"averaging": "fixed_length", "length": 4}])
def test_at_ratio_1_all_surrogates_have_the_same_gradient(averaging):
    kinds = [
        {},
        {"clip_high": 0.28, "dual_clip": 3.0},
        {"surrogate": "cispo"},
        {"ratio": "response"},
        {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4},
        {"ratio": "sequence", "clip": 3e-4, "surrogate": "cispo"},
    ]
    gradients = []
    for settings in kinds:
        algorithm, batch = grpo(**settings, **averaging), batch_of()
        logprobs = OLD.clone().requires_grad_()
        (algorithm.losses(Outputs.of(batch, logprobs=logprobs), batch) * algorithm.weights(batch)).sum().backward()
        gradients.append(logprobs.grad)
    for gradient in gradients:
        close(gradient, gradients[0].tolist())
    assert gradients[0].abs().sum() > 0.5


def test_rloo_and_ppo_have_the_same_bounds():
    """RLOO's ratio is the product, 0.625 and 4; PPO's is of each token."""
    losses, gradient = surrogate_and_gradient(RLOO(group_size=2, clip=0.5, clip_high=1.0, dual_clip=3.0))
    close(losses, [-1.25, 3.0])
    close(gradient, [[-1.25] * 3, [0, 0, 0]])
    _, gradient = surrogate_and_gradient(RLOO(group_size=2, surrogate="cispo"))
    close(gradient, [[-1.6] * 3, [1.2, 0, 0]])
    nothing = torch.zeros(2, 3)
    batch = replace(batch_of(), old_values=nothing, returns=nothing)
    outputs = Outputs.of(batch, logprobs=OLD + RATIOS.log(), values=nothing, entropies=nothing)
    close(PPO(clip_high=0.28, dual_clip=3.0).losses(outputs, batch), [[-2.5, -1.0, -2.0], [3.0, 0, 0]])


# π_old/π_sampler is 2, ½ and 1, and 3.
SAMPLER = OLD - torch.tensor([[2.0, 0.5, 1.0], [3.0, 1.0, 1.0]]).log()


@pytest.mark.parametrize(
    ("algorithm", "weights"),
    [
        (grpo(importance_cap=1.5), [[1.5, 0.5, 1.0], [1.5, 0, 0]]),
        (grpo(importance_cap=10.0), [[2.0, 0.5, 1.0], [3.0, 0, 0]]),
        (grpo(importance_cap=2.0, ratio="response"), [[0, 0, 1.0], [2.0, 0, 0]]),  # 2 · ½ · 1 = 1; 3 is capped
        (grpo(importance_cap=2.0, ratio="sequence", clip=0.1), [[1.0] * 3, [2.0, 0, 0]]),
        (grpo(importance_cap=1.5, surrogate="cispo"), [[1.5, 0.5, 1.0], [1.5, 0, 0]]),
    ],
)
def test_truncated_importance_weights_multiply_the_gradient(algorithm, weights):
    """At ratio 1 the gradient of the tokens is -w Â. At ratio 2 and Â < 0 the loss is 2 w, so ρ and w are separate."""
    weights = torch.tensor(weights)
    batch = batch_of(sampler_logprobs=SAMPLER)
    _, gradient = surrogate_and_gradient(algorithm, batch, torch.ones(2, 3))
    expected = weights.sum(-1, keepdim=True) * MASK if algorithm.ratio == "response" else weights
    close(gradient, (-expected * ADVANTAGES).tolist())
    if algorithm.surrogate == "clipped":
        losses, _ = surrogate_and_gradient(algorithm, batch, torch.full((2, 3), 2.0))
        assert losses[1, 0].item() == pytest.approx(2 * weights[1, 0].item())


def test_the_cap_needs_the_samplers_log_probabilities():
    for kind in (PPO, GRPO, RLOO):
        assert kind(importance_cap=2.0).needs.sampler_logprobs
        assert not kind().needs.sampler_logprobs


def statistics(algorithm):
    batch = batch_of()
    outputs = Outputs.of(batch, logprobs=OLD + RATIOS.log())
    return {name: value.tolist() for name, value in algorithm.statistics(outputs, batch).items()}


def test_clip_statistics():
    """Outside 1 ± 0.2: 1.25, 0.5 and 4. The clip stops only 1.25 with Â > 0; the dual clip also 4 with Â < 0."""
    found = statistics(grpo())
    assert found["clip_fraction"] == [[1, 1, 0], [1, 0, 0]]
    assert found["clip_active_fraction"] == [[1, 0, 0], [0, 0, 0]]
    assert statistics(grpo(dual_clip=3.0))["clip_active_fraction"] == [[1, 0, 0], [1, 0, 0]]
    assert statistics(grpo(clip_high=0.28))["clip_fraction"] == [[0, 1, 0], [1, 0, 0]]
    assert statistics(grpo(surrogate="cispo"))["clip_active_fraction"] == [[1, 1, 0], [1, 0, 0]]
    assert statistics(grpo(ratio="sequence", clip=0.1))["clip_fraction"] == [[1, 1, 1], [1, 1, 1]]
    assert statistics(RLOO(group_size=2, clip=0.5))["clip_fraction"] == [0, 1]


def test_groups_with_equal_scores_are_dropped():
    """Differences within float32 rounding are equal scores."""
    scores = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.3, 0.1 + 0.2])
    assert GRPO(group_size=2, dynamic_sampling=2).keeps(scores).tolist() == [False, True, False]
    assert RLOO(group_size=3).keeps(scores).tolist() == [True, True]
    assert (GRPO().extra_rounds, RLOO(dynamic_sampling=3).extra_rounds, PPO().extra_rounds) == (0, 3, 0)


@pytest.mark.pitfall(28)
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GRPO, {"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip has no effect while surrogate is cispo"),
        (GRPO, {"ratio": "sequence"}, "clip 0.2 does not suit ratio sequence.*set clip to 3e-4 and clip_high to 4e-4"),
        (GRPO, {"dual_clip": 1.0}, "dual_clip is 1.0; it must be above 1"),
        (PPO, {"clip": 1.1}, "clip is 1.1; it must be at most 1"),
        (RLOO, {"importance_cap": 0.0}, "importance_cap is 0.0; it must be above 0"),
        (RLOO, {"clip_high": math.inf}, "clip_high is inf; it must be a finite number"),
    ],
)
def test_combinations_without_effect_raise(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.pitfall(28)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (kind, settings)
        for kind in (PPO, GRPO, RLOO)
        for settings in ({"clip_high": 0.28}, {"dual_clip": 3.0}, {"surrogate": "cispo"})
    ],
)
def test_options_without_effect_at_ratio_1_raise(kind, settings):
    """One step per rollout: the ratio is 1. With two epochs, or for importance_cap, there is no error."""
    (name,) = settings
    algorithm = kind(**settings)
    sizes = {"rollout_size": 64, "minibatch_size": 64}
    with pytest.raises(ValueError, match=f"{name} has no effect with one step per rollout"):
        check_loop(OnlineConfig(**sizes), algorithm)
    check_loop(OnlineConfig(**sizes, epochs=2), algorithm)
    check_loop(OnlineConfig(**sizes), kind(importance_cap=2.0))
