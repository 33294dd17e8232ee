"""Methods on sampled data: targets, losses, weights and states, worked by hand; options without effect raise."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.algorithm import Needs
from rlhf_core.algorithms.base.check import check_loop
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.online_dpo import OnlineDPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.ppo_penalty import PPOPenalty
from rlhf_core.algorithms.reinforce import Reinforce
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.common.batch import Outputs
from rlhf_core.common.errors import UserError
from rlhf_core.maths.advantages import leave_one_out, returns_to_go
from rlhf_core.maths.losses import dpo
from tasks.params.load import ROOT, read_yaml, validate, with_values

# Two responses, of three tokens and of one.
MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
OLD = torch.tensor([[-1.0, -2.0, -1.0], [-0.5, 0.0, 0.0]])
REF = torch.tensor([[-1.2, -1.8, -1.4], [-0.3, 0.0, 0.0]])  # d = 0.2, -0.2, 0.4 and -0.2
VALUES = torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 0.0]])
SCORES = torch.tensor([2.0, -1.0])
# With β = ½ the token rewards are -0.1, 0.1, 2 - 0.2 and -1 + 0.1.
REWARDS = [[-0.1, 0.1, 1.8], [-0.9, 0, 0]]


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.tensor(expected).double(), atol=tolerance, rtol=0)


def rollout(**changes):
    batch = tiny.mask_batch(MASK)
    return tiny.rollout_of(
        batch, **{"old_logprobs": OLD, "ref_logprobs": REF, "old_values": VALUES, "scores": SCORES} | changes
    )


def targets(algorithm, **changes):
    state = algorithm.initial_state()
    return algorithm.at(state).targets(rollout(**changes), state)


def test_returns_to_go():
    """γ = ½: 1 + ½ (2 + ½ 4) = 3, 2 + 2 = 4, 4. Padding is ignored."""
    found = returns_to_go(torch.tensor([[1.0, 2.0, 4.0], [1.0, 9.0, 9.0]]), MASK, 0.5)
    close(found, [[3, 4, 4], [1, 0, 0]])


def test_leave_one_out():
    """For 1, 2, 6: (2 + 6)/2, (1 + 6)/2, (1 + 2)/2. For three equal values exactly the same values."""
    close(leave_one_out(torch.tensor([1.0, 2.0, 6.0, 0.7, 0.7, 0.7]), 3), [4, 3.5, 1.5, 0.7, 0.7, 0.7])
    equal = torch.full((3,), 0.7)  # (sum - one value) / 2 is 0.69999993 in float32
    assert leave_one_out(equal, 3).tolist() == equal.tolist()
    with pytest.raises(ValueError, match="3 rows are not groups of 2"):
        leave_one_out(torch.ones(3), 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # R(τ) = -0.1 + 0.1 + 1.8 = 1.8 at every token; -0.9.
        ({"weight": "return", "baseline": "none"}, [[1.8, 1.8, 1.8], [-0.9, 0, 0]]),
        ({"weight": "reward_to_go", "baseline": "none"}, [[1.8, 1.9, 1.8], [-0.9, 0, 0]]),
        # The mean of 1.8 and -0.9 is 0.45.
        ({"weight": "reward_to_go", "baseline": "batch_mean"}, [[1.35, 1.45, 1.35], [-1.35, 0, 0]]),
        ({"weight": "return", "baseline": "running_mean"}, [[1.8, 1.8, 1.8], [-0.9, 0, 0]]),
        # The other response's return.
        ({"weight": "return", "baseline": "leave_one_out", "group_size": 2}, [[2.7, 2.7, 2.7], [-2.7, 0, 0]]),
        # G_t - V_t.
        ({"weight": "reward_to_go", "baseline": "critic"}, [[1.3, 0.9, 0.3], [-2.9, 0, 0]]),
        # r̃_t + V_{t+1}.
        ({"weight": "q", "baseline": "critic"}, [[0.9, 1.6, 1.8], [-0.9, 0, 0]]),
        # r̃_t + V_{t+1} - V_t.
        ({"weight": "td_residual", "baseline": "critic"}, [[0.4, 0.6, 0.3], [-2.9, 0, 0]]),
        # δ + ½ Â_{t+1}: 0.3, 0.6 + 0.15, 0.4 + 0.375.
        ({"weight": "advantage", "baseline": "critic", "lam": 0.5}, [[0.775, 0.75, 0.3], [-2.9, 0, 0]]),
    ],
)
def test_reinforce_weights_and_baselines(settings, expected):
    found = targets(Reinforce(kl_coef=0.5, **settings))
    close(found.advantages, expected)
    close(found.rewards, REWARDS)


def test_reinforce_loss_and_averaging():
    """-Ψ log π with Ψ = R: 1.8 · (1 + 2 + 1) and -0.9 · ½, divided by length 2 and two responses."""
    algorithm = Reinforce(weight="return", baseline="none", kl_coef=0.5, length=2)
    batch = targets(algorithm)
    losses = algorithm.losses(Outputs.of(batch, logprobs=OLD), batch)
    close(losses, [[1.8, 3.6, 1.8], [-0.45, 0, 0]])
    close((losses * algorithm.weights(batch)).sum(), (7.2 - 0.45) / 4)


def test_reinforce_critic_is_fitted_to_the_returns():
    """V = 0: the loss is G² - Ψ log π."""
    algorithm = Reinforce(weight="q", baseline="critic", kl_coef=0.5)
    batch = targets(algorithm)
    outputs = Outputs.of(batch, logprobs=torch.zeros(2, 3), values=torch.zeros(2, 3))
    close(algorithm.losses(outputs, batch), [[0.9**2, 1.6**2, 1.8**2], [0.9**2, 0, 0]])


def test_running_mean_moves_by_the_momentum():
    """Initially 0; 0.9 · 0 + 0.1 · 2 = 0.2; 0.9 · 0.2 + 0.1 · 2 = 0.38. The next rollout subtracts it."""
    algorithm = Reinforce(weight="return", baseline="running_mean", kl_coef=0.5)
    state = algorithm.next_state(algorithm.initial_state(), {"return": 2.0}, 2)
    assert state == pytest.approx({"running_mean": 0.2})
    assert algorithm.next_state(state, {"return": 2.0}, 2) == pytest.approx({"running_mean": 0.38})
    close(algorithm.targets(rollout(), state).advantages, [[1.6, 1.6, 1.6], [-1.1, 0, 0]])


def test_rloo():
    """Returns 1.8 and -0.9: advantages ±2.7, one per response. ρ = e^{0.3} of the first is clipped to 1.2."""
    algorithm = RLOO(group_size=2, kl_coef=0.5)
    batch = targets(algorithm)
    close(batch.advantages, [[2.7, 2.7, 2.7], [-2.7, 0, 0]])
    moved = OLD + torch.tensor([[0.1, 0.1, 0.1], [0.3, 0, 0]])
    losses = algorithm.losses(Outputs.of(batch, logprobs=moved), batch)
    close(losses, [-1.2 * 2.7, math.exp(0.3) * 2.7])
    close(algorithm.weights(batch), [0.5, 0.5])


def moved_outputs(**computed):
    """At each token, the log-ratio is 0.1 to the sampling policy and d + 0.1 to the reference."""
    return Outputs.of(rollout(), logprobs=(OLD + 0.1) * MASK, **computed)


E1 = math.exp(0.1)


class UncheckedPPO(PPO):
    """PPO that accepts every place and estimator of the KL, including those with a wrong optimum."""

    def check_kl(self):
        """Refuse nothing."""


class UncheckedGRPO(GRPO):
    """GRPO that accepts every place and estimator of the KL."""

    def check_kl(self):
        """Refuse nothing."""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # After the update d is 0.3, -0.1, 0.5 and -0.1 per token, and 0.7 and -0.1 per response.
        ({"kl_estimator": "k1"}, [[0.3, -0.1, 0.5], [-0.1, 0, 0]]),
        ({"kl_estimator": "k2"}, [[0.045, 0.005, 0.125], [0.005, 0, 0]]),
        (
            {"kl_estimator": "k3"},
            [[math.exp(-0.3) - 0.7, E1 - 1.1, math.exp(-0.5) - 0.5], [E1 - 1.1, 0, 0]],
        ),
        ({"kl_estimator": "k1", "kl_weighted": True}, [[0.3 * E1, -0.1 * E1, 0.5 * E1], [-0.1 * E1, 0, 0]]),
        ({"kl_estimator": "k1", "kl_per": "response"}, [[0, 0, 0.7], [-0.1, 0, 0]]),
        ({"kl_estimator": "k2", "kl_per": "response"}, [[0, 0, 0.245], [0.005, 0, 0]]),
        (
            {"kl_estimator": "k1", "kl_per": "response", "kl_weighted": True},
            [[0, 0, 0.7 * math.exp(0.3)], [-0.1 * E1, 0, 0]],
        ),
        ({"kl_estimator": "exact"}, [[7.0, 8.0, 9.0], [7.0, 0, 0]]),
    ],
)
def test_kl_in_the_loss(settings, expected):
    """β = 2 times the estimate; the reward is then only the score."""
    exact = torch.tensor([[7.0, 8, 9], [7, 0, 0]])
    for kind in (UncheckedPPO, UncheckedGRPO):
        more = {"group_size": 2} if kind is UncheckedGRPO else {}
        algorithm = kind(kl_coef=2.0, kl_in="loss", **settings, **more)
        close(algorithm.kl_losses(moved_outputs(exact_kl=exact), rollout()), [[2 * x for x in row] for row in expected])
        close(algorithm.token_rewards(rollout()), [[0, 0, 2.0], [-1.0, 0, 0]])
        assert algorithm.needs.exact_kl == (settings["kl_estimator"] == "exact")


def test_kl_in_the_reward_does_not_change_the_loss():
    algorithm = PPO(kl_coef=0.5)
    close(algorithm.kl_losses(moved_outputs(), rollout()), [[0, 0, 0], [0, 0, 0]])
    close(algorithm.token_rewards(rollout()), REWARDS)


@pytest.mark.pitfall(35)
def test_an_adaptive_coefficient_reaches_targets_and_losses():
    """The state changes β = 0.02 to 0.5."""
    algorithm = PPO(kl_target=6.0)
    state = {"kl_coef": 0.5}
    close(algorithm.at(state).targets(rollout(), state).rewards, REWARDS)
    in_loss = PPO(kl_target=6.0, kl_in="loss", kl_estimator="k2").at({"kl_coef": 2.0})
    close(in_loss.kl_losses(moved_outputs(), rollout()), [[0.09, 0.01, 0.25], [0.01, 0, 0]])


def test_an_entropy_bonus_lowers_the_loss():
    """c_e = ½ and entropies 2, 1, 0 and 3: the loss is lower by 1, ½, 0 and 1.5."""
    outputs = moved_outputs(values=VALUES, entropies=torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 0.0]]))
    without, with_bonus = (PPO(entropy_coef=coef).losses(outputs, targets(PPO())) for coef in (0.0, 0.5))
    close(with_bonus - without, [[-1, -0.5, 0], [-1.5, 0, 0]])


@pytest.mark.parametrize("algorithm", [PPO(lam=1.0, kl_coef=0.5, value_clip=None), PPOPenalty(lam=1.0, kl_coef=0.5)])
def test_the_critics_squared_error_counts_once(algorithm):
    """Compared with an exact critic, a critic with V = V_old has errors G - V = 1.3, 0.9, 0.3 and -2.9."""
    batch, none = targets(algorithm), torch.zeros(2, 3)
    right, wrong = (
        algorithm.losses(moved_outputs(values=values, entropies=none), batch) for values in (batch.returns, VALUES)
    )
    close(wrong - right, [[1.69, 0.81, 0.09], [8.41, 0, 0]])


@pytest.mark.parametrize("kind", [PPO, PPOPenalty, TRPO])
def test_whitening_does_not_change_the_returns(kind):
    """λ = 1: G_t = 1.8, 1.9, 1.8 and -0.9, with and without whitening of Â = G - V = 1.3, 0.9, 0.3 and -2.9.

    Â has mean -0.1 and sample variance (1.4² + 1² + 0.4² + 2.8²)/3 = 3.653.
    """
    plain, whitened = (targets(kind(kl_coef=0.5, lam=1.0, whiten_advantages=white)) for white in (False, True))
    close(plain.returns, [[1.8, 1.9, 1.8], [-0.9, 0, 0]])
    close(whitened.returns, [[1.8, 1.9, 1.8], [-0.9, 0, 0]])
    std = math.sqrt((1.4**2 + 1 + 0.4**2 + 2.8**2) / 3)
    close(whitened.advantages, [[1.4 / std, 1 / std, 0.4 / std], [-2.8 / std, 0, 0]])


def test_ppo_penalty_loss():
    """β_old = 3: -ρ Â + 3 (ρ - 1 - log ρ), ρ = e^{0.1}; Â = G - V with λ = 1. The critic's current error is 0.5."""
    algorithm = PPOPenalty(kl_coef=0.5, penalty=3.0, lam=1.0, whiten_advantages=False)
    batch = targets(algorithm)
    close(batch.advantages, [[1.3, 0.9, 0.3], [-2.9, 0, 0]])
    outputs = moved_outputs(values=batch.returns + 0.5)
    penalty = 3 * (E1 - 1 - 0.1) + 0.25
    losses = algorithm.losses(outputs, batch) * MASK
    close(losses, [[penalty - E1 * a for a in (1.3, 0.9, 0.3)], [penalty + E1 * 2.9, 0, 0]])


