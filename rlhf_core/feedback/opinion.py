"""What an annotator thinks of responses, from which a form of feedback takes the answers that it needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Choice = Literal["A", "B", "tie"]


class Opinion(Protocol):
    """An opinion of responses in the order shown."""

    def verdict(self) -> Choice:
        """The verdict on two responses."""
        ...

    def ranks(self) -> list[int]:
        """The rank of each response; 1 is the best."""
        ...

    def best(self) -> int:
        """The index of the best response."""
        ...

    def scores(self, highest: int) -> list[int]:
        """A score from 1 to `highest` for each response."""
        ...

    def approvals(self) -> list[bool]:
        """Whether each response gets a thumbs up."""
        ...


@dataclass(frozen=True)
class ExactOpinion:
    """The opinion that follows from the worth of each response, in [0, 1], without noise; equal worths tie."""

    worths: Sequence[float]

    def verdict(self) -> Choice:
        """The response with the higher worth."""
        first, second = self.worths
        return "tie" if first == second else "A" if first > second else "B"

    def ranks(self) -> list[int]:
        """One more than the number of different higher worths."""
        ordered = sorted(set(self.worths), reverse=True)
        return [ordered.index(worth) + 1 for worth in self.worths]

    def best(self) -> int:
        """The first of the responses with the highest worth."""
        return list(self.worths).index(max(self.worths))

    def scores(self, highest: int) -> list[int]:
        """The scale divided into equal parts."""
        return [min(1 + int(worth * highest), highest) for worth in self.worths]

    def approvals(self) -> list[bool]:
        """A thumbs up only for full worth."""
        return [worth == 1 for worth in self.worths]
