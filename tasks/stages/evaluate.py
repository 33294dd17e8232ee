"""Stage `evaluate`: compare every policy with the SFT model and with reference responses, on held-out prompts."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_core.common.responses import Response
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import load_tokenizer
from rlhf_core.models.tokens import Prompt, encode_response
from rlhf_core.scoring.judges import Judge, ScoreJudge
from tasks.common.models import StageModels
from tasks.common.rows import as_prompts
from tasks.evaluation.measures import Measures, reward_model
from tasks.evaluation.outcomes import TaskFigures
from tasks.evaluation.policy_samples import PolicySample, PolicySampler
from tasks.files import paths
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import load_params
from tasks.params.schema import Params, algorithm_of
from tasks.problems.table import prepared_problem
from tasks.runtime.progress import counted
from tasks.runtime.stage import main, open_stage, write_json

NO_JUDGE = "nothing (the data has no feedback, answers or gold)"
ROUNDING = 1e-4  # standard deviations; larger than the effect of padding and batching on a reward model's score


def evaluate() -> None:
    """Judge the final policies on the test split and their snapshots on the development split."""
    drop_unlisted(load_params().policy.methods)  # before the stage records its inputs
    with open_stage("evaluate") as stage:
        evaluation = Evaluation(stage.params)
        folder = stage.out(paths.EVALUATION)
        results, samples = evaluation.policies()
        write_json(folder / paths.RESULTS.name, results)
        write_jsonl(folder / paths.EXAMPLES.name, samples)
        write_jsonl(folder / paths.SNAPSHOTS.name, evaluation.snapshots())
        for name, result in results["policies"].items():
            rate = result["win_rate_vs_sft"]
            won = {} if rate is None else {f"win_rate_vs_sft/{name}": rate["value"]}
            stage.log({**won, f"kl/{name}": result["kl"]["value"]})
            scores = result.get("reward_model_scores", {})
            stage.log({f"reward_model_score/{model}/{name}": score["value"] for model, score in scores.items()})


def drop_unlisted(listed: Sequence[str]) -> None:
    """Remove the folders of policies that are no longer listed, because they would change this stage's input.

    DVC's cache keeps them: if a policy is listed again, it is restored without training.
    """
    for folder in sorted(paths.POLICIES.iterdir()):
        if folder.name not in listed and (folder / paths.MANIFEST).is_file():
            shutil.rmtree(folder)
            sys.stdout.write(
                f"{folder} removed: it is no longer in policy.online or policy.offline. DVC's cache keeps it.\n"
            )


class Evaluation:
    """What all parts of one evaluation share: the sampler of the policies, the judge and the measures."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.models = StageModels(params)
        self.accelerator = self.models.accelerator
        self.tokenizer = load_tokenizer(paths.SFT)
        self.judge = _judge(params, self.models)
        self.measures = Measures(params, self.models, self.judge)
        self.sampler = PolicySampler(params, self.models, self.tokenizer, self.measures.reward)

    def policies(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the results of every policy on the test split, and the first responses of each policy."""
        prompts, references = self._prompts("test", self.params.evaluate.prompts)
        sft = self.sampler.sample(paths.SFT, prompts, "sft")
        texts = {} if references is None else {"reference": references.texts}
        texts["sft"] = sft.responses.texts
        figures = TaskFigures(prepared_problem(), self.sampler, self.measures, sft)
        results = {}
        for name in counted("judging policies", self.params.policy.methods):
            sample = self.sampler.sample(paths.policy(name), prompts, name)
            results[name] = {
                **self.measures.describe(sample),
                **figures.describe(sample),
                "reward_optimised": algorithm_of(self.params, name).data.is_rewarded,
                "win_rate_vs_sft": self.measures.win_rate(sample.responses, sft.responses),
                "win_rate_vs_reference": self.measures.win_rate(sample.responses, references),
            }
            texts[name] = sample.responses.texts
        return {
            "judge": NO_JUDGE if self.judge is None else self.judge.name,
            "prompts": len(prompts),
            "rewards": self.measures.reward_terms(),
            "sft": {
                **self.measures.describe(sft),
                **figures.describe(sft),
                "win_rate_vs_reference": self.measures.win_rate(sft.responses, references),
            },
            "policies": results,
        }, _samples(prompts[: self.params.evaluate.samples], texts)

    def snapshots(self) -> list[dict[str, Any]]:
        """Evaluate each snapshot on the development split, so that choosing one never uses the test split."""
        prompts, _ = self._prompts("development", self.params.evaluate.development_prompts)
        sft = self.sampler.sample(paths.SFT, prompts, "development/sft")
        rows = [{"policy": "sft", "step": 0, **self.measures.describe(sft)}]
        found = [path for name in self.params.policy.methods for path in paths.snapshots(paths.policy(name))]
        for path in counted("judging snapshots", found):
            rows.append(self._snapshot(path, prompts, sft))
        return rows

    def _snapshot(self, path: Path, prompts: Sequence[Prompt], sft: PolicySample) -> dict[str, Any]:
        name = path.parent.parent.name
        sample = self.sampler.sample(path, prompts, f"development/{name}/{path.name}")
        return {
            "policy": name,
            "step": paths.step_of(path),
            **self.measures.describe(sample),
            "win_rate_vs_sft": self.measures.win_rate(sample.responses, sft.responses),
        }

    def _prompts(self, split: str, count: int) -> tuple[list[Prompt], Responses | None]:
        """Return the first `count` prompts of a split, and their reference responses if the data has any."""
        rows = read_jsonl(paths.rows(paths.PREPARED, "prompts", split))[:count]
        prompts = as_prompts(rows, self.tokenizer)
        if any("response" not in row for row in rows):
            return prompts, None
        texts = [row["response"] for row in rows]
        references = [Response(encode_response(self.tokenizer, text), text, ended=True) for text in texts]
        return prompts, Responses(prompts, references, self.tokenizer.pad_token_id, self.accelerator.device)


def _samples(prompts: Sequence[Prompt], texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the prompts, each with its response from every policy."""
    return [
        {"prompt": list(prompt.messages), "responses": {name: said[row] for name, said in texts.items()}}
        for row, prompt in enumerate(prompts)
    ]


def _judge(params: Params, models: StageModels) -> Judge | None:
    """Return the judge: gold if it exists, else the second reward model; never the model that policies optimise.

    None if the data has neither gold nor answers nor feedback. Reward, KL and length are still reported.
    """
    judge = prepared_problem().judge(params.prepare)
    if judge is not None:
        return judge
    model = reward_model(paths.JUDGE, models)
    if model is None:
        return None
    return ScoreJudge("second reward model", lambda responses: model(responses).tolist(), ROUNDING)


if __name__ == "__main__":
    main(evaluate)