def test_ppo_penalty_adapts_after_each_rollout():
    """d = 0.01: a KL below 0.00667 halves β_old, above 0.015 doubles it, down to penalty_min; `at` applies it."""
    algorithm = PPOPenalty(penalty=1.0, penalty_min=0.4)
    for kl, expected in ((0.006, 0.5), (0.01, 1.0), (0.014, 1.0), (0.016, 2.0)):
        assert algorithm.next_state({"penalty": 1.0}, {"final_kl_per_token": kl}, 8) == {"penalty": expected}
    assert algorithm.next_state({"penalty": 0.5}, {"final_kl_per_token": 0.0}, 8) == {"penalty": 0.4}
    assert algorithm.at({"penalty": 8.0}).penalty == 8.0
    assert algorithm.needs == Needs(critic=True, final_kl=True)


def test_trpo_losses():
    """The surrogate -ρ Â for the policy's step, (V - G)² for AdamW; both weight tokens equally."""
    algorithm = TRPO(kl_coef=0.5, lam=1.0, whiten_advantages=False)
    batch = targets(algorithm)
    close(
        algorithm.surrogate_losses(moved_outputs(), batch) * MASK,
        [[-E1 * a for a in (1.3, 0.9, 0.3)], [E1 * 2.9, 0, 0]],
    )
    close(algorithm.losses(Outputs.of(batch, values=VALUES), batch), [[1.69, 0.81, 0.09], [8.41, 0, 0]])
    close(algorithm.surrogate_weights(batch), [[0.25, 0.25, 0.25], [0.25, 0, 0]])


