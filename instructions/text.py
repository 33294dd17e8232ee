"""Words, sentences and word pairs of a text, as the checks count them."""

import re
from itertools import pairwise

WORD = re.compile(r"\w+")
# A sentence ends at . ! or ? (with closing quotes or brackets) before a space or the end, or at the end of a line.
SENTENCE_END = re.compile(r"""[.!?]+["')\]]*(?=\s|$)|\n+""")
ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|e\.g|i\.e|etc|no|p\.s)\.$", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters, digits and underscores, as IFEval counts them."""
    return WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line that ends without a mark is a sentence of its own.

    IFEval uses the punkt model of NLTK, which differs at rare abbreviations.
    """
    found, start = [], 0
    for match in SENTENCE_END.finditer(text):
        piece = text[start : match.end()].strip()
        if ABBREVIATION.search(piece) and not match[0].startswith("\n"):
            continue
        if words(piece):
            found.append(piece)
        start = match.end()
    return found + [text[start:].strip()] * bool(words(text[start:]))


def distinct_2(text: str) -> float:
    """Return the share of different word pairs among all pairs of neighbouring words; 1 if there is no pair."""
    plain = [word.lower() for word in words(text)]
    pairs = list(pairwise(plain))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
