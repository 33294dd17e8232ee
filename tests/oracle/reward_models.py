"""Checks that reward models fitted to exact probabilities recover r*, up to a constant per prompt."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oracle.methods import FAST, Case
from oracle.problem import PROBLEM, all_pairs, tokenizer
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.reward.best_of_n import BestOfNChoice
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.algorithms.reward.likert import Likert
from rlhf_core.algorithms.reward.plackett_luce import PlackettLuce
from rlhf_core.algorithms.reward.ranking_pairs import RankingPairs
from rlhf_core.algorithms.reward.thurstone import Thurstone
from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.device import make_accelerator
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run
from rlhf_core.loops.offline import OfflineConfig, train_offline
from rlhf_core.models.forward import score_outputs
from rlhf_core.models.store import new_scalar_model, save_policy

STEPS = 600
# Three responses with exp(r) = 1, 1, 2: the probability of every order and of every choice is a multiple of 1/12.
SHARES, ORDERS = (1, 1, 2), 12


def normal(difference: Tensor) -> Tensor:
    """Φ, the link function of Thurstone's model."""
    return torch.special.ndtr(difference)


def orders(*, whole: bool) -> list[Unit]:
    """12 rankings in the proportions of Plackett–Luce; unless `whole`, they mark only the best response."""
    units: list[Unit] = []
    for number in range(PROBLEM.prompts):
        for order in itertools.permutations(range(3)):
            first, second, _ = (SHARES[item] for item in order)
            count = ORDERS * first * second // (sum(SHARES) * (sum(SHARES) - first))
            ranks = {item: rank for rank, item in enumerate(order, 1)}
            if not whole:
                ranks = {item: min(rank, 2) for item, rank in ranks.items()}
            responses = PROBLEM.responses()[:3]
            unit = tuple(Example([number], responses[item], rank=float(ranks[item])) for item in range(3))
            units += [unit] * count
    return units


def ratings() -> list[Unit]:
    """Each response with its reward as its rating."""
    return [
        (Example([number], response, rating=reward),)
        for number, rewards in enumerate(PROBLEM.rewards().tolist())
        for response, reward in zip(PROBLEM.responses(), rewards, strict=True)
    ]


def fit(algorithm: Any, units: Sequence[Unit]) -> Tensor:
    """Raw scores of all responses after training, (prompts, responses)."""
    with tempfile.TemporaryDirectory() as folder:
        save_policy(PROBLEM.reference(), tokenizer(), Path(folder), max_new_tokens=PROBLEM.longest)
        torch.manual_seed(0)
        model = new_scalar_model(folder).double()
    count = len(units)
    config = OfflineConfig(epochs=STEPS, batch_size=count, micro_batch_size=count, resume_every=10**6, **FAST)
    run = Run(seed=0, name="oracle", resume=ResumeStore(Path("nowhere")))
    accelerator = make_accelerator("cpu", "fp32", 1)
    train_offline(accelerator, model, score_outputs, algorithm, units, [], config, run, 0)
    with torch.no_grad():
        return torch.stack([score_outputs(model, PROBLEM.batch(n)).scores for n in range(PROBLEM.prompts)])


def implicit_rewards(algorithm: DPO) -> Tensor:
    """β (log π − log π_ref) of all responses after training on all pairs, (prompts, responses)."""
    trained = Case("DPO", algorithm, 400).run()
    return algorithm.beta * (trained.logprobs - PROBLEM.logprobs(PROBLEM.reference()))


def off_by(scores: Tensor, rewards: Tensor) -> float:
    """The largest deviation from r* after removing a constant per prompt."""
    difference = scores - rewards
    return (difference - difference.mean(-1, keepdim=True)).abs().max().item()


def three() -> Tensor:
    """r* of the three ranked responses."""
    return torch.tensor(SHARES, dtype=torch.float64).log().expand(PROBLEM.prompts, 3)


# Name -> (algorithm, units, bound on the largest error, or None if the method is biased by design).
MODELS: dict[str, tuple[Any, Any, float | None]] = {
    "Bradley–Terry, all pairs": (BradleyTerry(), lambda: all_pairs(PROBLEM, torch.sigmoid), 1e-3),
    "Thurstone, all pairs": (Thurstone(), lambda: all_pairs(PROBLEM, normal), 1e-3),
    "Likert": (Likert(), ratings, 1e-3),
    "all pairs of a ranking of 3": (RankingPairs(), lambda: orders(whole=True), 1e-3),
    "Plackett–Luce, K = 3": (PlackettLuce(), lambda: orders(whole=True), 1e-3),
    "best of 3": (BestOfNChoice(), lambda: orders(whole=False), 1e-3),
    "DPO, its implicit reward": (DPO(beta=PROBLEM.beta), lambda: [], 1e-3),
    "Bradley–Terry, smoothing ε = 0.1": (
        BradleyTerry(label_smoothing=0.1),
        lambda: all_pairs(PROBLEM, torch.sigmoid),
        None,
    ),
    "Bradley–Terry, margin 0.5": (BradleyTerry(margin=0.5), lambda: all_pairs(PROBLEM, torch.sigmoid), None),
}


def recover(name: str) -> tuple[str, float, float | None]:
    """Fit one reward model; return its name, its largest deviation from r*, and the bound."""
    algorithm, units, bound = MODELS[name]
    scores = implicit_rewards(algorithm) if isinstance(algorithm, DPO) else fit(algorithm, units())
    if algorithm.data == "rankings":
        return name, off_by(scores[:, :3], three()), bound
    return name, off_by(scores, PROBLEM.rewards()), bound
