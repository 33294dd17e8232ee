"""Ensembles of reward models: one score from M members. Coste et al. 2023, arXiv:2310.02743; Eisenstein et al. 2023,
arXiv:2312.09244.

Mean and minimum (worst case) follow these papers. Coste et al.'s uncertainty-weighted score is the mean minus λ times
the variance; here it is the mean minus λ times the standard deviation, which has the unit of the score.

On disk, member 1 is the folder itself, a plain Hugging Face folder; the others are in its subfolders `members/2`,
`members/3` ... Its config.json stores the aggregation (`reward_members`, `reward_aggregate`, `reward_std_coef`). Each
member is centred separately, since a reward model is determined only up to a constant. Without centring, the member
with the lowest constant would always give the minimum.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.models.store import ScalarModel, load_scalar_model, plain_states, save_scalar_model

Aggregate = Literal["mean", "min", "mean_minus_std"]


def aggregate(scores: Tensor, how: Aggregate, std_coef: float) -> Tensor:
    """(M, ...) -> (...): the members' mean, their minimum, or mean − λ std with the population std (1/M)."""
    if how == "min":
        return scores.amin(0)
    if how == "mean":
        return scores.mean(0)
    return scores.mean(0) - std_coef * scores.std(0, correction=0)


class ScalarEnsemble(nn.Module):
    """M scalar models combined into one. All members have the same scale, and so has the aggregate."""

    def __init__(self, members: Sequence[ScalarModel], how: Aggregate, std_coef: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.how: Aggregate = how
        self.std_coef = std_coef

    @property
    def models(self) -> list[ScalarModel]:
        """The members, typed."""
        return [cast("ScalarModel", member) for member in self.members]

    @property
    def offset(self) -> float:
        """The offset subtracted from raw scores: the mean offset of the members."""
        return sum(member.offset for member in self.models) / len(self.members)

    @property
    def scale(self) -> float:
        """The divisor of centred scores."""
        return self.models[0].scale

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the members read texts with a tokenizer or a chat template that is not the policy's."""
        return self.models[0].has_own_tokenizer

    def set_normalisation(self, offset: float, scale: float) -> None:
        """Add `offset` to every member's offset, which shifts the aggregate by the same amount, and set the scale."""
        for member in self.models:
            member.set_normalisation(member.offset + offset, scale)

    @property
    def has_layouts(self) -> bool:
        """Whether all members run on packed tokens (`attention`)."""
        return all(member.has_layouts for member in self.models)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Return the aggregate at every token, (B, P+R). All three arguments are (B, P+R)."""
        return self.scalars(lambda model: plain_states(model, input_ids, attention_mask, position_ids))

    def scalars(self, states_of: Callable[[PreTrainedModel], Tensor]) -> Tensor:
        """Return the aggregate for each hidden state, (...), from states_of(transformer), (..., d)."""
        scores = torch.stack([member.scalars(states_of) for member in self.models])
        return aggregate(scores, self.how, self.std_coef)


def save_reward_model(model: ScalarModel | ScalarEnsemble, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Save a single reward model, or an ensemble with one folder per member."""
    if isinstance(model, ScalarEnsemble):
        first, *others = model.models
        first.model.config.reward_members = len(model.members)
        first.model.config.reward_aggregate = model.how
        first.model.config.reward_std_coef = model.std_coef
        for number, member in enumerate(others, 2):
            save_scalar_model(member, tokenizer, member_folder(path, number))
        model = first
    save_scalar_model(model, tokenizer, path)


def load_reward_model(
    path: str | Path, load: Callable[[Path], ScalarModel] = load_scalar_model
) -> ScalarModel | ScalarEnsemble:
    """Load a reward model saved by `save_reward_model`, including centring and scale. `load` loads each member."""
    first = load(Path(path))
    config = first.model.config
    count = getattr(config, "reward_members", 1)
    if count == 1:
        return first
    others = [load(member_folder(Path(path), number)) for number in range(2, count + 1)]
    return ScalarEnsemble([first, *others], config.reward_aggregate, config.reward_std_coef)


def member_folder(path: Path, number: int) -> Path:
    """Return the folder of member `number` (from 1) of an ensemble at `path`."""
    return path if number == 1 else path / "members" / str(number)
