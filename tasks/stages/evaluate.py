"""Stage `evaluate`: every policy against the SFT model and against reference responses, on held-out prompts."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpdesk.rubric import gold_score
from helpdesk.world import World
from rlhf_core.common.batch import Batch
from rlhf_core.common.seeding import stream_seed
from rlhf_core.maths.metrics import bootstrap_mean, distinct_n
from rlhf_core.maths.reductions import sequence_sum
from rlhf_core.models.ensembles import load_reward_model
from rlhf_core.models.forward import response_kl
from rlhf_core.models.sampling import Sampler, sampled_batch
from rlhf_core.models.store import load_policy, load_tokenizer, own_temperature
from rlhf_core.models.tokens import Prompt, encode_response
from rlhf_core.scoring.judges import Answer, ScoreJudge, win_rate
from rlhf_core.scoring.rewards import ExactMatch, ModelReward, Sampled, WeightedSum
from tasks.common.accelerator import accelerator_of
from tasks.common.rows import as_prompts, last_user_text, prepared_kind
from tasks.common.sampling import Response, make_sampler, sample_responses
from tasks.files import paths
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import load_params
from tasks.params.schema import algorithm_of
from tasks.rewards.best_of_n import BEST_OF_N, best_of_n
from tasks.rewards.terms import make_reward
from tasks.runtime.progress import counted
from tasks.runtime.stage import Stage, main, open_stage, write_json

ROWS = 128  # rows of one forward pass without gradients; even, so that no pair is split between two
NO_JUDGE = "nothing (the data holds no feedback, answers or gold)"
ROUNDING = 1e-4  # standard deviations: what padding and batching may change in a reward model's score, with room


@dataclass(frozen=True)
class Answers:
    """One policy's sampled responses to a set of prompts.

    temperature: what they were sampled at. kl: (n,), nats per response against the SFT model, both at
    `kl_temperature`; for best-of-N sampling the upper bound, which `kl_is_bound` says.
    """

    batch: Batch
    ended: torch.Tensor
    answers: list[Answer]
    temperature: float
    kl: torch.Tensor
    kl_temperature: float
    kl_is_bound: bool = False


class Evaluation:
    """What all judgements of one evaluation share: prompts, models, judge."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.params = stage, stage.params
        self.accelerator = accelerator_of(stage.params)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(paths.SFT)
        self.reference = self._policy(paths.SFT)
        self.reward = self._optimised_reward()
        self.reward_model = self._proxy()
        self.judge = self._judge()

    def _policy(self, path: str | Path) -> PreTrainedModel:
        policy: PreTrainedModel = self.accelerator.prepare_model(load_policy(path), evaluation_mode=True)
        return policy

    def _reward_model(self, path: Path) -> ModelReward | None:
        if (path / paths.NO_MODEL).is_file():
            return None
        return ModelReward(self.accelerator.prepare_model(load_reward_model(path), evaluation_mode=True), ROWS)

    def _optimised_reward(self) -> WeightedSum | None:
        """policy.rewards, as training sums it; None where it is empty, or names a reward model and there is none."""
        terms = self.params.policy.rewards
        has_model = not (paths.REWARD / paths.NO_MODEL).is_file()
        if not terms or (not has_model and any(term.name == "model" for term in terms)):
            return None
        return make_reward(self.params, self.accelerator, ROWS)

    def _proxy(self) -> ModelReward | None:
        """The reward model without a clamp; that of policy.rewards if it is a term there, so as to load it once."""
        for _, _, part in self.reward.parts if self.reward is not None else ():
            if isinstance(part, ModelReward):
                return replace(part, clamp=None)
        return self._reward_model(paths.REWARD)

    def _judge(self) -> ScoreJudge | None:
        """Gold where it exists, else the second reward model; never the model that was optimised against.

        Without gold, right answers and feedback there is none: reward, KL and length remain to be reported.
        """
        prepare, kind = self.params.prepare, prepared_kind()
        if kind == "helpdesk":
            world = World.load(Path(prepare.path))
            return _text_judge("gold rubric", lambda prompt, text: gold_score(world, _text(prompt), text))
        if kind == "question_answer":
            exact = ExactMatch(prepare.answer_pattern)
            return _text_judge("exact match", lambda prompt, text: float(exact.correct(text, prompt.answer)))
        model = self._reward_model(paths.JUDGE)
        if model is None:
            return None
        return ScoreJudge(
            "second reward model", lambda prompts, answers: self._score(model, prompts, answers), ROUNDING
        )

    def _batch(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Batch:
        ids = [answer.ids for answer in answers]
        batch, _ = sampled_batch([prompt.ids for prompt in prompts], ids, self.tokenizer.pad_token_id)
        return batch.to(self.accelerator.device)

    def _score(self, model: ModelReward, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
        """Scores of all answers, padded to one width."""
        batch = self._batch(prompts, answers)
        texts = [answer.text for answer in answers]
        return model(Sampled(batch, torch.ones(batch.rows).bool(), prompts, texts)).tolist()

    def prompts(self, split: str, count: int) -> tuple[list[Prompt], list[Answer] | None]:
        """The first `count` prompts of a split, and their reference responses, if the data has any."""
        rows = read_jsonl(paths.rows(paths.PREPARED, "prompts", split))[:count]
        prompts = as_prompts(rows, self.tokenizer)
        if any("response" not in row for row in rows):
            return prompts, None
        return prompts, [Answer(row["response"], encode_response(self.tokenizer, row["response"])) for row in rows]

    @torch.no_grad()
    def answers(self, path: str | Path, prompts: Sequence[Prompt], stream: str) -> Answers:
        """Sample a policy's responses, and measure its KL to the SFT model at the policy's own temperature.

        The responses are sampled at evaluate.temperature, or where it is null at the policy's own, which its
        generation config holds. The KL is that of the distributions at the own temperature, so where the two differ it
        is measured on a second sample. Of best-of-N sampling, which has no log-probabilities, it is the upper bound.
        """
        manifest = Path(path) / BEST_OF_N
        if manifest.is_file():
            return self._best_answers(json.loads(manifest.read_text(encoding="utf-8")), prompts, stream)
        policy = self._policy(path)
        own = own_temperature(policy)
        temperature = self._temperature(policy)
        sampled = measured = self._sample(policy, prompts, temperature, stream)
        if temperature != own:
            measured = self._sample(policy, prompts, own, f"{stream}/kl")
        kl = self._kl(policy, prompts, measured, own)
        return Answers(*self._answers(prompts, sampled), temperature, kl, own)

    def _best_answers(self, chosen: Mapping[str, Any], prompts: Sequence[Prompt], stream: str) -> Answers:
        """The best of N samples of the SFT model, by the reward that policies are optimised for."""
        temperature, count = self._temperature(self.reference), chosen["best_of"]
        sampler = self._sampler(self.reference, temperature)
        reward = self.reward or make_reward(self.params, self.accelerator, ROWS)  # which says what is missing
        sampled, _ = best_of_n(self.reference, self.tokenizer, prompts, sampler, reward, count, self._stream(stream))
        bound = torch.full((len(prompts),), chosen["kl_bound"])
        return Answers(*self._answers(prompts, sampled), temperature, bound, temperature, kl_is_bound=True)

    def _temperature(self, policy: PreTrainedModel) -> float:
        """What a policy's judged responses are sampled at."""
        chosen = self.params.evaluate.temperature
        return own_temperature(policy) if chosen is None else chosen

    def _stream(self, name: str) -> tuple[int, str]:
        return self.params.run.seed, f"evaluate/{name}"

    def _sampler(self, policy: PreTrainedModel, temperature: float) -> Sampler:
        return make_sampler(policy, self.tokenizer, self.params.prepare.max_response_tokens, temperature)

    def _sample(
        self, policy: PreTrainedModel, prompts: Sequence[Prompt], temperature: float, stream: str
    ) -> list[Response]:
        sampler = self._sampler(policy, temperature)
        return sample_responses(policy, self.tokenizer, prompts, sampler, self._stream(stream))

    def _answers(
        self, prompts: Sequence[Prompt], sampled: Sequence[Response]
    ) -> tuple[Batch, torch.Tensor, list[Answer]]:
        answers = [Answer(response.text, response.ids) for response in sampled]
        ended = torch.tensor([response.ended for response in sampled], device=self.accelerator.device)
        return self._batch(prompts, answers), ended, answers

    def _kl(
        self, policy: PreTrainedModel, prompts: Sequence[Prompt], sampled: Sequence[Response], temperature: float
    ) -> torch.Tensor:
        batch, _, _ = self._answers(prompts, sampled)
        kl = []
        for start in range(0, batch.rows, ROWS):
            part = batch.select(slice(start, start + ROWS))
            tokens = response_kl(policy, self.reference, part, temperature=temperature)
            kl.append(sequence_sum(tokens, part.response_mask))
        return torch.cat(kl).cpu()

    def describe(self, prompts: Sequence[Prompt], given: Answers) -> dict[str, Any]:
        """Reward, KL, length, diversity of one policy's responses."""
        texts = [answer.text for answer in given.answers]
        proxy = None if self.reward_model is None else self._score(self.reward_model, prompts, given.answers)
        return {
            "temperature": given.temperature,
            "kl": self._mean(given.kl.tolist()),
            "kl_temperature": given.kl_temperature,
            "kl_is_bound": given.kl_is_bound,
            "mean_length": given.batch.lengths.mean().item(),
            "ended_fraction": given.ended.float().mean().item(),
            "distinct_1": distinct_n(texts, 1),
            "distinct_2": distinct_n(texts, 2),
            "judge_score": None if self.judge is None else self._mean(self.judge.scores(prompts, given.answers)),
            **self._rewards(Sampled(given.batch, given.ended, prompts, texts)),
            "reward_model_score": None if proxy is None else self._mean(proxy),
        }

    def _rewards(self, sampled: Sampled) -> dict[str, Any]:
        """The reward that training maximises, and the mean of each of its terms before the weight."""
        if self.reward is None:
            return {"reward": None, "reward_terms": {}}
        total, terms = self.reward(sampled)
        means = {name: value.mean().item() for name, value in terms.items()}
        return {"reward": self._mean(total.tolist()), "reward_terms": means}

    def reward_terms(self) -> list[dict[str, Any]]:
        """What the reward adds up: each term's name, its weight, and its clamp where it has one."""
        parts = [] if self.reward is None else self.reward.parts
        clamps = {name: part.clamp for name, _, part in parts if isinstance(part, ModelReward)}
        return [{"name": name, "weight": weight, "clamp": clamps.get(name)} for name, weight, _ in parts]

    def _mean(self, values: Sequence[float]) -> dict[str, float]:
        seed = stream_seed(self.params.run.seed, "evaluate", "mean")
        value, low, high = bootstrap_mean(values, self.params.evaluate.resamples, seed)
        return {"value": value, "low": low, "high": high}

    def win_rate(
        self, prompts: Sequence[Prompt], first: list[Answer], second: list[Answer] | None
    ) -> dict[str, Any] | None:
        """Win rate of the first against the second, with interval and judge; None without a judge or the second."""
        if self.judge is None or second is None:
            return None
        resamples, seed = self.params.evaluate.resamples, self.params.run.seed
        return asdict(win_rate(self.judge, prompts, first, second, resamples, seed))


def _text(prompt: Prompt) -> str:
    return last_user_text(prompt.messages)


def _text_judge(name: str, score: Callable[[Prompt, str], float]) -> ScoreJudge:
    return ScoreJudge(
        name,
        lambda prompts, answers: [score(p, answer.text) for p, answer in zip(prompts, answers, strict=True)],
    )


def drop_unlisted(listed: Sequence[str]) -> None:
    """Remove the folders of policies that are no longer listed, which would change this stage's input.

    DVC's cache keeps them: a policy that is listed again comes back without being trained.
    """
    for folder in sorted(paths.POLICIES.iterdir()):
        if folder.name not in listed and (folder / "manifest.json").is_file():
            shutil.rmtree(folder)
            sys.stdout.write(
                f"{folder} removed: policy.online and policy.offline no longer list it; DVC's cache keeps it\n"
            )


def evaluate() -> None:
    """Judge the final policies on the test split and their snapshots on the development split."""
    drop_unlisted(load_params().policy.methods)  # before the stage takes down what its inputs are
    with open_stage("evaluate") as stage:
        evaluation = Evaluation(stage)
        folder = stage.out(paths.EVALUATION)
        results, samples = _judge_policies(evaluation)
        write_json(folder / "results.json", results)
        write_jsonl(folder / "samples.jsonl", samples)
        write_jsonl(folder / "snapshots.jsonl", _judge_snapshots(evaluation))
        for name, result in results["policies"].items():
            rate = result["win_rate_vs_sft"]
            won = {} if rate is None else {f"win_rate_vs_sft/{name}": rate["value"]}
            stage.log({**won, f"kl/{name}": result["kl"]["value"]})


def _judge_policies(evaluation: Evaluation) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    params = evaluation.params
    prompts, references = evaluation.prompts("test", params.evaluate.prompts)
    sft = evaluation.answers(paths.SFT, prompts, "sft")
    results: dict[str, Any] = {
        "sft": evaluation.describe(prompts, sft)
        | {"win_rate_vs_reference": evaluation.win_rate(prompts, sft.answers, references)}
    }
    texts = {"sft": sft.answers} if references is None else {"reference": references, "sft": sft.answers}
    for name in counted("judging policies", params.policy.methods):
        given = evaluation.answers(paths.policy(name), prompts, name)
        results[name] = evaluation.describe(prompts, given) | {
            "reward_optimised": algorithm_of(params, name).data.is_rewarded,
            "win_rate_vs_sft": evaluation.win_rate(prompts, given.answers, sft.answers),
            "win_rate_vs_reference": evaluation.win_rate(prompts, given.answers, references),
        }
        texts[name] = given.answers
    samples = [
        {"prompt": list(prompt.messages), "responses": {name: answers[row].text for name, answers in texts.items()}}
        for row, prompt in enumerate(prompts[: params.evaluate.samples])
    ]
    baseline = results.pop("sft")
    return {
        "judge": NO_JUDGE if evaluation.judge is None else evaluation.judge.name,
        "prompts": len(prompts),
        "rewards": evaluation.reward_terms(),
        "sft": baseline,
        "policies": results,
    }, samples


def _judge_snapshots(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each snapshot on the development split, so that choosing one never touches the test split."""
    params = evaluation.params
    prompts, _ = evaluation.prompts("development", params.evaluate.development_prompts)
    sft = evaluation.answers(paths.SFT, prompts, "development/sft")
    rows = [{"policy": "sft", "step": 0, **evaluation.describe(prompts, sft)}]
    folders = [paths.policy(name) / "snapshots" for name in params.policy.methods]
    for path in counted("judging snapshots", [path for folder in folders for path in sorted(folder.glob("step-*"))]):
        name = path.parent.parent.name
        given = evaluation.answers(path, prompts, f"development/{name}/{path.name}")
        rows.append(
            {
                "policy": name,
                "step": int(path.name.removeprefix("step-")),
                **evaluation.describe(prompts, given),
                "win_rate_vs_sft": evaluation.win_rate(prompts, given.answers, sft.answers),
            }
        )
    return rows


if __name__ == "__main__":
    main(evaluate)
