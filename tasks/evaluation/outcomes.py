"""The task's own figures of a policy's responses, and their differences to those of the SFT model."""

from dataclasses import dataclass
from typing import Any

from tasks.evaluation.measures import Measures
from tasks.evaluation.policy_samples import PolicySample, PolicySampler
from tasks.problems.problem import Outcome, Outcomes, Problem

KEY = "task"  # in the results of a policy


@dataclass(frozen=True)
class TaskFigures:
    """The figures of one task. All policies answer the prompts of `sft`, the SFT model's sample."""

    problem: Problem
    sampler: PolicySampler
    measures: Measures
    sft: PolicySample

    def describe(self, sample: PolicySample) -> dict[str, Any]:
        """Return {"task": {name: {"value", "difference"}}}; nothing if the task has no figures of its own.

        `difference` is the mean over prompts of the paired difference to SFT, with its 95 % interval; None for a figure
        that is no mean over prompts, and for SFT itself.
        """
        if not self.problem.has_outcomes:
            return {}
        typical = self.sampler.perplexities(self.sft.responses)
        before = self._outcomes(self.sft, typical)
        found = before if sample is self.sft else self._outcomes(sample, typical)
        return {
            KEY: {
                name: {
                    "value": outcome.value,
                    "difference": None if sample is self.sft else self._difference(outcome, before[name]),
                }
                for name, outcome in found.items()
            }
        }

    def _outcomes(self, sample: PolicySample, typical: list[float]) -> Outcomes:
        responses = sample.responses
        prompts = [prompt.messages for prompt in responses.prompts]
        own = typical if sample is self.sft else self.sampler.perplexities(responses)
        return self.problem.outcomes(prompts, responses.texts, own, typical)

    def _difference(self, outcome: Outcome, before: Outcome) -> dict[str, float] | None:
        if not outcome.is_mean or not any(outcome.asked):
            return None
        rows = zip(outcome.met, before.met, outcome.asked, strict=True)
        return self.measures.mean([new - old for new, old, asked in rows if asked])
