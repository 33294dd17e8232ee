"""PPO: Proximal Policy Optimization for RLHF. Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9;
Ziegler et al. 2019, arXiv:1909.08593; InstructGPT, arXiv:2203.02155.

The KL to the reference is part of the token reward, r̃_t = -β (log π_old - log π_ref) + 1[t=T] r(x, y), or a term of
the loss. In the reward, the optimum is π* ∝ π_ref exp(r/β). The values of a critic give the advantages (GAE). Policy
and critic are trained on each rollout with clipped minibatch steps over one or more epochs.
"""

from dataclasses import dataclass, replace
from typing import Self

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.algorithms.base.kl_penalty import KLPenalty
from rlhf_core.algorithms.base.ratio import RATIO_OPTIONS, ClippedRatio
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import with_gae
from rlhf_core.maths.kl import adapted_kl_coef, k3
from rlhf_core.maths.losses import value_loss
from rlhf_core.maths.reductions import token_mean


@dataclass(frozen=True, kw_only=True)
class PPO(KLPenalty, ClippedRatio, OnPolicyAlgorithm):
    """PPO-clip with a critic and a fixed or adaptive KL coefficient."""

    name = "ppo"
    title = "PPO"
    reuse_options = (*RATIO_OPTIONS, "value_clip")
    ratio = "token"

    group_size: int = setting(1, "responses sampled per prompt", ge=1)
    kl_coef: float = setting(
        0.02, "β, weight of the KL to the reference (InstructGPT, sec. C.4)", title="KL weight", ge=0
    )
    kl_target: float | None = setting(
        None, "target KL in nats per response; if set, kl_coef adapts to it (Ziegler et al. sec. 2.2)", gt=0
    )
    kl_horizon: int = setting(10_000, "time constant of an adaptive kl_coef, in responses (Ziegler et al.)", ge=1)
    clip: float = setting(
        0.2, "ε of the clipped ratio (Schulman et al. 2017, table 3); 1 for no lower bound", gt=0, le=1
    )
    value_clip: float | None = setting(0.2, "ε of the clipped value loss; null for no clipping", gt=0)
    critic_learning_rate: float = setting(1e-5, "peak learning rate of the critic", gt=0)
    entropy_coef: float = setting(0.0, "c_e, weight of the entropy bonus", ge=0)
    gamma: float = setting(1.0, "discount; 1 in RLHF", gt=0, le=1)
    lam: float = setting(0.95, "λ of GAE (Schulman et al. 2017, table 3)", ge=0, le=1)
    whiten_advantages: bool = setting(True, "scale advantages to mean 0 and variance 1 over the rollout")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_kl()
        self.check_ratio()
        if self.kl_target is None and self.kl_horizon != type(self).kl_horizon:
            raise ValueError("kl_horizon has no effect while kl_target is null; set kl_target or leave kl_horizon out")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target has no effect while kl_coef is 0, because 0 never adapts; raise kl_coef")

    @property
    def needs(self) -> Needs:
        """A critic, entropies (for the log, if not for the loss), and what the KL penalty and `importance_cap` need."""
        return Needs(
            critic=True,
            entropies="gradient" if self.entropy_coef > 0 else "value",
            reference=self.kl_coef > 0,
            exact_kl=self.uses_exact_kl,
            sampler_logprobs=self.importance_cap is not None,
        )

    def critic_rate(self, config: OnlineConfig) -> float:
        """The critic has its own learning rate."""
        return self.critic_learning_rate

    def check_rollouts(self, config: OnlineConfig) -> None:
        """Raise ValueError if kl_horizon is shorter than a rollout, which could make an adaptive kl_coef negative."""
        if self.kl_target is not None and self.kl_horizon < config.rollout_size:
            raise ValueError(
                f"kl_horizon {self.kl_horizon} is less than rollout_size {config.rollout_size}, so kl_coef could "
                f"overshoot; set kl_horizon to {config.rollout_size} or more"
            )

    def initial_state(self) -> State:
        """The KL coefficient, which the adaptive controller changes."""
        return {"kl_coef": self.kl_coef}

    def at(self, state: State) -> Self:
        """This method with the current KL coefficient of the controller."""
        return replace(self, kl_coef=state["kl_coef"])

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """r̃_t, the advantages (GAE), and the critic's targets G_t = Â_t + V_t."""
        rewards = self.token_rewards(rollout)
        return with_gae(rollout, rewards, self.gamma, self.lam, whitened=self.whiten_advantages)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """Clipped surrogate + KL term of the loss + value loss - c_e entropy, (B, R). Schulman et al. eq. 9.

        The coefficient c_1 of eq. 9 is omitted, because policy and critic share no weights (see `GradientStep`).
        """
        surrogate = self.surrogate_losses(outputs, batch)
        critic = value_loss(outputs.values, batch.old_values, batch.returns, self.value_clip)
        bonus = self.entropy_coef * outputs.entropies
        return surrogate + self.kl_losses(outputs, batch) + critic - bonus

    def weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every response token, (B, R)."""
        return token_mean(batch.response_mask, batch.row_weights)

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Size of the update, fraction of clipped tokens, value error, and entropy, (B, R)."""
        logratio = (outputs.logprobs - batch.old_logprobs).detach()
        return {
            **self.clip_statistics(outputs, batch),
            "update_kl": k3(logratio),
            "value_loss": (outputs.values - batch.returns).detach().square(),
            "entropy": outputs.entropies.detach(),
        }

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """The KL coefficient β for the next rollout."""
        if self.kl_target is None:
            return state
        return {"kl_coef": adapted_kl_coef(state["kl_coef"], metrics["kl"], self.kl_target, self.kl_horizon, responses)}
