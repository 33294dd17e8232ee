"""Ensembles of reward models: one score from M. Coste et al. 2023, arXiv:2310.02743; Eisenstein et al. 2023,
arXiv:2312.09244.

Mean and minimum (worst case) are theirs. Coste et al.'s uncertainty-weighted score is the mean less λ times the
variance; here it is the mean less λ times the standard deviation, which has the unit of the score.

On disk member 1 is the folder itself, a plain Hugging Face folder; the others stand in its `members/2`, `members/3` ...
Its config.json says how they are summed up (`reward_members`, `reward_aggregate`, `reward_std_coef`). Every member is
centred on its own, since a reward model is only known up to a constant: without that the minimum would always be the
same member's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_core.models.store import ScalarModel, load_scalar_model, save_scalar_model

Aggregate = Literal["mean", "min", "mean_minus_std"]


def aggregate(scores: Tensor, how: Aggregate, std_coef: float) -> Tensor:
    """(M, ...) -> (...): the members' mean, their minimum, or mean − λ std with the population std (1/M)."""
    if how == "min":
        return scores.amin(0)
    if how == "mean":
        return scores.mean(0)
    return scores.mean(0) - std_coef * scores.std(0, correction=0)


class ScalarEnsemble(nn.Module):
    """M scalar models as one. All have the same scale, so that the aggregate of their scores has it too."""

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
        """What raw scores are centred with: the members' mean offset."""
        return sum(member.offset for member in self.models) / len(self.members)

    @property
    def scale(self) -> float:
        """What centred scores are divided by."""
        return self.models[0].scale

    def set_normalisation(self, offset: float, scale: float) -> None:
        """Shift every member by `offset` beyond its own, which shifts the aggregate by it, and set their scale."""
        for member in self.models:
            member.set_normalisation(member.offset + offset, scale)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """(B, P+R) three times -> the aggregate at every token, (B, P+R)."""
        scores = torch.stack([member(input_ids, attention_mask, position_ids) for member in self.members])
        return aggregate(scores, self.how, self.std_coef)


def save_reward_model(model: ScalarModel | ScalarEnsemble, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a single reward model, or an ensemble with its further members in folders of their own."""
    if isinstance(model, ScalarEnsemble):
        first, *others = model.models
        first.model.config.reward_members = len(model.members)
        first.model.config.reward_aggregate = model.how
        first.model.config.reward_std_coef = model.std_coef
        for number, member in enumerate(others, 2):
            save_scalar_model(member, tokenizer, member_folder(path, number))
        model = first
    save_scalar_model(model, tokenizer, path)


def load_reward_model(path: str | Path) -> ScalarModel | ScalarEnsemble:
    """What `save_reward_model` wrote, centring and scale included."""
    first = load_scalar_model(path)
    config = first.model.config
    count = getattr(config, "reward_members", 1)
    if count == 1:
        return first
    others = [load_scalar_model(member_folder(Path(path), number)) for number in range(2, count + 1)]
    return ScalarEnsemble([first, *others], config.reward_aggregate, config.reward_std_coef)


def member_folder(path: Path, number: int) -> Path:
    """Where member `number`, 1 the first, of an ensemble at `path` stands."""
    return path if number == 1 else path / "members" / str(number)