def test_grpo_stds():
    """Scores 0, 2 and 0, 6: means 1 and 3, population stds 1 and 3; std of all four √6. ε = 1."""
    scores = torch.tensor([0.0, 2.0, 0.0, 6.0])
    mask = torch.ones(4, 1)
    batch = tiny.rollout_of(tiny.mask_batch(mask), old_logprobs=torch.zeros(4, 1), scores=scores)
    for std, expected in (
        ("none", [-1, 1, -3, 3]),
        ("group", [-1 / 2, 1 / 2, -3 / 4, 3 / 4]),
        ("batch", [sign / (1 + math.sqrt(6)) for sign in (-1, 1, -3, 3)]),
    ):
        more = {} if std == "none" else {"std_eps": 1.0}
        close(GRPO(group_size=2, std=std, **more).targets(batch, {}).advantages[:, 0], expected)
    unbiased = GRPO(group_size=2, std_eps=1.0, unbiased_std=True).targets(batch, {}).advantages[:, 0]
    close(unbiased[:2], [-1 / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2))])


def test_grpo_groups_have_group_size_rows():
    """Scores 1, 2, 6 and 0, 0, 3: means 3 and 1."""
    scores = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    batch = tiny.rollout_of(tiny.mask_batch(torch.ones(6, 1)), old_logprobs=torch.zeros(6, 1), scores=scores)
    close(GRPO(group_size=3, std="none").targets(batch, {}).advantages[:, 0], [-2, -1, 3, -1, -1, 2])


