"""TRPO's step: conjugate gradient, Fisher-vector products, and the conditions of the line search."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import tiny
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.common.batch import collate
from rlhf_core.common.errors import UserError
from rlhf_core.loops.trust_region import TrustRegion, conjugate_gradient
from rlhf_core.models.checkpointing import checkpoint_layers
from rlhf_core.models.forward import response_logits, response_logprobs
from tiny import PAD


def test_conjugate_gradient_solves_in_as_many_steps_as_dimensions():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, target)
    torch.testing.assert_close(conjugate_gradient(lambda x: matrix @ x, target, 6), expected, atol=1e-8, rtol=0)
    rough = conjugate_gradient(lambda x: matrix @ x, target, 2)
    assert 1e-3 < (rough - expected).norm() < expected.norm()


def test_conjugate_gradient_of_the_identity_is_the_target_itself():
    """The system is solved after one step; another step would divide 0 by 0."""
    target = torch.tensor([3.0, 4.0])
    assert conjugate_gradient(lambda x: x, target, 10).tolist() == [3, 4]


def setting(family, **changes):
    """A policy, a rollout from it with given advantages, and the step."""
    policy = family()
    batch = collate(tiny.examples(), PAD)
    old = response_logprobs(policy, batch)
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(batch.response_mask.shape, generator=generator) * batch.response_mask
    rollout = tiny.rollout_of(batch, old_logprobs=old).with_targets(advantages=advantages)
    algorithm = TRPO(**{"fisher_fraction": 1.0, "cg_damping": 0.01} | changes.pop("algorithm", {}))
    return policy, rollout, TrustRegion(policy, algorithm, changes.pop("micro_rows", 6), 1.0)


def test_fisher_product_equals_that_of_the_matrix():
    """F = Σ_t w_t Σ_a π(a|s_t) ∇log π(a|s_t) ∇log π(a|s_t)ᵀ over the response tokens, computed row by row."""
    policy, rollout, region = setting(lambda: tiny.learned(n_embd=4, n_layer=1, n_head=1))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    logprobs = response_logits(policy, rollout).log_softmax(-1)
    weights = rollout.response_mask / rollout.response_mask.sum()
    vector = torch.randn(len(parameters_to_vector(parameters)), generator=torch.Generator().manual_seed(2))
    expected = 0.01 * vector
    for row, column in rollout.response_mask.nonzero().tolist():
        for token in range(tiny.VOCABULARY):
            score = torch.autograd.grad(logprobs[row, column, token], parameters, retain_graph=True)
            flat = torch.cat([part.flatten() for part in score])
            weight = weights[row, column] * logprobs[row, column, token].exp().detach()
            expected = expected + weight * (flat @ vector) * flat
    found = region._fisher_product(region._parts(rollout), vector)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_a_fisher_product_through_checkpointed_layers(family):
    """The layers that run again in the two backward passes use the same attention kernel."""
    products = []
    for checkpointing in (False, True):
        policy, rollout, region = setting(family)
        if checkpointing:
            checkpoint_layers(policy)
        policy.train()
        vector = torch.ones(sum(parameter.numel() for parameter in region.parameters))
        products.append(region._fisher_product(region._parts(rollout), vector))
    assert torch.equal(*products)


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES)
def test_an_accepted_step_raises_the_surrogate_within_the_bound(family):
    """Recomputed: Σ w ρ Â rises by the logged gain, and Σ w KL(π_old‖π_θ) <= δ/2 with the schedule's factor ½."""
    policy, rollout, region = setting(family)
    old = response_logits(policy, rollout).log_softmax(-1).detach()
    metrics = region.step(rollout, scale=0.5)
    assert metrics["line_search_failed"] == 0
    assert metrics["surrogate_gain"] > 0
    with torch.no_grad():
        new = response_logits(policy, rollout).log_softmax(-1)
        ratio = (response_logprobs(policy, rollout) - rollout.old_logprobs).exp()
    weights = rollout.response_mask / rollout.response_mask.sum()
    gain = ((ratio - 1) * rollout.advantages * weights).sum().item()
    assert metrics["surrogate_gain"] == pytest.approx(gain, abs=1e-5)
    kl = ((old.exp() * (old - new)).sum(-1) * weights).sum().item()
    assert metrics["trust_region_kl"] == pytest.approx(kl, abs=1e-5)
    assert 0.0005 < kl <= 0.005 == metrics["trust_region_limit"]


