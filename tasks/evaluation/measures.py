"""Measures of a policy's responses: rewards, KL, length, diversity and win rates, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhf_core.common.seeding import stream_seed
from rlhf_core.maths.metrics import bootstrap_mean, distinct_n
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.judges import Judge, ScoreJudge, win_rate
from rlhf_core.scoring.rewards import ModelReward, WeightedSum
from tasks.common.models import StageModels
from tasks.evaluation.policy_samples import ROWS, PolicySample
from tasks.files import paths
from tasks.params.schema import Params
from tasks.rewards.terms import make_reward


class Measures:
    """The measures of one evaluation. `judge` is None if the task has no judge."""

    def __init__(self, params: Params, models: StageModels, judge: Judge | None) -> None:
        self.params, self.judge = params, judge
        self.reward = _optimised_reward(params, models)
        self.reward_model = _proxy(self.reward, models)

    def describe(self, sample: PolicySample) -> dict[str, Any]:
        """Return rewards, KL, length and diversity of one policy; `judge_score` is None unless the judge scores."""
        responses = sample.responses
        judged = self.judge.scores(responses) if isinstance(self.judge, ScoreJudge) else None
        reward, terms = (None, {}) if self.reward is None else self.reward(responses)
        proxy = None if self.reward_model is None else self.reward_model(responses).tolist()
        return {
            "temperature": sample.temperature,
            "kl": self._mean(sample.kl.tolist()),
            "kl_temperature": sample.kl_temperature,
            "kl_is_bound": sample.kl_is_bound,
            "mean_length": responses.batch.lengths.mean().item(),
            "ended_fraction": responses.ended.float().mean().item(),
            "distinct_1": distinct_n(responses.texts, 1),
            "distinct_2": distinct_n(responses.texts, 2),
            "judge_score": None if judged is None else self._mean(judged),
            "reward": None if reward is None else self._mean(reward.tolist()),
            "reward_terms": {name: value.mean().item() for name, value in terms.items()},
            "reward_model_score": None if proxy is None else self._mean(proxy),
        }

    def reward_terms(self) -> list[dict[str, Any]]:
        """Return the terms of the reward: name, weight, and clamp if the term has one."""
        parts = [] if self.reward is None else self.reward.parts
        clamps = {name: part.clamp for name, _, part in parts if isinstance(part, ModelReward)}
        return [{"name": name, "weight": weight, "clamp": clamps.get(name)} for name, weight, _ in parts]

    def win_rate(self, first: Responses, second: Responses | None) -> dict[str, Any] | None:
        """Return the win rate of the first against the second, with its interval; None without a judge or a second."""
        if self.judge is None or second is None:
            return None
        return asdict(win_rate(self.judge, first, second, self.params.evaluate.resamples, self.params.run.seed))

    def _mean(self, values: Sequence[float]) -> dict[str, float]:
        seed = stream_seed(self.params.run.seed, "evaluate", "mean")
        value, low, high = bootstrap_mean(values, self.params.evaluate.resamples, seed)
        return {"value": value, "low": low, "high": high}


def reward_model(folder: Path, models: StageModels) -> ModelReward | None:
    """Load the reward model of a folder, without a clamp; None if none was trained."""
    if not paths.has_model(folder):
        return None
    return ModelReward(models.accelerator.prepare_model(models.reward_model(folder), evaluation_mode=True), ROWS)


def _optimised_reward(params: Params, models: StageModels) -> WeightedSum | None:
    """Return the reward function of policy.rewards; None if it is empty or needs a reward model that does not exist."""
    terms = params.policy.rewards
    has_model = paths.has_model(paths.REWARD)
    if not terms or (not has_model and any(term.name == "model" for term in terms)):
        return None
    return make_reward(params, models, ROWS)


def _proxy(reward: WeightedSum | None, models: StageModels) -> ModelReward | None:
    """Return the reward model without a clamp. If policy.rewards uses it, that copy is reused, not loaded again."""
    for _, _, part in reward.parts if reward is not None else ():
        if isinstance(part, ModelReward):
            return replace(part, clamp=None)
    return reward_model(paths.REWARD, models)