def test_grpo_has_the_kl_in_the_loss():
    """d = log 2: k3 = ½ - 1 + log 2, times β = 2; the surrogate is 0 because the advantage is 0."""
    batch = rollout(ref_logprobs=OLD - math.log(2)).with_targets(advantages=torch.zeros(2, 3))
    losses = GRPO(group_size=2, kl_coef=2.0).losses(Outputs.of(batch, logprobs=OLD), batch)
    close(losses[0], [2 * math.log(2) - 1] * 3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]]),
        ({"averaging": "token"}, [[0.25, 0.25, 0.25], [0.25, 0, 0]]),
        ({"averaging": "fixed_length", "length": 5}, [[0.1, 0.1, 0.1], [0.1, 0, 0]]),
    ],
)
def test_grpo_averagings(settings, expected):
    close(GRPO(group_size=2, **settings).weights(rollout()), expected)


def test_grpo_ratio_of_whole_responses():
    """ρ = e^{0.3} of three tokens is one number on the last token, clipped to 1.2; e^{0.1} per token is not clipped."""
    batch = rollout().with_targets(advantages=torch.tensor([[2.0, 2, 2], [-1, 0, 0]]))
    whole = GRPO(group_size=2, kl_coef=0.0, ratio="response").losses(moved_outputs(), batch)
    close(whole, [[0, 0, -2.4], [E1, 0, 0]])
    tokens = GRPO(group_size=2, kl_coef=0.0).losses(moved_outputs(), batch) * MASK
    close(tokens, [[-2 * E1] * 3, [E1, 0, 0]])


