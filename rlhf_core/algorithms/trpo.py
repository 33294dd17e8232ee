"""TRPO: Trust Region Policy Optimization. Schulman et al. 2015, arXiv:1502.05477, eq. 14 and sec. 6.

Maximise E[ρ Â] subject to mean KL(π_old‖π_θ) <= δ. `rlhf_core.loops.trust_region` takes one natural-gradient step per
rollout and accepts it only if the surrogate rises and the KL is within δ; otherwise the weights do not change and the
failure is counted. AdamW trains only the critic. `warmup_steps` counts the critic's optimiser steps, and δ is scaled by
the schedule's factor at the first step on each rollout. The KL to the reference is part of the token reward, as in PPO.
"""

from dataclasses import dataclass, replace
from typing import Any

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State, Work
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import token_rewards, with_gae
from rlhf_core.maths.kl import kl_k1
from rlhf_core.maths.losses import surrogate, value_loss
from rlhf_core.maths.reductions import token_mean


@dataclass(frozen=True, kw_only=True)
class TRPO(OnPolicyAlgorithm):
    """The surrogate for the policy's step and the squared error for the critic's steps."""

    name = "trpo"
    title = "TRPO"
    notes = {"learning_rate": "peak learning rate of the critic; max_kl sets the policy's step"}

    group_size: int = setting(1, "responses sampled per prompt", ge=1)
    kl_coef: float = setting(0.02, "β, weight of the KL to the reference in the token reward", title="KL weight", ge=0)
    max_kl: float = setting(
        0.01,
        "δ, largest KL of a policy step, nats per token (table 2); scaled by warm-up and schedule",
        title="Largest KL of a step",
        gt=0,
    )
    cg_iterations: int = setting(10, "iterations of conjugate gradient (appendix C)", ge=1)
    cg_damping: float = setting(0.1, "added to the diagonal of the Fisher matrix", ge=0)
    fisher_fraction: float = setting(
        0.1, "fraction of the rollout's responses used for Fisher-vector products (appendix C)", gt=0, le=1
    )
    line_search_steps: int = setting(10, "step lengths to try, each half the previous one", ge=1)
    gamma: float = setting(1.0, "discount; 1 in RLHF", gt=0, le=1)
    lam: float = setting(0.95, "λ of GAE", ge=0, le=1)
    whiten_advantages: bool = setting(True, "scale advantages to mean 0 and variance 1 over the rollout")

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def needs(self) -> Needs:
        """A critic, and a natural-gradient step for the policy."""
        return Needs(critic=True, reference=self.kl_coef > 0, trust_region=True)

    def work(self, config: Any, prompts: int, feedback: int) -> Work:
        """Gradient steps train only the critic. A Fisher-vector product costs the policy two of them."""
        products = 2 * self.cg_iterations * self.fisher_fraction
        trained = config.steps * config.rollout_size * (config.epochs + products)
        return replace(super().work(config, prompts, feedback), trained=trained)

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """r̃_t, the advantages (GAE), and the critic's targets, as in PPO."""
        kl = kl_k1(rollout.old_logprobs, rollout.ref_logprobs)
        rewards = token_rewards(rollout.scores, kl, self.kl_coef, rollout.response_mask)
        return with_gae(rollout, rewards, self.gamma, self.lam, whitened=self.whiten_advantages)

    def surrogate_losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """-ρ Â, (B, R). Eq. 14."""
        return surrogate(outputs.logprobs, batch.old_logprobs, batch.advantages)

    def surrogate_weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every response token, in both surrogate and KL, (B, R)."""
        return token_mean(batch.response_mask, batch.row_weights)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """The critic's squared error (V - G)², (B, R)."""
        return value_loss(outputs.values, batch.old_values, batch.returns, None)

    def weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every response token, (B, R)."""
        return token_mean(batch.response_mask, batch.row_weights)
