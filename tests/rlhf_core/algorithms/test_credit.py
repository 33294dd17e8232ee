"""Losses, credit assignment and averaging: gradients, token rewards, KL, whitening and the KL controller."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.common.batch import Example, Outputs, collate, collate_units
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.update import GradientStep, MicroSize, OptimizerConfig
from rlhf_core.maths.advantages import equal_groups, group_standardize, token_rewards, whiten
from rlhf_core.maths.kl import adapted_kl_coef
from rlhf_core.maths.losses import bradley_terry, dpo
from rlhf_core.models.forward import policy_outputs, response_logits, response_logprobs, score_outputs, scores, values
from rlhf_core.models.store import load_scalar_model, new_scalar_model, save_policy, save_scalar_model
from tasks.params.load import ROOT, load_params
from tiny import END, PAD


def prepared(name, folder, tokenizer):
    """(algorithm, minibatch, model, forward) of one method; six rows of different lengths."""
    policy, batch = tiny.rotary(), collate(tiny.examples(), PAD)
    if name in ("bradley_terry", "dpo"):
        batch = collate_units(tiny.paired(tiny.examples()), PAD)
    reference = tiny.rotary(seed=1)
    save_policy(policy, tokenizer, folder, max_new_tokens=4)
    torch.manual_seed(0)
    scalar = new_scalar_model(folder)
    if name == "sft":
        return SFT(), batch, policy, lambda part: policy_outputs(policy, part)
    if name == "bradley_terry":
        return BradleyTerry(), batch, scalar, lambda part: score_outputs(scalar, part)
    ref_logprobs = response_logprobs(reference, batch)
    if name == "dpo":
        paired = tiny.rollout_of(batch, old_logprobs=ref_logprobs)
        return DPO(beta=0.5), paired, policy, lambda part: policy_outputs(policy, part)
    # The sampling policy differs slightly from the current policy, so some ratios are clipped.
    old = response_logprobs(policy, batch) + 0.3 * torch.randn(batch.response_mask.shape) * batch.response_mask
    rollout = tiny.rollout_of(
        batch,
        old_logprobs=old,
        ref_logprobs=ref_logprobs,
        old_values=values(scalar, batch).detach(),
        scores=torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0]),
    )
    if name == "grpo":
        algorithm = GRPO(group_size=3)
        return algorithm, algorithm.targets(rollout, {}), policy, lambda part: policy_outputs(policy, part)
    algorithm = PPO(entropy_coef=0.01)
    both = torch.nn.ModuleList([policy, scalar])

    def forward(part):
        outputs = policy_outputs(policy, part, entropy="gradient")
        return replace(outputs, values=values(scalar, part))

    return algorithm, algorithm.targets(rollout, algorithm.initial_state()), both, forward


@pytest.mark.pitfall(15)
@pytest.mark.parametrize("name", ["sft", "bradley_terry", "dpo", "ppo", "grpo"])
def test_gradient_does_not_depend_on_microbatch_size(name, accelerator, tmp_path, tokenizer):
    """Microbatches of 1, 2, 4 and all units; with 4, the last one is smaller. Loss and statistics are equal too."""
    algorithm, batch, model, forward = prepared(name, tmp_path, tokenizer)
    found = []
    for size in (len(batch.unit_sizes), 4, 2, 1):
        config = OptimizerConfig(learning_rate=1e-3)
        step = GradientStep(accelerator, algorithm, forward, {"model": (model, 1e-3)}, config, MicroSize(size))
        metrics = step.accumulate(batch, 0)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((gradient.clone(), metrics))
    whole, metrics = found[0]
    assert whole.abs().max() > 1e-3
    for gradient, others in found[1:]:
        torch.testing.assert_close(gradient, whole, atol=1e-6, rtol=1e-5)
        assert others == pytest.approx(metrics, abs=1e-5)


@pytest.mark.pitfall(15)
def test_tokens_of_uneven_microbatches_have_equal_weight(accelerator):
    """-log π of rows with 1 and 3 tokens is 1 and 2, 2, 2: the mean over tokens is 7/4, not the mean of means 3/2."""
    batch = tiny.mask_batch(torch.tensor([[1, 0, 0], [1, 1, 1]]))
    logprobs = torch.nn.Parameter(torch.tensor([[-1.0, 0, 0], [-2.0, -2.0, -2.0]]))
    model = torch.nn.ParameterList([logprobs])
    rows = iter((slice(0, 1), slice(1, 2)))
    step = GradientStep(
        accelerator,
        SFT(),
        lambda part: Outputs.of(part, logprobs=logprobs[next(rows)]),
        {"model": (model, 1e-3)},
        OptimizerConfig(),
        MicroSize(1),
    )
    assert step.accumulate(batch, 0)["loss"] == pytest.approx(7 / 4)
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.25, 0, 0], [-0.25, -0.25, -0.25]]))


@pytest.mark.pitfall(16)
def test_token_rewards_sum_to_score_minus_kl():
    """β = 0.5. Row 0: KL 0.2 + 0.4 + 0.6 and score 2: 2 - 0.6 = 1.4. Row 1: KL -1 (of one token), score -1: -0.5.

    The KL of 9 after the end of row 1 is padding and is ignored. The score is at the last token.
    """
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    kl = torch.tensor([[0.2, 0.4, 0.6], [-1.0, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), kl, 0.5, mask)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 1.7], [-0.5, 0, 0]]))
    torch.testing.assert_close((rewards * mask).sum(-1), torch.tensor([1.4, -0.5]))


@pytest.mark.pitfall(16)
def test_rewards_of_ppo_sum_to_score_minus_kl():
    """With PPO.targets, every row sums to score - β Σ (log π_old - log π_ref)."""
    batch = collate(tiny.examples(), PAD)
    old = response_logprobs(tiny.rotary(), batch)
    ref = response_logprobs(tiny.rotary(seed=1), batch)
    rollout = tiny.rollout_of(
        batch, old_logprobs=old, ref_logprobs=ref, old_values=torch.zeros_like(old), scores=torch.arange(6.0)
    )
    state = {"kl_coef": 0.3}
    rewards = PPO().at(state).targets(rollout, state).rewards
    torch.testing.assert_close(rewards.sum(-1), rollout.scores - 0.3 * (old - ref).sum(-1))


SMALL = {"vocab_size": 4, "eos_token_id": 2}


def enumerated():
    """Policy and reference in float64 with four tokens, and all responses of at most three tokens to one prompt.

    The models are GPT-2, because Llama always computes its norms in float32.

    Token 2 ends a response: 1 response of one token, 3 of two, 9 of three that end and 27 that are cut off: 40 in all.
    """
    others = [token for token in range(4) if token != 2]
    responses = [
        [*start, last]
        for length in range(3)
        for start in itertools.product(others, repeat=length)
        for last in (range(4) if length == 2 else [2])
    ]
    batch = collate([Example([0, 1], response) for response in responses], 3)
    policy, reference = (tiny.learned(seed, **SMALL).double() for seed in (0, 1))
    assert batch.rows == 40
    return policy, reference, batch


def gradient_of(value, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(policy.parameters()), retain_graph=True)])


@pytest.mark.pitfall(17)
def test_kl_in_the_reward_has_the_exact_gradient():
    """Without score and critic, γ = λ = 1: the expected PPO loss has the gradient of β KL(π_θ‖π_ref) of responses."""
    policy, reference, batch = enumerated()
    outputs = policy_outputs(policy, batch)
    ref = response_logprobs(reference, batch)
    probabilities = outputs.logprobs.sum(-1).exp()
    assert probabilities.sum().item() == pytest.approx(1)
    exact = 0.3 * (probabilities * (outputs.logprobs - ref).sum(-1)).sum()

    algorithm = PPO(kl_coef=0.3, lam=1.0, whiten_advantages=False)
    old = outputs.logprobs.detach()
    zeros = torch.zeros_like(old)
    rollout = tiny.rollout_of(
        batch, old_logprobs=old, ref_logprobs=ref, old_values=zeros, scores=torch.zeros(40, dtype=torch.float64)
    )
    rollout = algorithm.targets(rollout, algorithm.initial_state())
    # With V = G the critic's loss is 0 for every policy.
    seen = Outputs.of(batch, logprobs=outputs.logprobs, entropies=zeros, values=rollout.returns)
    expected = (probabilities.detach()[:, None] * algorithm.losses(seen, rollout)).sum()
    found = gradient_of(expected, policy)
    torch.testing.assert_close(found, gradient_of(exact, policy), atol=1e-10, rtol=1e-8)
    assert found.abs().max() > 1e-3


@pytest.mark.pitfall(17)
def test_k3_in_the_loss_has_the_gradient_of_the_reverse_kl_at_each_state():
    """Without score, GRPO's expected loss has the gradient of β Σ_s p(s) KL(π_ref(·|s)‖π_θ(·|s)) with fixed p(s)."""
    policy, reference, batch = enumerated()
    outputs = policy_outputs(policy, batch)
    ref = response_logprobs(reference, batch)
    probabilities = outputs.logprobs.sum(-1).exp().detach()[:, None]
    logprobs = response_logits(policy, batch).log_softmax(-1)
    with torch.no_grad():
        ref_all = response_logits(reference, batch).log_softmax(-1)
    reverse = (ref_all.exp() * (ref_all - logprobs)).sum(-1) * batch.response_mask
    exact = 0.3 * (probabilities * reverse).sum()

    algorithm = GRPO(group_size=40, kl_coef=0.3)
    rollout = tiny.rollout_of(
        batch,
        old_logprobs=outputs.logprobs.detach(),
        ref_logprobs=ref,
        scores=torch.zeros(40, dtype=torch.float64),
    )
    expected = (probabilities * algorithm.losses(outputs, algorithm.targets(rollout, {}))).sum()
    found = gradient_of(expected, policy)
    torch.testing.assert_close(found, gradient_of(exact, policy), atol=1e-10, rtol=1e-8)
    assert found.abs().max() > 1e-3