def test_grpo_with_the_kl_in_the_reward_standardises_whole_returns():
    """Returns 1.8 and -0.9, mean 0.45, without std: ±1.35 for every token."""
    algorithm = GRPO(group_size=2, kl_coef=0.5, kl_in="reward", kl_estimator="k1", std="none")
    close(targets(algorithm).advantages, [[1.35, 1.35, 1.35], [-1.35, 0, 0]])


def test_online_dpo_labels():
    """Scores log 3 and 0: σ = ¾. A sampled label is 0 or 1, and the two are complementary; argmax is 1 and warns."""
    scores = torch.tensor([math.log(3), 0.0])
    soft = OnlineDPO().targets(rollout(scores=scores), {})
    close(soft.preferences, [0.75, 0.25])
    four = torch.tensor([math.log(3), 0.0, 0.0, 0.0])  # the second pair has equal scores: ½ each
    batch = tiny.rollout_of(tiny.mask_batch(torch.ones(4, 1)), old_logprobs=torch.zeros(4, 1), scores=four)
    close(OnlineDPO().targets(batch, {}).preferences, [0.75, 0.25, 0.5, 0.5])
    torch.manual_seed(0)
    drawn = torch.stack(
        [OnlineDPO(labels="sampled").targets(rollout(scores=scores), {}).preferences for _ in range(400)]
    )
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.sum(-1) == 1).all()
    assert drawn[:, 0].mean().item() == pytest.approx(0.75, abs=0.07)
    with pytest.warns(UserWarning, match="no finite optimum"):
        argmax = OnlineDPO(labels="argmax")
    close(argmax.targets(rollout(scores=scores), {}).preferences, [1.0, 0.0])


def test_online_dpo_loss_is_dpos_with_the_label():
    """Log-ratios to the reference 0.7 and -0.1 after the update, β = ½, label ¾."""
    algorithm = OnlineDPO(beta=0.5)
    batch = algorithm.targets(rollout(scores=torch.tensor([math.log(3), 0.0])), {})
    losses = algorithm.losses(moved_outputs(), batch)
    close(losses, dpo(torch.tensor([0.7]), torch.tensor([-0.1]), 0.5, 0.75).tolist())
    assert algorithm.weights(batch).tolist() == [1.0]
    assert algorithm.rows_per_unit == algorithm.group_size == 2


def gradients(loss_of):
    """Gradient with respect to each token's log-probability, which is the sampling policy's plus 0.1."""
    logprobs = ((OLD + 0.1) * MASK).requires_grad_()
    loss_of(logprobs).backward()
    return logprobs.grad


