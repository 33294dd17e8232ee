"""Whether a preference is predicted correctly."""

from rlhf_core.common.lazy import Tensor


def correct(chosen: Tensor, rejected: Tensor | float) -> Tensor:
    """1 where chosen is above rejected, ½ where they are equal, else 0, of any shape."""
    return (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
