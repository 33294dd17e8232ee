"""REINFORCE with a choice of weight Ψ and baseline. Williams 1992; Schulman et al. 2015, arXiv:1506.02438, eq. 1.

∇J = E Σ_t ∇log π(a_t|s_t) Ψ_t, with the KL to the reference in the token reward r̃_t. Ψ_t is

    return          R(τ) = Σ_t r̃_t
    reward_to_go    G_t = Σ_{i>=t} r̃_i
    q               r̃_t + γ V_{t+1}
    advantage       Â_t of GAE
    td_residual     δ_t = r̃_t + γ V_{t+1} - V_t

The first two weights subtract a baseline: none, the mean of the batch, a running mean over earlier rollouts, the mean
of the other responses in the group (leave-one-out), or the critic's V_t.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import gae, leave_one_out, returns_to_go, token_rewards
from rlhf_core.maths.kl import kl_k1
from rlhf_core.maths.losses import policy_gradient, value_loss
from rlhf_core.maths.reductions import fixed_length, sequence_sum

Weight = Literal["return", "reward_to_go", "q", "advantage", "td_residual"]
Baseline = Literal["none", "batch_mean", "running_mean", "leave_one_out", "critic"]


@dataclass(frozen=True, kw_only=True)
class Reinforce(OnPolicyAlgorithm):
    """-Ψ_t log π(a_t|s_t), summed over tokens and averaged over responses."""

    name = "reinforce"
    title = "REINFORCE"

    weight: Weight = setting("reward_to_go", "Ψ_t: return, reward_to_go, q, advantage or td_residual")
    baseline: Baseline = setting(
        "batch_mean",
        "b of return, reward_to_go: none, batch_mean, running_mean, leave_one_out, critic; other weights need critic",
    )
    group_size: int = setting(1, "responses sampled per prompt", ge=1)
    kl_coef: float = setting(0.02, "β, weight of the KL to the reference in the token reward", title="KL weight", ge=0)
    momentum: float = setting(0.9, "weight of the earlier rollouts in the running mean", ge=0, lt=1)
    gamma: float = setting(1.0, "discount; 1 in RLHF", gt=0, le=1)
    lam: float = setting(0.95, "λ of GAE, for weight advantage", ge=0, le=1)
    critic_learning_rate: float = setting(1e-5, "peak learning rate of the critic", gt=0)
    length: int = setting(64, "divisor of the sum over tokens; it sets the scale of the loss", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.weight in ("q", "advantage", "td_residual") and self.baseline != "critic":
            raise ValueError(f"weight {self.weight} is computed from the critic's values; set baseline to critic")
        if self.baseline == "leave_one_out" and self.group_size < 2:
            raise ValueError("leave_one_out needs other responses to the prompt; set group_size to 2 or more")
        defaults = {
            "momentum": self.baseline == "running_mean",
            "lam": self.weight == "advantage",
            "critic_learning_rate": self.baseline == "critic",
        }
        for name, used in defaults.items():
            if not used and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name} has no effect with weight {self.weight} and baseline {self.baseline}; leave it out"
                )

    @property
    def needs(self) -> Needs:
        """A critic, if the baseline is critic."""
        return Needs(critic=self.baseline == "critic", reference=self.kl_coef > 0)

    def critic_rate(self, config: OnlineConfig) -> float:
        """The critic has its own learning rate."""
        return self.critic_learning_rate

    def check_rollouts(self, config: OnlineConfig) -> None:
        """Raise ValueError unless a rollout makes one step: the gradient is correct only for the current policy."""
        if config.epochs > 1 or config.minibatch_size < config.rollout_size:
            raise ValueError(
                "REINFORCE has no ratio to the policy that sampled, so its samples are stale after one step; "
                f"set epochs to 1 and minibatch_size to {config.rollout_size}, or choose a method with such a ratio"
            )

    def initial_state(self) -> State:
        """The running mean of the return, 0 before the first rollout."""
        return {"running_mean": 0.0} if self.baseline == "running_mean" else {}

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """Ψ_t as the advantage, and the returns as the critic's targets."""
        kl = kl_k1(rollout.old_logprobs, rollout.ref_logprobs)
        rewards = token_rewards(rollout.scores, kl, self.kl_coef, rollout.response_mask)
        weights, returns = self._weights(rollout, rewards, state)
        return rollout.with_targets(advantages=weights * rollout.response_mask, returns=returns, rewards=rewards)

    def _weights(self, rollout: Rollout, rewards: Tensor, state: State) -> tuple[Tensor, Tensor]:
        mask, values = rollout.response_mask, rollout.old_values
        if self.weight in ("q", "advantage", "td_residual"):
            lam = self.lam if self.weight == "advantage" else 0.0
            advantages, returns = gae(rewards, values, mask, self.gamma, lam)
            return (returns if self.weight == "q" else advantages), returns
        to_go = returns_to_go(rewards, mask, self.gamma)
        psi = to_go if self.weight == "reward_to_go" else to_go[:, :1].expand_as(to_go)
        return psi - self._baseline(rollout, rewards, state), to_go

    def _baseline(self, rollout: Rollout, rewards: Tensor, state: State) -> Tensor | float:
        total = sequence_sum(rewards, rollout.response_mask)
        if self.baseline == "critic":
            return rollout.old_values
        if self.baseline == "leave_one_out":
            return leave_one_out(total, self.group_size)[:, None]
        if self.baseline == "batch_mean":
            return rollout.row_mean(total)
        return state["running_mean"] if self.baseline == "running_mean" else 0.0

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """-Ψ_t log π(a_t|s_t), plus the critic's squared error if the baseline is critic, (B, R)."""
        loss = policy_gradient(outputs.logprobs, batch.advantages)
        if self.baseline != "critic":
            return loss
        return loss + value_loss(outputs.values, batch.old_values, batch.returns, None)

    def weights(self, batch: Rollout) -> Tensor:
        """Σ_t / length, then mean over responses, (B, R): the weights do not depend on the length of a response."""
        return fixed_length(batch.response_mask, self.length, batch.row_weights)

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """The running mean, updated with the mean return of this rollout."""
        if self.baseline != "running_mean":
            return state
        return {"running_mean": self.momentum * state["running_mean"] + (1 - self.momentum) * metrics["return"]}