@pytest.mark.pitfall(18)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_groups_have_advantage_exactly_zero(dtype):
    """The float32 mean of seven 0.7 is not 0.7, and 0.1 + 0.2 is not 0.3 in float64. Both groups have equal scores.

    A very small ε would amplify the rounding. The third group, six 0 and a 1, does not have equal scores.
    """
    scores = torch.tensor([0.7] * 7 + [0.1 + 0.2, *[0.3] * 6] + [0.0] * 6 + [1.0], dtype=dtype)
    scores[0] += torch.finfo(dtype).eps  # scores of one response in two batches can differ by this
    assert equal_groups(scores, 7).tolist() == [True, True, False]
    advantages = group_standardize(scores, 7, eps=1e-12)
    assert (advantages[:14] == 0).all()
    assert (advantages[14:] != 0).all()


@pytest.mark.pitfall(18)
def test_small_differences_give_nonzero_advantages():
    """1000 and 1000.0625 differ by more than rounding, so the advantages are ∓1."""
    advantages = group_standardize(torch.tensor([1000.0, 1000.0625]), 2, eps=1e-8)
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 1.0]))


@pytest.mark.pitfall(19)
def test_whitening_is_masked():
    """Without the padding 100, 1, 3, 5 have mean 3 and sample variance 4: -1, 0, 1. The population variance is 8/3."""
    values, mask = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]]), torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
    scaled = 2 / math.sqrt(8 / 3)
    expected = torch.tensor([[-scaled, 0, 0], [scaled, 0, 0]])
    torch.testing.assert_close(whiten(values, mask, unbiased=False), expected)


