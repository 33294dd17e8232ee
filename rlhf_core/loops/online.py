"""The loop for sampled data: PPO, GRPO and their family.

prompts -> Rollout -> targets -> token losses -> scalar
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.advantages import equal_groups
from rlhf_core.algorithms.base import OnPolicyAlgorithm
from rlhf_core.batch import Batch, Outputs, Rollout, not_computed
from rlhf_core.errors import UserError
from rlhf_core.fields import setting
from rlhf_core.forward import policy_outputs, response_logprobs, values
from rlhf_core.loops.run import Metrics, Run, is_mark, minibatch_indices
from rlhf_core.loops.update import GradientStep, OptimizerConfig
from rlhf_core.reductions import sequence_sum
from rlhf_core.rewards import Sampled, WeightedSum
from rlhf_core.sampling import Sampler, sampled_batch
from rlhf_core.seeding import seed_everything, stream_seed
from rlhf_core.tokens import Prompt, decode_response


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(OptimizerConfig):
    """Training on responses sampled from the policy."""

    steps: int = setting(100, "rollouts", ge=1)
    rollout_size: int = setting(64, "responses per rollout: prompts times group_size", ge=1)
    minibatch_size: int = setting(64, "responses of one optimiser step", ge=1)
    micro_batch_size: int = setting(64, "responses of one forward pass; lower it to save memory", ge=1)
    epochs: int = setting(1, "passes over each rollout", ge=1)
    temperature: float = setting(1.0, "divides the logits for sampling and for every log-probability", gt=0)
    missing_end_penalty: float = setting(1.0, "subtracted from the score of a response that was cut off", ge=0)
    score_clamp: float | None = setting(None, "reward-model scores are held within ± this; null for no limit", gt=0)
    snapshots: int = setting(4, "evenly spaced snapshots of the policy", ge=0)
    resume_every: int = setting(10, "rollouts between two resume states", ge=1)


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
        if config.rollout_size % algorithm.group_size:
            raise ValueError(
                f"rollout_size {config.rollout_size} is not a multiple of group_size {algorithm.group_size}"
            )
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
        trained = [(self.policy, config.learning_rate)]
        if models.critic is not None:
            trained.append((self.critic, models.critic.learning_rate))
        self.step_on: GradientStep[Rollout] = GradientStep(
            accelerator, algorithm, self._forward, trained, config, config.micro_batch_size
        )
        self.state = algorithm.initial_state()
        self.history: list[Metrics] = []

    def train(self) -> list[Metrics]:
        """Run every rollout that is still to do."""
        self._restore()
        for step in range(len(self.history), self.config.steps):
            seed_everything(self.run.seed, self.run.name, self.accelerator.process_index, step)
            rollout, metrics = self.rollout(step)
            rollout = self.algorithm.targets(rollout, self.state)
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
        size = self.config.rollout_size // self.algorithm.group_size
        indices = minibatch_indices(step, len(self.prompts), size, self.run.seed, self.run.name)
        prompts = [self.prompts[i] for i in indices for _ in range(self.algorithm.group_size)]
        self.policy.eval()
        responses = self.sampler.responses(self.policy, [prompt.ids for prompt in prompts])
        self.policy.train()
        batch, _ = sampled_batch([prompt.ids for prompt in prompts], responses, self.sampler.pad_token)
        batch = batch.to(self.accelerator.device)
        sampled = Sampled(
            batch=batch,
            ended=torch.tensor([self.sampler.ended(ids) for ids in responses], device=self.accelerator.device),
            prompts=prompts,
            texts=[decode_response(self.tokenizer, ids) for ids in responses],
        )
        scores, parts = self.reward(sampled)
        rollout = self._record(batch, scores, sampled.ended)
        return rollout, self._rollout_metrics(rollout, parts)

    def _record(self, batch: Batch, scores: Tensor, ended: Tensor) -> Rollout:
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
            old_logprobs=torch.cat(old),
            old_values=torch.cat(critic) if critic else nothing,
            scores=scores,
            ended=ended,
            rewards=nothing,
            advantages=nothing,
            returns=nothing,
        )

    def _forward(self, batch: Rollout) -> Outputs:
        outputs = policy_outputs(
            self.policy,
            batch,
            temperature=self.config.temperature,
            entropy="entropy" in self.algorithm.needs,
        )
        if self.critic is None:
            return outputs
        return Outputs(outputs.logprobs, outputs.entropies, values(self.critic, batch), outputs.scores)

    def _optimise(self, rollout: Rollout, step: int) -> Metrics:
        """Several passes of minibatch steps over one rollout; the metrics are means over those steps."""
        per_epoch = -(-rollout.rows // self.config.minibatch_size)
        updates = self.config.epochs * per_epoch
        sums: Metrics = {}
        for update in range(updates):
            rows = minibatch_indices(
                update,
                rollout.rows,
                self.config.minibatch_size,
                stream_seed(self.run.seed, step),
                f"{self.run.name}/minibatch",
            )
            minibatch = rollout.select(torch.tensor(rows, device=rollout.input_ids.device))
            metrics = self.step_on(minibatch, step * updates + update, self.config.steps * updates)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value / updates
        return sums

    def _rollout_metrics(self, rollout: Rollout, parts: dict[str, Tensor]) -> Metrics:
        kl = sequence_sum(rollout.old_logprobs - rollout.ref_logprobs, rollout.response_mask)
        metrics = {
            "score": rollout.scores.mean().item(),
            "score_std": rollout.scores.std(correction=0).item(),
            "kl": kl.mean().item(),
            "response_length": rollout.lengths.mean().item(),
            "ended_fraction": rollout.ended.float().mean().item(),
            "sampled_tokens": rollout.lengths.sum().item(),
        }
        if self.algorithm.group_size > 1:
            equal = equal_groups(rollout.scores, self.algorithm.group_size)
            metrics["equal_group_fraction"] = equal.float().mean().item()
        return metrics | {f"reward_{name}": value.mean().item() for name, value in parts.items()}

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
