"""The loop for sampled data: PPO, GRPO and their family.

prompts -> Rollout -> targets -> token losses -> scalar
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm
from rlhf_core.algorithms.base.config import OnlineConfig, check_loop, learning_rate_factor
from rlhf_core.common.batch import Batch, Outputs, Rollout, not_computed
from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import seed_everything, stream_seed
from rlhf_core.loops.common.run import Metrics, Run, is_mark, minibatch_indices, stream_indices
from rlhf_core.loops.common.update import GradientStep, forward_in_parts
from rlhf_core.loops.trust_region import TrustRegion, TrustRegionAlgorithm
from rlhf_core.maths.advantages import equal_groups
from rlhf_core.maths.kl import kl_k3
from rlhf_core.maths.reductions import sequence_sum
from rlhf_core.models.forward import policy_outputs, response_logprobs, values
from rlhf_core.models.sampling import Sampler, sampled_batch
from rlhf_core.models.tokens import Prompt, decode_response
from rlhf_core.scoring.rewards import Sampled, WeightedSum


@dataclass(frozen=True)
class Critic:
    """A model with one scalar per token, and its peak learning rate."""

    model: nn.Module
    learning_rate: float


@dataclass(frozen=True)
class Models:
    """The models of a run on sampled data; the critic only where the algorithm needs one."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: Critic | None
    tokenizer: PreTrainedTokenizerBase