@pytest.mark.pitfall(19)
def test_whitening_keeps_the_mean_when_it_only_scales():
    """1, 3, 5 become 2, 3, 4."""
    kept = whiten(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), torch.tensor([[1.0, 1, 1, 0]]), shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([[2.0, 3, 4, 0]]))


@pytest.mark.pitfall(19)
def test_whitening_one_element_is_safe():
    """A single 5 has no variance: 0 if shifted, 5 if only scaled."""
    one, mask = torch.tensor([[5.0, 9.0]]), torch.tensor([[1.0, 0]])
    assert whiten(one, mask).tolist() == [[0, 0]]
    assert whiten(one, mask, shift_mean=False).tolist() == [[5, 0]]
    assert whiten(one, mask, unbiased=False).tolist() == [[0, 0]]


@pytest.mark.pitfall(20)
def test_the_kl_controller_counts_nats_per_response():
    """Target 6 per response, horizon 1000, 50 responses, so ±0.2 moves β by ±1 %.

    KL 12: error 1, clipped to 0.2: 0.1 → 0.101. KL 5.4: error -0.1: 0.1 · (1 - 0.005) = 0.0995. KL 6: no change.
    """
    for kl, expected in ((12.0, 0.101), (5.4, 0.0995), (6.0, 0.1), (-3.0, 0.099)):
        assert adapted_kl_coef(0.1, kl, 6.0, 1000, 50) == pytest.approx(expected)
        state = PPO(kl_target=6.0, kl_horizon=1000).next_state({"kl_coef": 0.1}, {"kl": kl}, 50)
        assert state == pytest.approx({"kl_coef": expected})
    assert PPO(kl_coef=0.1).next_state({"kl_coef": 0.1}, {"kl": 99.0}, 50) == {"kl_coef": 0.1}  # fixed


