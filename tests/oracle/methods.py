"""The cases of the suite: each method with its settings, its target and its bound."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oracle.exact import make_training
from oracle.formulas import each_state, reversed_kl, standardised, tilted, whole_responses
from oracle.problem import PROBLEM, Problem, all_pairs, drawn_pairs, kl
from oracle.tabular import Table, capped_update, cdpo_pair, grpo_update, kto_loss, pair_loss
from rlhf_core.algorithms.cdpo import CDPO
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ipo import IPO
from rlhf_core.algorithms.kto import KTO
from rlhf_core.algorithms.online_dpo import OnlineDPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.ppo_penalty import PPOPenalty
from rlhf_core.algorithms.reinforce import Reinforce
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.device import make_accelerator
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run
from rlhf_core.loops.offline import OfflineConfig, train_offline, with_ref_logprobs
from rlhf_core.models.forward import policy_outputs

B = PROBLEM.beta
ROWS = 256  # responses of a sampled rollout; pairs of a DPO step
FAST = {"learning_rate": 3e-3, "schedule": "cosine", "adam_eps": 1e-10, "max_grad_norm": 100.0}


@dataclass(frozen=True)
class Result:
    """The result of a training: log π(y|x) and the metrics of its rollouts."""

    logprobs: Tensor
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Case:
    """One method with its settings; it must end within `bound` nats per response of `target`."""

    name: str
    algorithm: Any
    steps: int = 500
    bound: float = 1e-6
    target: Callable[[Problem], Tensor] = field(default=Problem.optimum)
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Result:
        """Train on all responses, weighted with their probabilities."""
        if not hasattr(self.algorithm, "targets"):
            units = unpaired(PROBLEM) if self.algorithm.data == "unpaired" else all_pairs(PROBLEM, torch.sigmoid)
            return train_on_units(self.algorithm, units, len(units), self.steps, FAST)
        training = make_training(PROBLEM, self.algorithm, sampled=False, steps=self.steps, **FAST | self.settings)
        history = training.train()
        return Result(PROBLEM.logprobs(training.policy), history)

    def sample(self, seed: int) -> Result:
        """Train on responses from the real sampler; an offline method, on one pass over pairs with sampled labels."""
        if not hasattr(self.algorithm, "targets"):
            units = drawn_pairs(PROBLEM, torch.sigmoid, self.steps * ROWS, seed)
            return train_on_units(self.algorithm, units, ROWS, 1, self.settings)
        settings = {"rollout_size": ROWS, "minibatch_size": ROWS, "micro_batch_size": ROWS, "schedule": "linear"}
        settings |= {"learning_rate": 3e-3, "max_grad_norm": 100.0} | self.settings
        training = make_training(PROBLEM, self.algorithm, sampled=True, seed=seed, steps=self.steps, **settings)
        history = training.train()
        return Result(PROBLEM.logprobs(training.policy), history)


def train_on_units(algorithm: Any, units: list[Unit], size: int, epochs: int, settings: dict[str, Any]) -> Result:
    """Train with the loop for fixed data, `size` units per step."""
    accelerator = make_accelerator("cpu", "fp32", 1)
    config = OfflineConfig(
        epochs=epochs, batch_size=size, micro_batch_size=size, resume_every=10**6, **{"max_grad_norm": 100.0} | settings
    )
    policy = PROBLEM.reference()
    units = with_ref_logprobs(accelerator, PROBLEM.reference(), units, config, 0)
    run = Run(seed=0, name="oracle", resume=ResumeStore(Path("nowhere")))
    history = train_offline(accelerator, policy, policy_outputs, algorithm, units, [], config, run, 0)
    return Result(PROBLEM.logprobs(policy), history)


def good(problem: Problem) -> Tensor:
    """KTO's labels: 1 if the reward is above 0, else 0, (prompts, responses)."""
    return (problem.rewards() > 0).double()


def unpaired(problem: Problem) -> list[Unit]:
    """Each response once with its label, paired with the same response to the other prompt."""
    return [
        (Example([number], response, desirable=desirable), Example([1 - number], response))
        for number, row in enumerate(good(problem).tolist())
        for response, desirable in zip(problem.responses(), row, strict=True)
    ]


