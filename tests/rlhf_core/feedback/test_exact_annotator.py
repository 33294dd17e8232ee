"""An annotator who knows the worth of responses answers every form of feedback."""

import pytest

from rlhf_core.common.responses import Response
from rlhf_core.feedback.annotator import ask
from rlhf_core.feedback.exact_annotator import ExactAnnotator
from rlhf_core.feedback.opinion import ExactOpinion
from rlhf_core.feedback.table import forms

PROMPT = [{"role": "user", "content": "a"}]
CHECKER = ExactAnnotator("checker", lambda prompt, text: float(text))


def shown(*texts):
    return [(Response([5], text, ended=True), "digest") for text in texts]


def test_worths_become_answers():
    """Worths ½, 1, ½ and 0: 1 is the best, the halves tie. On a scale of 5, 0 is 1, ½ is 3, and 1 is 5."""
    opinion = ExactOpinion([0.5, 1.0, 0.5, 0.0])
    assert opinion.ranks() == [2, 1, 2, 3]
    assert opinion.best() == 1
    assert opinion.scores(5) == [3, 5, 3, 1]
    assert opinion.approvals() == [False, True, False, False]
    assert ExactOpinion([0.5, 0.5, 0.0]).best() == 0


@pytest.mark.parametrize(("worths", "verdict"), [((1.0, 0.5), "A"), ((0.0, 0.5), "B"), ((0.5, 0.5), "tie")])
def test_verdicts(worths, verdict):
    assert ExactOpinion(worths).verdict() == verdict


def test_every_form_accepts_the_answers():
    """`ask` checks each answer; a form for two responses gets two."""
    for kind in forms().values():
        form = kind()
        texts = ("0.5", "1", "0")[: form.shown(3)]
        judgements = ask(CHECKER, form, PROMPT, shown(*texts))
        assert len(judgements) == (len(texts) if form.is_alone else 1)
        assert {judgement.annotator for judgement in judgements} == {"checker"}