class OnlineTraining:
    """One training of `models.policy` in place; `history` holds one dict of metrics per rollout."""

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
        check_loop(config, algorithm)
        if config.rollout_size > len(prompts) * algorithm.group_size:
            needed = config.rollout_size // algorithm.group_size
            raise UserError(
                f"rollout_size {config.rollout_size} needs {needed} prompts; there are {len(prompts)}. "
                "Lower rollout_size, or give more prompts."
            )
        if sampler.temperature != config.temperature:
            raise ValueError(f"sampling at temperature {sampler.temperature}, training at {config.temperature}")
        self.accelerator, self.algorithm, self.reward = accelerator, algorithm, reward
        self.prompts, self.sampler, self.config, self.run = prompts, sampler, config, run
        self.tokenizer = models.tokenizer
        self.policy = accelerator.prepare(models.policy)
        self.reference = accelerator.prepare_model(models.reference, evaluation_mode=True)
        self.critic = None if models.critic is None else accelerator.prepare(models.critic.model)
        trained = {"policy": (self.policy, config.learning_rate)}
        self.trust_region = None
        if algorithm.needs.trust_region:
            natural = cast(TrustRegionAlgorithm, algorithm)
            self.trust_region = TrustRegion(self.policy, natural, config.micro_batch_size, config.temperature)
            del trained["policy"]
        if models.critic is not None:
            trained["critic"] = (self.critic, models.critic.learning_rate)
        self.step_on: GradientStep[Rollout] = GradientStep(
            accelerator, algorithm, self._forward, trained, config, config.micro_batch_size // algorithm.rows_per_unit
        )
        self.state = algorithm.initial_state()
        self.history: list[Metrics] = []

    def train(self) -> list[Metrics]:
        """Run every rollout that is still to do."""
        self._restore()
        for step in range(len(self.history), self.config.steps):
            seed_everything(self.run.seed, self.run.name, self.accelerator.process_index, step)
            rollout, metrics = self.rollout(step)
            self.step_on.algorithm = self.algorithm.at(self.state)
            rollout = self.step_on.algorithm.targets(rollout, self.state)
            metrics["return"] = self._row_mean(rollout, rollout.rewards.sum(-1))
            metrics |= self._optimise(rollout, step)
            metrics |= self.state
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
        """Sample responses, score them, and record what policy, reference and critic say of them."""
        self.policy.eval()
        size = self.config.rollout_size // self.algorithm.group_size
        indices = stream_indices(step, len(self.prompts), size, self.run.seed, self.run.name)
        prompts, responses, row_weights = self.draw([self.prompts[index] for index in indices])
        batch, _ = sampled_batch([prompt.ids for prompt in prompts], responses, self.sampler.pad_token)
        batch = batch.to(self.accelerator.device)
        sampled = Sampled(
            batch=batch,
            ended=torch.tensor([self.sampler.ended(ids) for ids in responses], device=self.accelerator.device),
            prompts=prompts,
            texts=[decode_response(self.tokenizer, ids) for ids in responses],
        )
        scores, parts = self.reward(sampled)
        rollout = self._record(batch, scores, sampled.ended, row_weights.to(scores))
        self.policy.train()
        return rollout, self._rollout_metrics(rollout, parts)

    def draw(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[list[int]], Tensor]:
        """group_size responses to each prompt, adjacent: the prompt of each row, its response, its row weight."""
        repeated = [prompt for prompt in prompts for _ in range(self.algorithm.group_size)]
        responses = self.sampler.responses(self.policy, [prompt.ids for prompt in repeated])
        return repeated, responses, torch.ones(len(repeated))

    def _record(self, batch: Batch, scores: Tensor, ended: Tensor, row_weights: Tensor) -> Rollout:
        old, ref, critic = [], [], []
        for start in range(0, batch.rows, self.config.micro_batch_size):
            part = batch.select(slice(start, start + self.config.micro_batch_size))
            old.append(response_logprobs(self.policy, part, temperature=self.config.temperature))
            ref.append(response_logprobs(self.reference, part, temperature=self.config.temperature))
            if self.critic is not None:
                critic.append(values(self.critic, part))
        nothing = not_computed(*batch.response_mask.shape, device=batch.response_mask.device)
        return Rollout(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            response_mask=batch.response_mask,
            ref_logprobs=torch.cat(ref),
            units=torch.arange(batch.rows, device=scores.device) // self.algorithm.rows_per_unit,
            labels=batch.labels,
            margins=batch.margins,
            old_logprobs=torch.cat(old),
            old_values=torch.cat(critic) if critic else nothing,
            scores=scores,
            ended=ended,
            rewards=nothing,
            advantages=nothing,
            returns=nothing,
            row_weights=row_weights,
        )

    def _forward(self, batch: Rollout) -> Outputs:
        outputs = policy_outputs(
            self.policy,
            batch,
            temperature=self.config.temperature,
            entropy=self.algorithm.needs.entropies,
            reference=self.reference if self.algorithm.needs.exact_kl else None,
        )
        return outputs if self.critic is None else replace(outputs, values=values(self.critic, batch))

    def _optimise(self, rollout: Rollout, step: int) -> Metrics:
        """Several passes of minibatch steps over one rollout; the metrics are means over those steps."""
        sums: Metrics = {}
        together = self.algorithm.rows_per_unit
        units, size = rollout.rows // together, self.config.minibatch_size // together
        updates = self.config.epochs * -(-units // size)
        first, total = step * updates, self.config.steps * updates
        if self.trust_region is not None:
            sums = self.trust_region.step(rollout, learning_rate_factor(self.config, first, total))
        seed, name = stream_seed(self.run.seed, step), f"{self.run.name}/minibatch"
        for update in range(updates):
            chosen = torch.tensor(minibatch_indices(update, units, size, seed, name))
            rows = (chosen[:, None] * together + torch.arange(together)).flatten()
            minibatch = rollout.select(rows.to(rollout.input_ids.device))
            metrics = self.step_on(minibatch, first + update, total)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value / updates
        if self.algorithm.needs.final_kl:
            sums["final_kl_per_token"] = self._final_kl(rollout)
        return sums

    @torch.no_grad()
    def _final_kl(self, rollout: Rollout) -> float:
        """KL(π_old ‖ π_θ) in nats per token after the last update, from the samples of π_old by k3."""
        outputs = forward_in_parts(self._forward, rollout, self.config.micro_batch_size)
        kl = kl_k3(rollout.old_logprobs, outputs.logprobs)
        return ((kl * rollout.token_weights).sum() / rollout.token_weights.sum()).item()

    def _rollout_metrics(self, rollout: Rollout, parts: dict[str, Tensor]) -> Metrics:
        kl = sequence_sum(rollout.old_logprobs - rollout.ref_logprobs, rollout.response_mask)
        mean = self._row_mean(rollout, rollout.scores)
        metrics = {
            "score": mean,
            "score_std": self._row_mean(rollout, (rollout.scores - mean).square()) ** 0.5,
            "kl": self._row_mean(rollout, kl),
            "response_length": self._row_mean(rollout, rollout.lengths),
            "ended_fraction": self._row_mean(rollout, rollout.ended),
            "sampled_tokens": rollout.lengths.sum().item(),
            "trained_tokens": rollout.lengths.sum().item() * self.config.epochs,
        }
        if self.algorithm.group_size > 1:
            equal = equal_groups(rollout.scores, self.algorithm.group_size)
            metrics["equal_group_fraction"] = equal.float().mean().item()
        return metrics | {f"reward_{name}": self._row_mean(rollout, value) for name, value in parts.items()}

    @staticmethod
    def _row_mean(rollout: Rollout, values: Tensor) -> float:
        return ((values * rollout.row_weights).sum() / rollout.row_weights.sum()).item()

    def _save(self) -> None:
        state = {
            "policy": self.policy.state_dict(),
            "optimizer": self.step_on.state_dict(),
            "state": self.state,
            "history": self.history,
        }
        if self.critic is not None:
            state["critic"] = self.critic.state_dict()
        self.run.resume.save(state)

    def _restore(self) -> None:
        saved = self.run.resume.load()
        if saved is None:
            return
        self.policy.load_state_dict(saved["policy"])
        if self.critic is not None:
            self.critic.load_state_dict(saved["critic"])
        self.step_on.load_state_dict(saved["optimizer"])
        self.state, self.history = saved["state"], saved["history"]
