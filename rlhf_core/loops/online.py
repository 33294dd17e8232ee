"""The loop for sampled data: PPO, GRPO and the other on-policy methods.

prompts -> Rollout -> targets -> token losses -> scalar
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm
from rlhf_core.algorithms.base.check import check_loop
from rlhf_core.algorithms.base.config import OnlineConfig, learning_rate_factor
from rlhf_core.common.batch import Batch, Outputs, Rollout
from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import row_seeds, seed_everything, stream_seed
from rlhf_core.loops.common.resume import load_trained_state, trained_state
from rlhf_core.loops.common.run import Metrics, Run, is_mark, minibatch_indices, stream_indices
from rlhf_core.loops.common.update import GradientStep, forward_in_parts, micro_size, unit_slices
from rlhf_core.loops.dynamic_sampling import Scored, other_prompts, replace_dropped
from rlhf_core.loops.trust_region import TrustRegion, TrustRegionAlgorithm
from rlhf_core.maths.advantages import equal_groups
from rlhf_core.maths.kl import kl_k3
from rlhf_core.maths.reductions import sequence_sum
from rlhf_core.models.forward import policy_outputs, response_logprobs, values
from rlhf_core.models.precision import is_exact
from rlhf_core.models.responses import Responses
from rlhf_core.models.sampling import Sampler
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import WeightedSum


@dataclass(frozen=True)
class Critic:
    """A model with one scalar per token, and its peak learning rate."""

    model: nn.Module
    learning_rate: float


@dataclass(frozen=True)
class Models:
    """The models of a run on sampled data; reference and critic are None if the algorithm needs none."""

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    critic: Critic | None
    tokenizer: PreTrainedTokenizerBase


class OnlineTraining:
    """Trains `models.policy` in place; `history` has one dict of metrics per rollout."""

    def __init__(
        self,
        accelerator: Accelerator,
        models: Models,
        algorithm: OnPolicyAlgorithm,
        reward: WeightedSum,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        config: OnlineConfig,
        run: Run,
    ) -> None:
        """Prepare models and optimiser.

        Raises:
            UserError: there are too few prompts for a rollout, or importance_cap has no effect.
            ValueError: the options of method, loop and sampler contradict each other.
        """
        _check(algorithm, prompts, sampler, config)
        if algorithm.needs.sampler_logprobs and sampler.is_local and is_exact(models.policy):
            raise UserError(
                "importance_cap has no effect: sampling and training compute equal log-probabilities in fp32. "
                "Leave importance_cap out, or set run.precision to bf16."
            )
        self.accelerator, self.algorithm, self.reward = accelerator, algorithm, reward
        self.prompts, self.sampler, self.config, self.run = prompts, sampler, config, run
        self.tokenizer = models.tokenizer
        self.policy = accelerator.prepare(models.policy)
        self.reference: PreTrainedModel | None = None
        if models.reference is not None:
            self.reference = accelerator.prepare_model(models.reference, evaluation_mode=True)
        self.critic: nn.Module | None = None
        self.trust_region = self._trust_region() if algorithm.needs.trust_region else None
        trained: dict[str, tuple[nn.Module, float]] = {}
        if self.trust_region is None:
            trained["policy"] = (self.policy, config.learning_rate)
        if models.critic is not None:
            self.critic = accelerator.prepare(models.critic.model)
            trained["critic"] = (self.critic, models.critic.learning_rate)
        self.makes_one_step = config.makes_one_step and self.trust_region is None
        self.micro_size = micro_size(config, algorithm.rows_per_unit)
        self.step_on: GradientStep[Rollout] = GradientStep(
            accelerator, algorithm, self._forward, trained, config, self.micro_size, self._complete
        )
        self.state = algorithm.initial_state()
        self.history: list[Metrics] = []

    def train(self) -> list[Metrics]:
        """Run all remaining rollouts and return the history."""
        self._restore()
        for step in range(len(self.history), self.config.steps):
            seed_everything(self.run.seed, self.run.name, self.accelerator.process_index, step)
            rollout, sampled = self.rollout(step)
            metrics = sampled | self._learn(rollout, step) | self.state
            self.state = self.algorithm.next_state(self.state, metrics, rollout.rows)
            self.history.append(metrics)
            self.run.report(metrics, step + 1, self.config.steps, int(rollout.attention_mask.sum()))
            if is_mark(step + 1, self.config.steps, self.config.snapshots):
                self.run.snapshot(step + 1)
            if (step + 1) % self.config.resume_every == 0:
                self._save()
        return self.history

    @torch.no_grad()
    def rollout(self, step: int) -> tuple[Rollout, Metrics]:
        """Sample responses, score them, and compute policy and reference log-probabilities and critic values."""
        self.policy.eval()
        size = self.config.rollout_size // self.algorithm.group_size
        indices = stream_indices(step, len(self.prompts), size, self.run.seed, self.run.name)
        scored, extra = self._scored(indices, step), Metrics()
        if self.algorithm.extra_rounds:
            scored, extra = self._replace_dropped(scored, indices, step)
        rollout = self._record(scored.responses, scored.scores, scored.row_weights)
        self.policy.train()
        metrics = _rollout_metrics(rollout, scored.terms, self.algorithm, self.config.epochs)
        extra["sampled_tokens"] = metrics["sampled_tokens"] + extra.get("sampled_tokens", 0)
        return rollout, metrics | extra

    def _scored(self, indices: Sequence[int], *stream: str | int) -> Scored:
        """Sample and score the responses to the prompts with these indices, from the stream of this name."""
        return Scored.by(self.reward, *self.draw([self.prompts[index] for index in indices], *stream))

    def _replace_dropped(self, first: Scored, indices: Sequence[int], step: int) -> tuple[Scored, Metrics]:
        """Run the extra rounds of dynamic sampling; each has its own random streams, named by step and round."""
        used = list(indices)

        def sample(number: int, groups: int) -> Scored:
            process = self.accelerator.process_index
            seed_everything(self.run.seed, self.run.name, process, step, "dynamic_sampling", number)
            stream = f"{self.run.name}/dynamic_sampling/{step}/{number}"
            chosen = other_prompts(len(self.prompts), groups, used, self.run.seed, stream)
            used.extend(chosen)
            return self._scored(chosen, step, "dynamic_sampling", number)

        return replace_dropped(first, self.algorithm, sample)

    def draw(self, prompts: Sequence[Prompt], *stream: str | int) -> tuple[Responses, Tensor]:
        """Sample group_size adjacent responses per prompt; return them and the weight of each row, (B,)."""
        repeated = [prompt for prompt in prompts for _ in range(self.algorithm.group_size)]
        seeds = row_seeds(len(repeated), self.run.seed, self.run.name, "rollout", *stream)
        responses = self.sampler.responses(self.policy, self.tokenizer, repeated, seeds)
        rows = Responses(repeated, responses, self.tokenizer.pad_token_id, self.accelerator.device)
        return rows, torch.ones(len(repeated))

    def _record(self, responses: Responses, scores: Tensor, row_weights: Tensor) -> Rollout:
        """Return the rollout before targets are computed."""
        batch = responses.batch
        sampled = responses.sampler_logprobs
        known = {"old_logprobs": self._old_logprobs(batch, sampled), "sampler_logprobs": sampled}
        if self.reference is not None and self.algorithm.needs.reference:
            known["ref_logprobs"] = self._in_parts(batch, partial(self._logprobs, self.reference))
        if self.critic is not None:
            known["old_values"] = self._in_parts(batch, partial(values, self.critic))
        return Rollout.of(
            batch,
            units=torch.arange(batch.rows, device=scores.device) // self.algorithm.rows_per_unit,
            scores=scores,
            ended=responses.ended,
            row_weights=row_weights,
            **known,
        )

    def _old_logprobs(self, batch: Batch, sampled: Tensor) -> Tensor:
        """The log-probabilities under the policy before the first step, (B, R).

        Those of a local sampler equal the training forward pass up to rounding, unless it computes in bf16. With one
        step per rollout, the training forward pass gives its own (`_complete`), and they are only for targets.

        Raises:
            UserError: the algorithm needs log-probabilities that the sampler does not give.
        """
        is_known = not bool(sampled.isnan().any())
        if self.algorithm.needs.sampler_logprobs and not is_known:
            raise UserError(
                "importance_cap needs log-probabilities from the sampler, and this sampler does not give them. "
                "Leave importance_cap out."
            )
        if is_known and self.sampler.is_local and (is_exact(self.policy) or self.makes_one_step):
            return sampled
        return self._in_parts(batch, partial(self._logprobs, self.policy))

    def _complete(self, outputs: Outputs, batch: Rollout) -> Rollout:
        """In the only step on a rollout, the policy is the one that sampled, and the ratio is exactly 1."""
        return replace(batch, old_logprobs=outputs.logprobs.detach()) if self.makes_one_step else batch

    def _logprobs(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return response_logprobs(model, batch, temperature=self.config.temperature)

    def _in_parts(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """A tensor (B, ...) of a whole batch, computed in microbatches."""
        return torch.cat([compute(batch.select(rows)) for _, rows in unit_slices(batch, micro_size(self.config))])

    def _learn(self, rollout: Rollout, step: int) -> Metrics:
        """Compute the targets with the algorithm's current state, and optimise on them."""
        self.step_on.algorithm = self.algorithm.at(self.state)
        rollout = self.step_on.algorithm.targets(rollout, self.state)
        return {"return": rollout.row_mean(rollout.rewards.sum(-1)), **self._optimise(rollout, step)}

    def _optimise(self, rollout: Rollout, step: int) -> Metrics:
        """Take the minibatch steps on one rollout, and return the mean metrics over the steps."""
        minibatches = self._minibatches(rollout.rows, step)
        updates = len(minibatches)
        first, total = step * updates, self.config.steps * updates
        sums: Metrics = {}
        if self.trust_region is not None:
            sums = self.trust_region.step(rollout, learning_rate_factor(self.config, first, total))
        for update, rows in enumerate(minibatches):
            metrics = self.step_on(rollout.select(rows.to(rollout.input_ids.device)), first + update, total)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value / updates
        if self.algorithm.needs.final_kl:
            sums["final_kl_per_token"] = self._final_kl(rollout)
        return sums

    def _minibatches(self, rows: int, step: int) -> list[Tensor]:
        """Return the rows of each minibatch: `epochs` shuffled passes over the rollout; no unit is split."""
        together = self.algorithm.rows_per_unit
        units, size = rows // together, self.config.minibatch_size // together
        seed, name = stream_seed(self.run.seed, step), f"{self.run.name}/minibatch"
        updates = range(self.config.epochs * -(-units // size))
        chosen = [torch.tensor(minibatch_indices(update, units, size, seed, name)) for update in updates]
        # Sorted, so that responses to one prompt are adjacent and share it in a forward pass.
        return [(unit.sort()[0][:, None] * together + torch.arange(together)).flatten() for unit in chosen]

    def _forward(self, batch: Rollout) -> Outputs:
        outputs = policy_outputs(
            self.policy,
            batch,
            temperature=self.config.temperature,
            entropy=self.algorithm.needs.entropies,
            reference=self.reference if self.algorithm.needs.exact_kl else None,
        )
        return outputs if self.critic is None else replace(outputs, values=values(self.critic, batch))

    @torch.no_grad()
    def _final_kl(self, rollout: Rollout) -> float:
        """Estimate KL(π_old ‖ π_θ) in nats per token after the last update, with k3 on the samples of π_old."""
        outputs = forward_in_parts(self._forward, rollout, self.micro_size)
        kl = kl_k3(rollout.old_logprobs, outputs.logprobs)
        return ((kl * rollout.token_weights).sum() / rollout.token_weights.sum()).item()

    def _trust_region(self) -> TrustRegion:
        algorithm = cast(TrustRegionAlgorithm, self.algorithm)
        return TrustRegion(self.policy, algorithm, self.config.micro_batch_size, self.config.temperature)

    def _save(self) -> None:
        state = {
            "policy": trained_state(self.policy),
            "optimizer": self.step_on.state_dict(),
            "state": self.state,
            "history": self.history,
        }
        if self.critic is not None:
            state["critic"] = trained_state(self.critic)
        self.run.resume.save(state)

    def _restore(self) -> None:
        saved = self.run.resume.load()
        if saved is None:
            return
        load_trained_state(self.policy, saved["policy"])
        if self.critic is not None:
            load_trained_state(self.critic, saved["critic"])
        self.step_on.load_state_dict(saved["optimizer"])
        self.state, self.history = saved["state"], saved["history"]


def _check(algorithm: OnPolicyAlgorithm, prompts: Sequence[Prompt], sampler: Sampler, config: OnlineConfig) -> None:
    check_loop(config, algorithm)
    needed = config.rollout_size // algorithm.group_size
    if needed > len(prompts):
        raise UserError(
            f"rollout_size {config.rollout_size} needs {needed} prompts, but the data has {len(prompts)}. "
            "Lower rollout_size, or add prompts."
        )
    if sampler.temperature != config.temperature:
        raise ValueError(f"the sampler has temperature {sampler.temperature}, the loop {config.temperature}")
    if sampler.truncates:
        raise ValueError("the sampler truncates the policy's distribution (docs/pitfalls.md, 29)")


def _rollout_metrics(
    rollout: Rollout, terms: Mapping[str, Tensor], algorithm: OnPolicyAlgorithm, epochs: int
) -> Metrics:
    """Return metrics of the sampled responses; `kl` to the reference, if known, is in nats per response."""
    mean = rollout.row_mean(rollout.scores)
    tokens = rollout.lengths.sum().item()
    metrics = {
        "score": mean,
        "score_std": rollout.row_mean((rollout.scores - mean).square()) ** 0.5,
        "response_length": rollout.row_mean(rollout.lengths),
        "ended_fraction": rollout.row_mean(rollout.ended),
        "sampled_tokens": tokens,
        "trained_tokens": tokens * epochs,
    }
    if algorithm.needs.reference:
        logratios = sequence_sum(rollout.old_logprobs - rollout.ref_logprobs, rollout.response_mask)
        metrics["kl"] = rollout.row_mean(logratios)
    if algorithm.group_size > 1:
        metrics["equal_group_fraction"] = equal_groups(rollout.scores, algorithm.group_size).float().mean().item()
    reused = rollout.old_logprobs is rollout.sampler_logprobs
    if not reused and not bool(rollout.sampler_logprobs.isnan().any()):
        gap = (rollout.old_logprobs - rollout.sampler_logprobs).abs() * rollout.response_mask
        metrics["sampler_gap"] = ((gap * rollout.row_weights[:, None]).sum() / rollout.token_weights.sum()).item()
        metrics["sampler_gap_max"] = gap.max().item()
    return metrics | {f"reward_{name}": rollout.row_mean(value) for name, value in terms.items()}