def test_each_step_has_its_own_trust_region(family):
    """The KL of the second step is measured from the policy after the first."""
    policy, rollout, region = setting(family)
    region.step(rollout, scale=1.0)
    old = response_logits(policy, rollout).log_softmax(-1).detach()
    metrics = region.step(replace(rollout, old_logprobs=response_logprobs(policy, rollout)), scale=1.0)
    assert metrics["line_search_failed"] == 0
    with torch.no_grad():
        new = response_logits(policy, rollout).log_softmax(-1)
    weights = rollout.response_mask / rollout.response_mask.sum()
    kl = ((old.exp() * (old - new)).sum(-1) * weights).sum().item()
    assert metrics["trust_region_kl"] == pytest.approx(kl, abs=1e-5)


@pytest.mark.pitfall(15)
def test_the_step_does_not_depend_on_microbatches():
    steps = []
    for micro_rows in (6, 4, 1):
        policy, rollout, region = setting(tiny.learned, micro_rows=micro_rows)
        before = parameters_to_vector(policy.parameters()).detach().clone()
        region.step(rollout, scale=1.0)
        steps.append(parameters_to_vector(policy.parameters()).detach() - before)
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0], atol=1e-4, rtol=1e-2)
    assert steps[0].norm() > 1e-2


def test_the_full_step_reaches_the_edge_of_the_trust_region(monkeypatch):
    """At the first step length of the line search, the quadratic model of the KL, ½ sᵀ F s, is δ = 0.02 · ½."""
    _, rollout, region = setting(tiny.learned, algorithm={"max_kl": 0.02, "cg_damping": 0.0})
    steps = []
    monkeypatch.setattr(region, "_line_search", lambda parts, step, before, limit: steps.append(step) or {})
    region.step(rollout, scale=0.5)
    product = region._fisher_product(region._parts(rollout), steps[0])
    assert (0.5 * steps[0] @ product).item() == pytest.approx(0.01, rel=1e-3)


def test_the_line_search_continues_until_the_surrogate_rises(monkeypatch):
    """The KL is within δ at every length; the surrogate rises only at the third length, a quarter of the full step."""
    policy, _, region = setting(tiny.learned)
    monkeypatch.setattr(region, "_mean_kl", lambda parts: 0.0)
    start = parameters_to_vector(policy.parameters()).detach().clone()
    after = iter([0.9, 1.0, 1.5])
    monkeypatch.setattr(region, "_surrogate", lambda parts, with_gradient: (next(after), None))
    metrics = region._line_search([], torch.ones_like(start), before=1.0, limit=0.1)
    assert (metrics["line_search_halvings"], metrics["surrogate_gain"], metrics["line_search_failed"]) == (2, 0.5, 0)
    torch.testing.assert_close(parameters_to_vector(policy.parameters()).detach(), start + 0.25)


def test_a_surrogate_that_never_rises_keeps_the_weights(monkeypatch):
    policy, _, region = setting(tiny.learned)
    monkeypatch.setattr(region, "_mean_kl", lambda parts: 0.0)
    monkeypatch.setattr(region, "_surrogate", lambda parts, with_gradient: (1.0, None))
    before = [parameter.clone() for parameter in policy.parameters()]
    step = torch.ones_like(parameters_to_vector(policy.parameters()))
    assert region._line_search([], step, before=1.0, limit=0.1)["line_search_failed"] == 1
    assert all(torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


def test_a_failing_line_search_keeps_the_weights_and_is_counted(monkeypatch):
    """The KL exceeds δ at every length: all ten are tried, and the weights are restored bit for bit."""
    policy, rollout, region = setting(tiny.learned)
    monkeypatch.setattr(region, "_mean_kl", lambda parts: float("inf"))
    before = [parameter.clone() for parameter in policy.parameters()]
    metrics = region.step(rollout, scale=1.0)
    assert (metrics["line_search_failed"], metrics["line_search_halvings"], metrics["surrogate_gain"]) == (1, 10, 0)
    assert all(torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


@pytest.mark.pitfall(18)
def test_zero_advantages_make_no_step():
    policy, rollout, region = setting(tiny.learned)
    before = [parameter.clone() for parameter in policy.parameters()]
    metrics = region.step(rollout.with_targets(advantages=torch.zeros_like(rollout.advantages)), scale=1.0)
    assert metrics["line_search_failed"] == 0
    assert all(torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


@pytest.mark.pitfall(31)
def test_a_broken_advantage_stops_before_the_weights_change():
    policy, rollout, region = setting(tiny.learned)
    before = [parameter.clone() for parameter in policy.parameters()]
    with pytest.raises(UserError, match="the gradient of the surrogate is not finite; the weights were not changed"):
        region.step(rollout.with_targets(advantages=rollout.advantages * float("nan")), scale=1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))
