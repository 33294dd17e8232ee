"""Measures of a policy's responses: rewards, KL, length, diversity and win rates, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhf_core.common.seeding import stream_seed
from rlhf_core.maths.metrics import bootstrap_mean, distinct_n
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.foreign import ForeignReward
from rlhf_core.scoring.judges import Judge, ScoreJudge, win_rate
from rlhf_core.scoring.rewards import ModelReward, WeightedSum
from tasks.common.models import StageModels
from tasks.evaluation.policy_samples import ROWS, PolicySample
from tasks.files import paths
from tasks.params.schema import Params
from tasks.rewards.terms import make_reward
from tasks.rewards.trained import trained_reward


class Measures:
    """The measures of one evaluation. `judge` is None if the task has no judge."""

    def __init__(self, params: Params, models: StageModels, judge: Judge | None) -> None:
        self.params, self.judge = params, judge
        self.reward = _optimised_reward(params, models)
        self.reward_model = _proxy(self.reward, "model", paths.REWARD, models)
        names = params.reward_models.names
        found = {name: _proxy(self.reward, name, paths.reward_model(name), models) for name in names}
        self.reward_models = {name: model for name, model in found.items() if model is not None}

    def describe(self, sample: PolicySample) -> dict[str, Any]:
        """Return rewards, KL, length and diversity of one policy; `judge_score` is None unless the judge scores."""
        responses = sample.responses
        judged = self.judge.scores(responses) if isinstance(self.judge, ScoreJudge) else None
        reward, terms = (None, {}) if self.reward is None else self.reward(responses)
        proxy = None if self.reward_model is None else self.reward_model(responses).tolist()
        return {
            "temperature": sample.temperature,
            "kl": self.mean(sample.kl.tolist()),
            "kl_temperature": sample.kl_temperature,
            "kl_is_bound": sample.kl_is_bound,
            "mean_length": responses.batch.lengths.mean().item(),
            "ended_fraction": responses.ended.float().mean().item(),
            "distinct_1": distinct_n(responses.texts, 1),
            "distinct_2": distinct_n(responses.texts, 2),
            "judge_score": None if judged is None else self.mean(judged),
            "reward": None if reward is None else self.mean(reward.tolist()),
            "reward_terms": {name: value.mean().item() for name, value in terms.items()},
            "reward_model_score": None if proxy is None else self.mean(proxy),
            **self._each_model(responses),
        }

    def _each_model(self, responses: Responses) -> dict[str, Any]:
        """Return the mean score of each model of section reward_models; no entry if the section names none."""
        scores = {name: self.mean(model(responses).tolist()) for name, model in self.reward_models.items()}
        return {"reward_model_scores": scores} if scores else {}

    def reward_terms(self) -> list[dict[str, Any]]:
        """Return the terms of the reward: name, weight, clamp if the term has one, and what the term means."""
        entries = [] if self.reward is None else self.params.policy.rewards
        return [
            {"name": entry.label, "weight": entry.weight, "clamp": entry.clamp, "meaning": entry.term.meaning}
            for entry in entries
        ]

    def win_rate(self, first: Responses, second: Responses | None) -> dict[str, Any] | None:
        """Return the win rate of the first against the second, with its interval; None without a judge or a second."""
        if self.judge is None or second is None:
            return None
        return asdict(win_rate(self.judge, first, second, self.params.evaluate.resamples, self.params.run.seed))

    def mean(self, values: Sequence[float]) -> dict[str, float]:
        """Return the mean over prompts, with its 95 % interval."""
        seed = stream_seed(self.params.run.seed, "evaluate", "mean")
        value, low, high = bootstrap_mean(values, self.params.evaluate.resamples, seed)
        return {"value": value, "low": low, "high": high}


def reward_model(folder: Path, models: StageModels) -> ModelReward | ForeignReward | None:
    """Load the reward model of a folder, without a clamp; None if none was trained."""
    return trained_reward(folder, models, ROWS) if paths.has_model(folder) else None


def _optimised_reward(params: Params, models: StageModels) -> WeightedSum | None:
    """Return the reward function of policy.rewards; None if it is empty or needs a reward model that does not exist."""
    entries = params.policy.rewards
    trained = [paths.reward_model(entry.model) for entry in entries if entry.is_own_model]
    return make_reward(params, models, ROWS) if entries and all(map(paths.has_model, trained)) else None


def _proxy(
    reward: WeightedSum | None, label: str, folder: Path, models: StageModels
) -> ModelReward | ForeignReward | None:
    """Return a reward model without a clamp. If policy.rewards uses it, that copy is reused, not loaded again."""
    for name, _, part in reward.parts if reward is not None else ():
        if name == label and isinstance(part, ModelReward | ForeignReward):
            return replace(part, clamp=None)
    return reward_model(folder, models)