def ipo_formula(problem: Problem) -> Tensor:
    """π_ref exp(E_{y'~μ} p(y ≻ y')/τ), μ uniform. Azar et al. 2023, eq. 7 and 10."""
    rewards = problem.rewards()
    wins = (rewards[:, :, None] - rewards[:, None, :]).sigmoid().mean(-1)
    return (problem.logprobs(problem.reference()) + wins / problem.beta).log_softmax(-1)


def bigger_beta(problem: Problem) -> Tensor:
    """π_ref exp(r (1 − 1/G)/β) with G = 2: the group mean includes the response, which shrinks its advantage."""
    return (problem.logprobs(problem.reference()) + problem.rewards() / (2 * problem.beta)).log_softmax(-1)


def grpo_fixed_point(**changes: Any) -> Callable[[Problem], Tensor]:
    """The fixed point of GRPO's expected update, computed for a table of logits."""
    options = {"eps": 1e-4, "k3_per_token": True, "per_length": True, "divide": True} | changes
    return lambda problem: Table(problem).minimise(grpo_update(Table(problem), 2, **options))


def minimiser(make: Callable[[Table], Any]) -> Callable[[Problem], Tensor]:
    """The minimiser of the expected loss, computed for a table of logits."""
    return lambda problem: Table(problem).minimise(make(Table(problem)))


IN_LOSS = {"kl_coef": B, "kl_in": "loss", "whiten_advantages": False}
G2 = {"group_size": 2, "kl_coef": B}
FIXED = {"averaging": "fixed_length", "length": 1}
DECAYING = {"epochs": 2}
GENTLE = {"learning_rate": 2e-3}
IN_REWARD = {"kl_in": "reward", "kl_estimator": "k1", "std": "none"}
WIDE = {"clip_high": 0.28, "dual_clip": 3.0}
GSPO = {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4}  # Zheng et al. 2025, arXiv:2507.18071, sec. 5.1
FLATTER = {"sampler_temperature": 1.5}
SLOW = {"learning_rate": 6e-4}  # with two responses the std makes every advantage ±1, even near the optimum

EXACT = [
    Case("REINFORCE, Ψ = R(τ)", Reinforce(weight="return", baseline="none", kl_coef=B, length=1)),
    Case("REINFORCE, Ψ = G_t", Reinforce(weight="reward_to_go", baseline="none", kl_coef=B, length=1)),
    Case("REINFORCE, G_t − batch mean", Reinforce(baseline="batch_mean", kl_coef=B, length=1)),
    Case("REINFORCE, G_t − running mean", Reinforce(baseline="running_mean", kl_coef=B, length=1)),
    Case("REINFORCE, G_t − critic", Reinforce(baseline="critic", kl_coef=B, length=1)),
    Case("REINFORCE, G_t − leave-one-out", Reinforce(baseline="leave_one_out", **G2, length=1), 450),
    Case("REINFORCE, Ψ = Q", Reinforce(weight="q", baseline="critic", kl_coef=B, length=1)),
    Case("REINFORCE, Ψ = Â, λ = 0.95", Reinforce(weight="advantage", baseline="critic", kl_coef=B, length=1)),
    Case("REINFORCE, Ψ = δ_t", Reinforce(weight="td_residual", baseline="critic", kl_coef=B, length=1)),
    Case("RLOO", RLOO(**G2), 450),
    Case("GRPO, no std, KL in the reward", GRPO(**G2, kl_in="reward", kl_estimator="k1", std="none", **FIXED), 450),
    Case("GRPO, no std, KL in the reward, 1/|y|", GRPO(**G2, kl_in="reward", kl_estimator="k1", std="none"), 600),
    Case("DPO, all pairs, exact labels", DPO(beta=B), 300),
    Case("online DPO, soft labels", OnlineDPO(beta=B), 600),
    Case(
        "GRPO, std, KL in the reward", GRPO(**G2, kl_in="reward", kl_estimator="k1", **FIXED), 800, 1e-3, settings=SLOW
    ),
    Case("PPO-clip, whitened, 2 epochs", PPO(kl_coef=B), 450, 1e-3, settings=DECAYING),
    Case("PPO-clip, upper and dual clip, 2 epochs", PPO(kl_coef=B, **WIDE), 450, 1e-3, settings=DECAYING),
    Case("PPO, CISPO, 2 epochs", PPO(kl_coef=B, surrogate="cispo"), 450, 1e-3, settings=DECAYING),
    Case("RLOO, upper and dual clip, 2 epochs", RLOO(**G2, **WIDE), 350, 1e-3, settings=DECAYING),
    Case("RLOO, CISPO, 2 epochs", RLOO(**G2, surrogate="cispo"), 450, 1e-3, settings=DECAYING),
    Case(
        "GRPO, no std, KL in the reward, GSPO, 2 epochs",
        GRPO(**G2, **IN_REWARD, **FIXED, **GSPO),
        450,
        1e-3,
        settings=DECAYING,
    ),
    Case("PPO-penalty, whitened, 2 epochs", PPOPenalty(kl_coef=B), 450, 1e-3, settings=DECAYING),
    Case("TRPO, whitened, δ → 0", TRPO(kl_coef=B, fisher_fraction=1.0), 200, 1e-3),
]

