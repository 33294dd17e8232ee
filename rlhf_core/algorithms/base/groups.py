"""Groups of responses to one prompt: dynamic sampling, an option that GRPO and RLOO share."""

from dataclasses import dataclass

from rlhf_core.common.fields import setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import equal_groups


class HasGroups:
    """A method that compares the `group_size` responses to a prompt."""

    group_size: int


@dataclass(frozen=True, kw_only=True)
class DynamicSampling(HasGroups):
    """DAPO's dynamic sampling, Yu et al. 2025, arXiv:2503.14476, eq. 11: groups with equal scores are sampled anew.

    Such a group has the advantage 0, so it gives no gradient except that of a KL to the reference. With a KL, dropping
    these groups also drops their prompts from the penalty; DAPO has none.
    """

    dynamic_sampling: int = setting(
        0,
        "largest number of extra rounds per rollout that replace groups whose scores are all equal by groups of other "
        "prompts; 0 for none (arXiv:2503.14476, eq. 11)",
        ge=0,
    )

    @property
    def extra_rounds(self) -> int:
        """The largest number of extra sampling rounds per rollout."""
        return self.dynamic_sampling

    def keeps(self, scores: Tensor) -> Tensor:
        """Whether to keep each group, scores (B,) -> bool, (B/G,): not if all its scores are equal."""
        return ~equal_groups(scores, self.group_size)
