"""The tensors that flow from prompts to a loss.

A batch is rectangular: the first P columns are left-padded prompts, the last R columns right-padded responses.
B rows, P prompt tokens, R response tokens. Values that are not computed yet are NaN: a term that reads one by mistake
stops the run instead of training on zeros.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import Tensor, torch


@dataclass(frozen=True)
class Example:
    """One tokenised prompt and response; the response ends with its end token unless it was cut off.

    The feedback on it; fields without feedback are NaN:
    preference: the probability that the row is the better one of its pair; chosen 1, rejected 0, both ½ for a tie.
    margin: subtracted from the difference of a pair's scores before the sigmoid.
    rating: the score, standardised over the training data. rank: 1 is the best, ties have equal ranks.
    desirable: 1 for a good response, 0 for a bad one (KTO).
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    ref_logprobs: Sequence[float] | None = None
    preference: float = math.nan
    margin: float = math.nan
    rating: float = math.nan
    rank: float = math.nan
    desirable: float = math.nan


# Rows that are never separated: one row for SFT, (chosen, rejected) for a pair, K rows for a ranking.
Unit = tuple[Example, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of prompts and responses.

    input_ids, attention_mask: (B, P+R). response_mask: (B, R), 1 through the end token.
    ref_logprobs: (B, R) under the frozen reference, NaN unless the method needs them.
    units: (B,), the number of each row's unit; the rows of a unit are adjacent and stay in one microbatch.
    preferences, margins, ratings, ranks, desirable: (B,), as in Example, NaN if missing.
    reference_points: (B,), KTO's z_0, NaN until KTO's `prepare` has computed it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    ref_logprobs: Tensor
    units: Tensor
    preferences: Tensor
    margins: Tensor
    ratings: Tensor
    ranks: Tensor
    desirable: Tensor
    reference_points: Tensor

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    @property
    def response_length(self) -> int:
        """R."""
        return self.response_mask.shape[1]

    @property
    def response_ids(self) -> Tensor:
        """The last R columns of input_ids, (B, R)."""
        return self.input_ids[:, -self.response_length :]

    @property
    def lengths(self) -> Tensor:
        """Response tokens per row, the end token included, (B,)."""
        return self.response_mask.sum(-1)

    @property
    def unit_sizes(self) -> list[int]:
        """Rows of each unit, in order; they sum to B."""
        sizes: list[int] = self.units.unique_consecutive(return_counts=True)[1].tolist()
        return sizes

    def select(self, rows: Tensor | slice) -> Self:
        """The given rows of every tensor."""
        return dataclasses.replace(
            self, **{item.name: getattr(self, item.name)[rows] for item in dataclasses.fields(self)}
        )

    def to(self, device: "torch.device") -> Self:
        """Every tensor on `device`."""
        return dataclasses.replace(
            self, **{item.name: getattr(self, item.name).to(device) for item in dataclasses.fields(self)}
        )


@dataclass(frozen=True)
class Rollout(Batch):
    """A batch sampled from the policy, with values computed at sampling; no gradients.

    old_logprobs, old_values, rewards, advantages, returns: (B, R). scores: (B,), one score per response.
    sampler_logprobs: (B, R), as the sampler computed them; NaN if it does not give them.
    ended: (B,), True if the response has an end token, False if it was cut off at the length limit.
    row_weights: (B,), the weight of each row, with mean 1: 1 for sampled rows; B times the probability of each row if
    all responses are enumerated.
    Rows of one group (the G responses to one prompt) are adjacent.
    """

    old_logprobs: Tensor
    sampler_logprobs: Tensor
    old_values: Tensor
    scores: Tensor
    ended: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    row_weights: Tensor

    @classmethod
    def of(cls, batch: Batch, **computed: Tensor) -> "Rollout":
        """A rollout of `batch` with the computed tensors; all others are NaN."""
        shape, device = batch.response_mask.shape, batch.response_mask.device
        given = {item.name: getattr(batch, item.name) for item in dataclasses.fields(Batch)} | computed
        shapes = {item.name: shape for item in dataclasses.fields(cls)}
        shapes |= dict.fromkeys(("scores", "ended", "row_weights"), shape[:1])
        nothing = {name: not_computed(*size, device=device) for name, size in shapes.items() if name not in given}
        return cls(**nothing | given)

    @property
    def token_weights(self) -> Tensor:
        """The weight of each response token, (B, R); for sampled rows, this is the response mask."""
        return self.response_mask * self.row_weights[:, None]

    def row_mean(self, values: Tensor) -> float:
        """The mean of one number per row, weighted by `row_weights`, (B,) -> one number."""
        return ((values * self.row_weights).sum() / self.row_weights.sum()).item()

    def with_targets(
        self, *, advantages: Tensor, returns: Tensor | None = None, rewards: Tensor | None = None
    ) -> "Rollout":
        """The same rollout with the targets that the algorithm computed."""
        return dataclasses.replace(
            self,
            advantages=advantages,
            returns=self.returns if returns is None else returns,
            rewards=self.rewards if rewards is None else rewards,
        )


@dataclass(frozen=True)
class Outputs:
    """The results of one forward pass for an algorithm, without logits and prompt columns.

    logprobs, entropies, values, exact_kl (KL(π_θ‖π_ref) at each state, summed over the vocabulary): (B, R);
    scores: (B,). Values that the pass did not compute are NaN.
    """

    logprobs: Tensor
    entropies: Tensor
    values: Tensor
    scores: Tensor
    exact_kl: Tensor

    @classmethod
    def of(cls, batch: Batch, **computed: Tensor) -> "Outputs":
        """Outputs for `batch` with the computed tensors; all others are NaN."""
        shape, device = batch.response_mask.shape, batch.response_mask.device
        shapes = {item.name: shape for item in dataclasses.fields(cls)} | {"scores": shape[:1]}
        return cls(**{name: not_computed(*size, device=device) for name, size in shapes.items()} | computed)


def not_computed(*shape: int, device: "torch.device | None" = None) -> Tensor:
    """A tensor of NaN. A loss that reads it by mistake is NaN, which stops the step."""
    return torch.full(shape, float("nan"), device=device)


def collate_units(units: Sequence[Unit], pad_id: int) -> Batch:
    """Pad the examples of units into one Batch, and number its units."""
    batch = collate([example for unit in units for example in unit], pad_id)
    numbers = [number for number, unit in enumerate(units) for _ in unit]
    return dataclasses.replace(batch, units=torch.tensor(numbers))


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad examples into one Batch: prompts on the left, responses on the right. Each row is one unit.

    Raises:
        UserError: a row has no prompt token or no response token; states the index of the row.
    """
    for row, example in enumerate(examples):
        for name, ids in (("prompt", example.prompt_ids), ("response", example.response_ids)):
            if len(ids) == 0:
                raise UserError(f"row {row} of the batch has an empty {name}. Drop it when preparing the data.")
    prompt_width = max(len(example.prompt_ids) for example in examples)
    response_width = max(len(example.response_ids) for example in examples)
    input_ids = torch.full((len(examples), prompt_width + response_width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    ref_logprobs = not_computed(len(examples), response_width)
    for row, example in enumerate(examples):
        start = prompt_width - len(example.prompt_ids)
        stop = prompt_width + len(example.response_ids)
        input_ids[row, start:stop] = torch.tensor([*example.prompt_ids, *example.response_ids])
        attention_mask[row, start:stop] = 1
        if example.ref_logprobs is not None:
            ref_logprobs[row] = 0.0
            ref_logprobs[row, : len(example.ref_logprobs)] = torch.tensor(example.ref_logprobs)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_mask=attention_mask[:, prompt_width:].float(),
        ref_logprobs=ref_logprobs,
        units=torch.arange(len(examples)),
        preferences=torch.tensor([example.preference for example in examples]),
        margins=torch.tensor([example.margin for example in examples]),
        ratings=torch.tensor([example.rating for example in examples]),
        ranks=torch.tensor([example.rank for example in examples]),
        desirable=torch.tensor([example.desirable for example in examples]),
        reference_points=not_computed(len(examples)),
    )
