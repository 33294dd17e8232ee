"""PPO-penalty: an adaptive penalty on the size of the update. Schulman et al. 2017, arXiv:1707.06347, sec. 4, eq. 8.

Departures: the KL is estimated from the sampled tokens with k3, not summed over all actions; β_old has a lower bound,
`penalty_min`.

Maximise ρ Â - β_old KL(π_old‖π_θ). After the updates on a rollout, β_old is halved if that KL is below d/1.5 and
doubled if it is above 1.5 d. The KL to the reference is part of the token reward, as in PPO.
"""

from dataclasses import dataclass, replace
from typing import Self

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import token_rewards, with_gae
from rlhf_core.maths.kl import kl_k1, kl_k3
from rlhf_core.maths.losses import surrogate, value_loss
from rlhf_core.maths.reductions import token_mean


@dataclass(frozen=True, kw_only=True)
class PPOPenalty(OnPolicyAlgorithm):
    """The unclipped surrogate minus β_old times the KL to the policy that sampled."""

    name = "ppo_penalty"
    title = "PPO-penalty"

    group_size: int = setting(1, "responses sampled per prompt", ge=1)
    kl_coef: float = setting(0.02, "β, weight of the KL to the reference in the token reward", title="KL weight", ge=0)
    penalty: float = setting(1.0, "initial β_old, weight of KL(π_old‖π_θ)", gt=0)
    penalty_min: float = setting(1e-2, "lower bound of β_old, so that every step is penalised", gt=0)
    update_target: float = setting(0.01, "d, target KL of the updates on one rollout, nats per token (table 1)", gt=0)
    critic_learning_rate: float = setting(1e-5, "peak learning rate of the critic", gt=0)
    gamma: float = setting(1.0, "discount; 1 in RLHF", gt=0, le=1)
    lam: float = setting(0.95, "λ of GAE (table 3)", ge=0, le=1)
    whiten_advantages: bool = setting(True, "scale advantages to mean 0 and variance 1 over the rollout")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.penalty < self.penalty_min:
            raise ValueError(f"penalty {self.penalty} is below penalty_min {self.penalty_min}; raise penalty")

    @property
    def needs(self) -> Needs:
        """A critic, and after the last update the KL to the policy that sampled."""
        return Needs(critic=True, reference=self.kl_coef > 0, final_kl=True)

    def critic_rate(self, config: OnlineConfig) -> float:
        """The critic has its own learning rate."""
        return self.critic_learning_rate

    def initial_state(self) -> State:
        """The initial β_old."""
        return {"penalty": self.penalty}

    def at(self, state: State) -> Self:
        """This method with the current β_old."""
        return replace(self, penalty=state["penalty"])

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """r̃_t, the advantages (GAE), and the critic's targets, as in PPO."""
        kl = kl_k1(rollout.old_logprobs, rollout.ref_logprobs)
        rewards = token_rewards(rollout.scores, kl, self.kl_coef, rollout.response_mask)
        return with_gae(rollout, rewards, self.gamma, self.lam, whitened=self.whiten_advantages)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """-ρ Â + β_old KL(π_old‖π_θ) + (V - G)², (B, R). Eq. 8; k3 is exact in expectation under π_old."""
        update_kl = kl_k3(batch.old_logprobs, outputs.logprobs)
        critic = value_loss(outputs.values, batch.old_values, batch.returns, None)
        policy = surrogate(outputs.logprobs, batch.old_logprobs, batch.advantages)
        return policy + self.penalty * update_kl + critic

    def weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every response token, (B, R)."""
        return token_mean(batch.response_mask, batch.row_weights)

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """KL of the update and value error, (B, R)."""
        return {
            "update_kl": kl_k3(batch.old_logprobs, outputs.logprobs).detach(),
            "value_loss": (outputs.values - batch.returns).detach().square(),
        }

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """β_old for the next rollout: halved if the KL is below d/1.5, doubled if it is above 1.5 d."""
        penalty, kl = state["penalty"], metrics["final_kl_per_token"]
        if kl < self.update_target / 1.5:
            penalty = max(penalty / 2, self.penalty_min)
        elif kl > self.update_target * 1.5:
            penalty *= 2
        return {"penalty": penalty}