def test_grpo_of_two_and_dpo():
    """A common claim: GRPO with G = 2 and binary rewards reduces to DPO. Only the direction agrees, with token sums.

    Scores 1 and 0 without the std: Â = ±½. With token sums, GRPO's gradient at ratio 1 is ¼ (∇log π(y_l) − ∇log π(y_w))
    and DPO's is β σ(−margin) times the same direction: parallel, in the proportion ¼ : β σ(−margin), with σ(0) = ½.
    With 1/|y|, the tokens of y_w have a third of the weight of those of y_l, and the gradients are not parallel.
    """
    batch = rollout(scores=torch.tensor([1.0, 0.0]), old_logprobs=(OLD + 0.1) * MASK)
    direction = torch.tensor([[-1.0, -1, -1], [1, 0, 0]])

    def grpo(**settings):
        algorithm = GRPO(group_size=2, kl_coef=0.0, std="none", **settings)
        prepared = algorithm.targets(batch, {})

        def loss(logprobs):
            losses = algorithm.losses(Outputs.of(prepared, logprobs=logprobs), prepared)
            return (losses * algorithm.weights(prepared)).sum()

        return gradients(loss)

    def dpo_gradient(reference, beta):
        def loss(logprobs):
            logratios = ((logprobs - reference) * MASK).sum(-1)
            return dpo(logratios[:1], logratios[1:], beta).sum()

        return gradients(loss)

    summed = grpo(averaging="fixed_length", length=1)
    close(summed, (direction / 4).tolist())
    beta = 0.5
    margin = beta * (0.7 - -0.1)
    close(dpo_gradient(REF, beta), (beta / (1 + math.exp(margin)) * direction).tolist())
    at_reference = dpo_gradient((OLD + 0.1) * MASK, beta)  # margin 0
    close(at_reference, (beta / 2 * direction).tolist())
    averaged = grpo()
    close(averaged, [[-1 / 12, -1 / 12, -1 / 12], [1 / 4, 0, 0]])
    cosine = torch.nn.functional.cosine_similarity(averaged.flatten(), direction.flatten(), dim=0)
    assert cosine.item() < 0.95


