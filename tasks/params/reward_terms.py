"""An entry of policy.rewards: a term, its weight, and the options that the terms declare in their own files."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rlhf_core.common.fields import check_bounds, from_section, setting
from rlhf_core.scoring.term import Need, Term
from rlhf_core.scoring.terms_table import terms
from tasks.params.options import Member, changed_without_effect, make_section, options_of
from tasks.params.sections import Section


@dataclass(frozen=True, kw_only=True)
class Entry(Section):
    """One term of the reward for sampled responses. The weighted terms are summed; each is logged separately."""

    name: str = "model"
    weight: float = setting(1.0, "factor of the term")
    if TYPE_CHECKING:
        clamp: ClassVar[float | None]  # options of term model
        model: ClassVar[str | None]
        path: ClassVar[str | None]

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.weight == 0:
            raise ValueError(f"reward {self.name} has weight 0 and so no effect; remove it from the list")
        if unused := changed_without_effect(self, options_of(terms(), "policy.rewards"), self.name):
            raise ValueError(f"{unused.item.name} has no effect on reward {self.name}; leave it out")
        _ = self.term  # the term checks its own options

    @property
    def term(self) -> Term:
        """The term with its options."""
        return from_section(terms()[self.name], self)

    @property
    def is_own_model(self) -> bool:
        """Whether the term is the score of a reward model that the run trains."""
        return self.term.needs is Need.FEEDBACK

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        return self.term.label


def _section() -> type[Entry]:
    names: Any = tuple(terms())
    meaning = "; ".join(f"{name}: {term.meaning}" for name, term in terms().items())
    members: list[Member] = [("name", Literal[names], setting(Entry.name, meaning))]
    members += [option.member for option in options_of(terms(), "policy.rewards").values()]
    section: type[Entry] = make_section("RewardTerm", members, (Entry,), Entry.__doc__)
    return section


if TYPE_CHECKING:
    RewardTerm = Entry
else:
    RewardTerm = _section()
