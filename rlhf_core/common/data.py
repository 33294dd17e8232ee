"""The kinds of data that methods learn from and that forms of feedback give."""

from enum import StrEnum


class Data(StrEnum):
    """What a method learns from."""

    PAIRS = "pairs"  # preferences
    UNPAIRED = "unpaired"  # responses labelled good or bad
    RATINGS = "ratings"
    RANKINGS = "rankings"
    ROLLOUTS = "rollouts"  # responses of the current policy, with their rewards
    BEST_OF_N = "best_of_n"  # the best of N responses of the SFT model
    NOTHING = "none"

    @property
    def is_rewarded(self) -> bool:
        """Whether the method uses policy.rewards."""
        return self in (Data.ROLLOUTS, Data.BEST_OF_N, Data.NOTHING)

    @property
    def unit_rows(self) -> int:
        """The rows of a unit: 2 for a pair, and for a labelled response, which comes with a mismatched row."""
        return 2 if self in (Data.PAIRS, Data.UNPAIRED) else 1