@pytest.mark.pitfall(28)
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Reinforce, {"weight": "q"}, "weight q is computed from the critic's values; set baseline to critic"),
        (Reinforce, {"baseline": "leave_one_out"}, "leave_one_out needs other responses to the prompt"),
        (Reinforce, {"momentum": 0.5}, "momentum has no effect with weight reward_to_go and baseline batch_mean"),
        (Reinforce, {"lam": 0.5}, "lam has no effect"),
        (Reinforce, {"critic_learning_rate": 0.5}, "critic_learning_rate has no effect"),
        (RLOO, {"group_size": 1}, "group_size is 1; it must be at least 2"),
        (RLOO, {"std_eps": 0.5}, "std_eps has no effect while normalize_advantages is false"),
        (GRPO, {"group_size": 1}, "group_size is 1; it must be at least 2"),
        (GRPO, {"averaging": "fixed_length"}, "length is only for averaging fixed_length"),
        (GRPO, {"length": 5}, "length is only for averaging fixed_length"),
        (GRPO, {"std": "none", "std_eps": 0.5}, "std_eps and unbiased_std have no effect while std is none"),
        (GRPO, {"kl_in": "reward"}, "kl_estimator k3 in the reward makes the policy collapse"),
        (PPO, {"kl_estimator": "k2"}, "kl_estimator k2 in the reward makes the policy collapse"),
        (PPO, {"kl_weighted": True}, "kl_per and kl_weighted have no effect while kl_in is reward"),
        (PPO, {"kl_in": "loss"}, "kl_estimator k1 in the loss has no effect"),
        (PPO, {"kl_in": "loss", "kl_per": "response"}, "kl_estimator k1 in the loss has no effect"),
        (GRPO, {"kl_estimator": "k1"}, "set kl_in to reward, kl_weighted to true, or kl_estimator to k2, k3 or exact"),
        (
            PPO,
            {"kl_in": "loss", "kl_estimator": "exact", "kl_per": "response"},
            "no effect while kl_estimator is exact",
        ),
        (PPOPenalty, {"penalty": 1e-3}, "penalty 0.001 is below penalty_min 0.01"),
    ],
)
def test_options_without_effect_or_with_a_wrong_optimum_raise(kind, settings, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        kind(**settings)


@pytest.mark.pitfall(28)
@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (GRPO(group_size=5), {}, "rollout_size 64 is not a multiple of group_size 5; change one"),
        (OnlineDPO(), {"minibatch_size": 7}, "minibatch_size 7 and micro_batch_size 64 must be multiples of 2"),
        (
            GRPO(group_size=6),
            {"rollout_size": 60, "minibatch_size": 24},
            "rollout_size 60 is not a multiple of minibatch_size 24, so the last step on a rollout would see fewer "
            "responses; set rollout_size to 48 or 72, or minibatch_size to 20",
        ),
        (GRPO(group_size=8), {"rollout_size": 32}, "set rollout_size to 64, or minibatch_size to 32"),
        (OnlineDPO(), {"rollout_size": 6, "minibatch_size": 4}, "set rollout_size to 4 or 8, or minibatch_size to 2"),
        (Reinforce(), {"epochs": 2}, "REINFORCE has no ratio .* set epochs to 1 and minibatch_size to 64, or choose"),
        (Reinforce(), {"minibatch_size": 32}, "REINFORCE has no ratio .* set epochs to 1 and minibatch_size to 64"),
        (
            PPO(kl_target=6.0, kl_horizon=63),
            {},
            "kl_horizon 63 is less than rollout_size 64, so kl_coef could overshoot; set kl_horizon to 64 or more",
        ),
        (PPO(clip=0.1), {}, "clip has no effect with one step per rollout; leave it out, or raise epochs"),
        (PPO(value_clip=None), {}, "value_clip has no effect with one step per rollout"),
        (GRPO(ratio="response"), {}, "ratio has no effect with one step per rollout"),
    ],
)
def test_loop_and_method_must_be_compatible(algorithm, settings, message):
    with pytest.raises(ValueError, match=message):
        check_loop(OnlineConfig(**settings), algorithm)
    if "step per rollout" in message:
        check_loop(OnlineConfig(epochs=2), algorithm)
        check_loop(OnlineConfig(minibatch_size=32), algorithm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy.online": ["reinforce"], "policy.reinforce.epochs": 2},
            "in 'policy.reinforce', REINFORCE has no ratio",
        ),
        ({"policy.ppo.kl_in": "loss"}, "in 'policy.ppo', kl_estimator k1 in the loss has no effect"),
        ({"policy.ppo.kl_target": 6.0, "policy.ppo.kl_horizon": 127}, "kl_horizon 127 is less than rollout_size 128"),
        ({"policy.grpo.rollout_size": 96}, "set rollout_size to 64 or 128, or minibatch_size to 48"),
    ],
)
def test_what_a_method_cannot_learn_from_is_refused_with_the_parameters(changes, message):
    raw = read_yaml(ROOT / "params.yaml")
    validate(raw)
    with pytest.raises(UserError) as caught:
        validate(with_values(raw, changes))
    assert message in str(caught.value)


def test_a_horizon_of_one_rollout_and_weighted_k1_are_accepted():
    check_loop(OnlineConfig(), PPO(kl_target=6.0, kl_horizon=64))
    check_loop(OnlineConfig(), PPO(kl_in="loss", kl_weighted=True))
    check_loop(OnlineConfig(rollout_size=128), GRPO())
    check_loop(OnlineConfig(), Reinforce())


def test_row_weights_enter_means_and_averages():
    """Rows with weights 1½ and ½: batch means and averages include the weights."""
    weighted = replace(rollout(), row_weights=torch.tensor([1.5, 0.5]))
    algorithm = Reinforce(weight="return", baseline="batch_mean", kl_coef=0.5, length=1)
    # (1.5 · 1.8 - 0.5 · 0.9)/2 = 1.125.
    close(algorithm.targets(weighted, {}).advantages, [[0.675] * 3, [-2.025, 0, 0]])
    close(algorithm.weights(weighted), [[0.75] * 3, [0.25, 0, 0]])
    close(GRPO(group_size=2, averaging="token").weights(weighted), [[0.3] * 3, [0.1, 0, 0]])
    close(RLOO(group_size=2).weights(weighted), [0.75, 0.25])


def test_the_critics_learning_rate_is_the_methods_own_or_the_loops():
    config = OnlineConfig(learning_rate=0.5)
    own = [PPO(critic_learning_rate=0.25), PPOPenalty(critic_learning_rate=0.25)]
    own.append(Reinforce(baseline="critic", critic_learning_rate=0.25))
    assert [method.critic_rate(config) for method in own] == [0.25] * 3
    assert TRPO().critic_rate(config) == 0.5  # AdamW trains only the critic