PLACES = [
    Case("k2, whole response", PPO(**IN_LOSS, kl_estimator="k2", kl_per="response"), bound=1e-5),
    Case(
        "k1, whole response, weighted",
        PPO(**IN_LOSS, kl_estimator="k1", kl_per="response", kl_weighted=True),
        bound=1e-5,
    ),
    *(
        Case(name, PPO(**IN_LOSS, **options), bound=1e-5, target=lambda problem: each_state(problem, tilted))
        for name, options in (
            ("k2, per token", {"kl_estimator": "k2"}),
            ("exact, per token", {"kl_estimator": "exact"}),
            ("k1, per token, weighted", {"kl_estimator": "k1", "kl_weighted": True}),
            ("k3, per token, weighted", {"kl_estimator": "k3", "kl_weighted": True}),
        )
    ),
    Case(
        "k3, per token",
        PPO(**IN_LOSS, kl_estimator="k3"),
        bound=1e-5,
        target=lambda problem: each_state(problem, reversed_kl),
    ),
    Case(
        "k3, whole response",
        PPO(**IN_LOSS, kl_estimator="k3", kl_per="response"),
        bound=1e-5,
        target=lambda problem: whole_responses(problem, reversed_kl),
    ),
]

K2_WHOLE = {"kl_estimator": "k2", "kl_per": "response"}
SWITCHES = [
    Case("no std, k2 whole, fixed length", GRPO(**G2, std="none", **K2_WHOLE, **FIXED), 500, 1e-5, bigger_beta),
    Case(
        "std, k2 whole, fixed length",
        GRPO(**G2, **K2_WHOLE, **FIXED),
        700,
        1e-5,
        lambda problem: standardised(problem, 2, 1e-4),
    ),
    Case(
        "std, k2 whole, 1/|y|",
        GRPO(**G2, **K2_WHOLE),
        700,
        1e-4,
        grpo_fixed_point(k3_per_token=False),
    ),
    Case("std, k3 per token, 1/|y| (the paper's)", GRPO(**G2), 500, 1e-4, grpo_fixed_point()),
    Case(
        "std, k3 per token, token mean",
        GRPO(**G2, averaging="token"),
        500,
        1e-4,
        grpo_fixed_point(per_length=False),
    ),
    Case(
        "no std, k3 per token, fixed length (Dr. GRPO)",
        GRPO(**G2, std="none", **FIXED),
        500,
        1e-4,
        grpo_fixed_point(per_length=False, divide=False),
    ),
    Case(
        "std, k3 per token, 1/|y|, ratio of whole responses, 2 epochs",
        GRPO(**G2, ratio="response"),
        500,
        1e-3,
        grpo_fixed_point(),
        DECAYING,
    ),
    Case(
        "std, k3 per token, token mean, upper clip (DAPO's), 2 epochs",
        GRPO(**G2, averaging="token", clip_high=0.28),
        500,
        1e-3,
        grpo_fixed_point(per_length=False),
        DECAYING,
    ),
    Case(
        "std, k3 per token, 1/|y|, ratio of the sequence (GSPO's), clip 0.03, 2 epochs",
        GRPO(**G2, ratio="sequence", clip=0.03, clip_high=0.04),
        500,
        1e-3,
        grpo_fixed_point(),
        DECAYING,
    ),
    *(
        Case(
            f"no std, k2 whole, fixed length, another sampler, importance_cap {cap:g}",
            GRPO(**G2, std="none", **K2_WHOLE, **FIXED, importance_cap=cap),
            500,
            1e-5,
            minimiser(lambda table, cap=cap: capped_update(table, 1.5, cap)),
            FLATTER,
        )
        for cap in (1.0, 10.0)
    ),
]

