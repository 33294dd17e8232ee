"""Dynamic sampling: groups that teach nothing are replaced by groups of other prompts before a rollout is recorded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm
from rlhf_core.loops.common.run import Metrics, shuffled
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.rewards import WeightedSum


@dataclass(frozen=True)
class Scored:
    """Sampled responses with the weight, the score and the unweighted reward terms of each row, (B,)."""

    responses: Responses
    row_weights: Tensor
    scores: Tensor
    terms: Mapping[str, Tensor]

    @classmethod
    def by(cls, reward: WeightedSum, responses: Responses, row_weights: Tensor) -> "Scored":
        """The responses with their scores."""
        scores, terms = reward(responses)
        return cls(responses, row_weights.to(scores), scores, terms)

    def with_rows(self, rows: Tensor, other: "Scored") -> "Scored":
        """The same responses, with those of `rows` replaced by the rows of `other`, in order."""
        prompts, responses = list(self.responses.prompts), list(self.responses.responses)
        for source, row in enumerate(rows.tolist()):
            prompts[row], responses[row] = other.responses.prompts[source], other.responses.responses[source]
        return Scored(
            replace(self.responses, prompts=prompts, responses=responses),
            self.row_weights.index_copy(0, rows, other.row_weights),
            self.scores.index_copy(0, rows, other.scores),
            {name: value.index_copy(0, rows, other.terms[name]) for name, value in self.terms.items()},
        )


def replace_dropped(
    first: Scored, algorithm: OnPolicyAlgorithm, sample: Callable[[int, int], Scored]
) -> tuple[Scored, Metrics]:
    """Sample again in the place of each group that the algorithm does not keep, at most `extra_rounds` times.

    DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 11. sample(number, groups) gives `groups` scored groups in extra round
    `number`, counted from 1. After the last round, groups that are still to be dropped stay: a rollout is always full.

    Returns:
        The rollout's rows; and `dropped_group_fraction`, the share of the sampled groups that were replaced, with
        `sampled_tokens`, the number of their tokens.
    """
    size = algorithm.group_size
    scored, keeps = first, algorithm.keeps(first.scores)
    groups, dropped, tokens = len(keeps), 0, 0
    missing = (~keeps).nonzero().flatten()
    for number in range(1, algorithm.extra_rounds + 1):
        if not len(missing):
            break
        rows = (missing[:, None] * size + torch.arange(size, device=missing.device)).flatten()
        tokens += sum(len(scored.responses.responses[row].ids) for row in rows.tolist())
        dropped += len(missing)
        new = sample(number, len(missing))
        scored = scored.with_rows(rows, new)
        missing = missing[~algorithm.keeps(new.scores)]
    return scored, {"dropped_group_fraction": dropped / (groups + dropped), "sampled_tokens": float(tokens)}


def other_prompts(count: int, groups: int, used: Sequence[int], seed: int, stream: str) -> list[int]:
    """Choose `groups` of `count` prompts from the named stream, prompts that are not in `used` first."""
    order = shuffled(count, 0, seed, stream)
    return sorted(order, key=lambda index: index in used)[:groups]
