"""What evaluation reports of a policy's responses: rewards, KL, length, diversity and win rates, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rlhf_core.common.seeding import stream_seed
from rlhf_core.maths.metrics import bootstrap_mean, distinct_n
from rlhf_core.models.ensembles import load_reward_model
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.judges import ScoreJudge, win_rate
from rlhf_core.scoring.rewards import ModelReward, WeightedSum
from tasks.evaluation.policy_samples import ROWS, PolicySample
from tasks.files import paths
from tasks.params.schema import Params
from tasks.rewards.terms import make_reward


class Measures:
    """The measures of one evaluation; `judge` is None where nothing can judge."""

    def __init__(self, params: Params, accelerator: Accelerator, judge: ScoreJudge | None) -> None:
        self.params, self.judge = params, judge
        self.reward = _optimised_reward(params, accelerator)
        self.reward_model = _proxy(self.reward, accelerator)

    def describe(self, sample: PolicySample) -> dict[str, Any]:
        """Rewards, KL, length and diversity of one policy's responses."""
        responses = sample.responses
        judged = None if self.judge is None else self.judge.scores(responses)
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
        """What the reward adds up: each term's name, its weight, and its clamp where it has one."""
        parts = [] if self.reward is None else self.reward.parts
        clamps = {name: part.clamp for name, _, part in parts if isinstance(part, ModelReward)}
        return [{"name": name, "weight": weight, "clamp": clamps.get(name)} for name, weight, _ in parts]

    def win_rate(self, first: Responses, second: Responses | None) -> dict[str, Any] | None:
        """Win rate of the first against the second, with interval and judge; None without a judge or the second."""
        if self.judge is None or second is None:
            return None
        return asdict(win_rate(self.judge, first, second, self.params.evaluate.resamples, self.params.run.seed))

    def _mean(self, values: Sequence[float]) -> dict[str, float]:
        seed = stream_seed(self.params.run.seed, "evaluate", "mean")
        value, low, high = bootstrap_mean(values, self.params.evaluate.resamples, seed)
        return {"value": value, "low": low, "high": high}


def reward_model(folder: Path, accelerator: Accelerator) -> ModelReward | None:
    """The reward model in a folder, without a clamp; None where none was trained."""
    if (folder / paths.NO_MODEL).is_file():
        return None
    return ModelReward(accelerator.prepare_model(load_reward_model(folder), evaluation_mode=True), ROWS)


def _optimised_reward(params: Params, accelerator: Accelerator) -> WeightedSum | None:
    """policy.rewards, as training sums it; None where it is empty, or names a reward model and there is none."""
    terms = params.policy.rewards
    has_model = not (paths.REWARD / paths.NO_MODEL).is_file()
    if not terms or (not has_model and any(term.name == "model" for term in terms)):
        return None
    return make_reward(params, accelerator, ROWS)


def _proxy(reward: WeightedSum | None, accelerator: Accelerator) -> ModelReward | None:
    """The reward model without a clamp; that of policy.rewards if it is a term there, so as to load it once."""
    for _, _, part in reward.parts if reward is not None else ():
        if isinstance(part, ModelReward):
            return replace(part, clamp=None)
    return reward_model(paths.REWARD, accelerator)