OFFLINE = [
    Case("IPO", IPO(beta=B), 500, 1e-5, ipo_formula),
    Case(
        "cDPO, ε = 0.1",
        CDPO(beta=B),
        300,
        1e-5,
        target=minimiser(lambda table: pair_loss(table, cdpo_pair(B, 0.1))),
    ),
    Case(
        "KTO",
        KTO(beta=B),
        bound=1e-2,
        target=minimiser(lambda table: kto_loss(table, good(table.problem), B)),
    ),
]

SAMPLED = [
    Case("REINFORCE, Ψ = R(τ)", Reinforce(weight="return", baseline="none", kl_coef=B, length=1), 400, 0.01),
    Case("REINFORCE, Ψ = G_t", Reinforce(weight="reward_to_go", baseline="none", kl_coef=B, length=1), 400, 0.01),
    Case("REINFORCE, G_t − batch mean", Reinforce(baseline="batch_mean", kl_coef=B, length=1), 300, 0.01),
    Case("REINFORCE, Ψ = Q", Reinforce(weight="q", baseline="critic", kl_coef=B, length=1), 400, 0.01),
    Case(
        "REINFORCE, Ψ = Â, λ = 0.95",
        Reinforce(weight="advantage", baseline="critic", kl_coef=B, length=1),
        250,
        0.01,
    ),
    Case("REINFORCE, Ψ = δ_t", Reinforce(weight="td_residual", baseline="critic", kl_coef=B, length=1), 250, 0.01),
    Case("RLOO, G = 4", RLOO(group_size=4, kl_coef=B), 350, 0.01, settings=GENTLE),
    Case(
        "RLOO, G = 2, dynamic sampling", RLOO(group_size=2, kl_coef=B, dynamic_sampling=3), 350, 0.01, settings=GENTLE
    ),
    Case(
        "GRPO, no std, KL in the reward, G = 4",
        GRPO(group_size=4, kl_coef=B, kl_in="reward", kl_estimator="k1", std="none", **FIXED),
        350,
        0.01,
        settings=GENTLE,
    ),
    Case(
        "GRPO, std, KL in the reward, G = 16",
        GRPO(group_size=16, kl_coef=B, kl_in="reward", kl_estimator="k1", **FIXED),
        300,
        0.01,
        settings={"learning_rate": 1e-3, "schedule": "cosine"},
    ),
    Case("PPO-clip, 2 epochs", PPO(kl_coef=B), 200, 0.01, settings=DECAYING),
    Case("PPO-penalty, 2 epochs", PPOPenalty(kl_coef=B), 200, 0.01, settings=DECAYING),
    Case("TRPO", TRPO(kl_coef=B), 80, 0.01),
    Case("DPO, sampled labels", DPO(beta=B), 800, 0.01, settings={"learning_rate": 1e-3, "schedule": "linear"}),
    Case("online DPO, soft labels", OnlineDPO(beta=B), 250, 0.01),
    # A sampled label carries one bit, so noise remains after so few pairs; section 4 of the page checks the gradient.
    Case("online DPO, sampled labels", OnlineDPO(beta=B, labels="sampled"), 400, 0.1),
]


def distance(case: Case, result: Result) -> tuple[float, float]:
    """KL(π_θ ‖ target) and KL(π_θ ‖ π*), nats per response."""
    return kl(result.logprobs, case.target(PROBLEM)), kl(result.logprobs, PROBLEM.optimum())