@pytest.mark.pitfall(20)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_target": 0.0}, "kl_target is 0.0; it must be above 0"),
        ({"kl_target": 6.0, "kl_horizon": 0}, "kl_horizon is 0; it must be at least 1"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1; it must be at least 0"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target has no effect while kl_coef is 0"),
    ],
)
def test_the_kl_controller_validates_its_inputs(settings, message):
    with pytest.raises(ValueError, match=message):
        PPO(**settings)


@pytest.mark.pitfall(20)
def test_a_horizon_shorter_than_a_rollout_raises():
    """Horizon 10 and 100 responses would give β · (1 - 0.2 · 10) = -β."""
    with pytest.raises(UserError, match="kl_horizon is 10, less than the 100 responses"):
        adapted_kl_coef(0.1, 0.0, 6.0, 10, 100)


@pytest.mark.pitfall(21)
def test_the_critic_starts_from_the_reward_model(tmp_path, tokenizer):
    """Offset 0.5 and scale 2: on the last token, a critic loaded from the reward model's folder gives its score.

    Rows get one more token, so the critic's last value is read at the position of the score.
    """
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    reward = new_scalar_model(tmp_path / "policy")
    raw = scores(reward, collate(tiny.examples(), PAD))
    reward.set_normalisation(0.5, 2.0)
    save_scalar_model(reward, tokenizer, tmp_path / "reward")
    critic = load_scalar_model(tmp_path / "reward")
    assert (critic.offset, critic.scale) == (0.5, 2.0)
    longer = collate([Example(row.prompt_ids, [*row.response_ids, END]) for row in tiny.examples()], PAD)
    last = longer.lengths.long()[:, None] - 1
    found = values(critic, longer).gather(-1, last)[:, 0]
    torch.testing.assert_close(found, (raw - 0.5) / 2, atol=1e-5, rtol=0)


@pytest.mark.pitfall(21)
def test_adam_eps_is_1e_5_for_ppo():
    assert load_params(ROOT / "params.yaml").policy.section("ppo").adam_eps == 1e-5


@pytest.mark.pitfall(22)
@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("loss", [bradley_terry, lambda chosen, rejected: dpo(chosen, rejected, 1.0)])
def test_pairwise_losses_are_finite_at_any_gap(gap, loss):
    """-log σ(±10⁴) is 0 or 10⁴, and its derivative is 0 or -1."""
    chosen = torch.tensor([gap], requires_grad=True)
    value = loss(chosen, torch.zeros(1))
    value.backward()
    assert value.item() == max(0.0, -gap)
    assert chosen.grad.item() == (0.0 if gap > 0 else -1.0)
