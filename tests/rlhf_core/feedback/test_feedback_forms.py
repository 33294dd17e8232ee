"""Every form of feedback: the answers of the simulated panel, the preferences they imply, and the training units."""

import math
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpdesk.generate import DEMONSTRATOR, split_cases, write_reply
from helpdesk.rubric import GOLD_WEIGHTS, features, gold_score
from helpdesk.world import World
from rlhf_core.algorithms.base.table import reward_loss, reward_losses
from rlhf_core.common.batch import Example
from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.feedback.annotator import ask
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.forms.best_of_n import BestOfN
from rlhf_core.feedback.forms.likert import Likert
from rlhf_core.feedback.forms.ranking import Ranking
from rlhf_core.feedback.forms.side_by_side import SideBySide
from rlhf_core.feedback.forms.thumbs import Thumbs
from rlhf_core.feedback.judgement import Judgement, Verdict, preference_row
from rlhf_core.feedback.judgements import agreement, preferences, preferences_of_rows, read_judgement, verdicts
from rlhf_core.feedback.member import EULER_GAMMA, Member, approve, judge, pick, rank, rate, utility
from rlhf_core.feedback.panel import Panelist, panel
from rlhf_core.feedback.table import form as form_named
from rlhf_core.feedback.table import form_feeding, form_of_kind, forms, make_form, stored_forms
from tasks.common.rows import (
    READERS,
    mismatched,
    ranking_units,
    rating_scale,
    rating_units,
    row_sources,
    unpaired_units,
)
from tasks.files.jsonl import write_jsonl
from tasks.stages.collect import Item, _ask, _items
from tiny import END

PLAIN = Member("ann", {"good": 1.0, "bad": -3.0}, 0.0, 0.0, 0.0, 1.0, 0.0)
PROMPT = [{"role": "user", "content": "a"}]
OTHER = [{"role": "user", "content": "b"}]
A, B, C, D = range(6, 10)  # the ids of the words a, b, c, d
CERTAIN = 0.99  # a draw that causes no error


def scripted(*numbers, shuffled=None):
    """A generator that returns these numbers, and shuffles by reversing."""
    numbers = iter(numbers)
    return SimpleNamespace(random=lambda: next(numbers), shuffle=list.reverse, randint=lambda low, high: high)


def uniform(gumbel):
    """The uniform number that gives the Gumbel noise `gumbel`: u = exp(-exp(-g))."""
    return math.exp(-math.exp(-gumbel))


def record(form, choice, responses=("x", "y", "z"), annotator="ann", prompt=PROMPT, tokens=None):
    tokens = [None] * len(responses) if tokens is None else tokens
    return Judgement(form, prompt, list(responses), tokens, choice, annotator, "key", 0)


def text(words, *ids):
    """A response with these ids; without ids it was not sampled."""
    return Response(list(ids), words, ended=True)


# --- answers of annotators ---


def test_ranking_sorts_noisy_utilities():
    """Utilities 1, 0, 3 with noise 0, 2.5, -2.5 are 1, 2.5 and 0.5."""
    noise = [uniform(gumbel) for gumbel in (0.0, 2.5, -2.5)]
    assert rank(PLAIN, [1.0, 0.0, 3.0], scripted(CERTAIN, *noise)) == [2, 1, 3]
    assert pick(PLAIN, [1.0, 0.0, 3.0], scripted(CERTAIN, *noise)) == 1


def test_ranking_has_ties_within_the_band_and_a_position_bias():
    """1, 2.5, 0.5 with a band of 0.6: the two lowest tie. With 1.6 added to the first: 2.6, 2.5, 0.5."""
    noise = [uniform(gumbel) for gumbel in (0.0, 2.5, -2.5)]
    banded = replace(PLAIN, tie_band=0.6)
    assert rank(banded, [1.0, 0.0, 3.0], scripted(CERTAIN, *noise)) == [2, 1, 2]
    biased = replace(banded, position_bias=1.6)
    assert rank(biased, [1.0, 0.0, 3.0], scripted(CERTAIN, *noise)) == [1, 1, 2]


def test_an_error_is_a_random_answer():
    """Flip probability 0.1 is error probability 0.2: a draw of 0.19 is an error. The shuffle reverses (2, 1, 3)."""
    erring = replace(PLAIN, flip_probability=0.1)
    noise = [uniform(gumbel) for gumbel in (0.0, 2.5, -2.5)]
    assert rank(erring, [1.0, 0.0, 3.0], scripted(0.19, *noise)) == [3, 1, 2]
    assert rank(erring, [1.0, 0.0, 3.0], scripted(0.2, *noise)) == [2, 1, 3]
    assert rate(erring, 0.0, 5, scripted(0.19)) == 5
    assert approve(erring, 9.0, scripted(0.19, 0.6)) is False


def test_a_score_is_the_position_between_0_and_the_ideal():
    """The ideal is 1, and a step of the scale is a fifth of it: 0.39 is 2, 0.41 is 3. Beyond the ends: 1 and 5.

    Strictness 0.2 subtracts one step; noise 0.2 above its mean adds one.
    """
    calm = uniform(EULER_GAMMA)
    given = [rate(PLAIN, value, 5, scripted(CERTAIN, calm)) for value in (-3.0, 0.19, 0.39, 0.41, 0.99, 1.0, 9.0)]
    assert given == [1, 1, 2, 3, 5, 5, 5]
    assert rate(replace(PLAIN, strictness=0.2), 0.41, 5, scripted(CERTAIN, calm)) == 2
    assert rate(PLAIN, 0.39, 5, scripted(CERTAIN, uniform(EULER_GAMMA + 0.2))) == 3
    assert rate(PLAIN, 0.39, 10, scripted(CERTAIN, calm)) == 4
    assert [approve(PLAIN, value, scripted(CERTAIN, calm)) for value in (0.49, 0.51)] == [False, True]


def test_rankings_follow_plackett_luce_and_the_best_follows_luce():
    """Worth 3, 2, 1: P(this order) = 3/6 · 2/3 = 1/3, P(first is best) = 1/2. 20,000 draws: standard error 0.0035."""
    rng, worth = random.Random(0), [math.log(3), math.log(2), 0.0]
    orders = Counter(tuple(rank(PLAIN, worth, rng)) for _ in range(20_000))
    assert orders[1, 2, 3] / 20_000 == pytest.approx(1 / 3, abs=0.014)
    assert orders[3, 2, 1] / 20_000 == pytest.approx(1 / 6 * 2 / 5, abs=0.014)
    assert sum(pick(PLAIN, worth, rng) == 0 for _ in range(20_000)) / 20_000 == pytest.approx(1 / 2, abs=0.014)


def test_a_ranking_of_two_is_a_side_by_side_verdict():
    """A, B and ties have the same frequencies with band, bias and errors: 0.9 σ(0.6) + 0.1 σ(-1.6), 20,000 draws."""
    annotator = replace(PLAIN, tie_band=0.5, position_bias=0.1, flip_probability=0.1)
    rng = random.Random(1)
    orders = Counter(tuple(rank(annotator, [1.0, 0.0], rng)) for _ in range(20_000))
    verdicts = Counter(judge(annotator, {"good": 1.0}, {"good": 0.0}, 0, 0, rng) for _ in range(20_000))
    assert orders[1, 2] / 20_000 == pytest.approx(0.9 / (1 + math.exp(-0.6)) + 0.1 / (1 + math.exp(1.6)), abs=0.014)
    for order, verdict in (((1, 2), "A"), ((2, 1), "B"), ((1, 1), "tie")):
        assert orders[order] / 20_000 == pytest.approx(verdicts[verdict] / 20_000, abs=0.02)


class Scripted:
    """An annotator with given answers that records what it was shown."""

    def __init__(self, *answers, id="ann"):
        self.id, self.given, self.seen = id, list(answers), []

    def answers(self, form, prompt, shown):
        self.seen.append((form.name, prompt, [response.text for response in shown]))
        return self.given


@pytest.mark.parametrize("count", [2, 3])
def test_responses_are_shown_in_random_order(count):
    """All orders are equally frequent: 300 or 100 of 600, with standard errors 12 and 9."""
    annotator, rng = Scripted([1] * count), random.Random(0)
    item = Item(PROMPT, tuple((Response([number], f"answer {number}", True), "key") for number in range(count)))
    for _ in range(600):
        (judgement,) = _ask(annotator, Ranking(), item, rng)
        assert judgement.responses == [f"answer {number}" for (number,) in judgement.response_tokens]
        assert annotator.seen[-1] == ("ranking", PROMPT, judgement.responses)
    orders = Counter(tuple(texts) for _, _, texts in annotator.seen)
    assert len(orders) == math.factorial(count)
    assert all(abs(number - 600 / len(orders)) < 50 for number in orders.values())


def test_any_annotator_can_be_asked():
    """A ranking of three has one answer, scores have one per response; the record has what was shown."""
    shown = [(text("x", A, END), "one"), (text("y"), "one"), (text("z", B), "two")]
    (judgement,) = ask(Scripted([2, 1, 3]), Ranking(), PROMPT, shown)
    tokens = [[A, END], None, [B]]
    assert judgement == Judgement(
        "ranking", PROMPT, ["x", "y", "z"], tokens, [2, 1, 3], "ann", ["one", "one", "two"], 0
    )
    scored = ask(Scripted(4, 1, 5), Likert(5), PROMPT, shown)
    assert [(one.responses, one.response_tokens, one.choice, one.checkpoint) for one in scored] == [
        (["x"], [[A, END]], 4, "one"),
        (["y"], [None], 1, "one"),
        (["z"], [[B]], 5, "two"),
    ]
    assert {one.annotator for one in scored} == {"ann"}


def test_an_answer_that_the_form_does_not_accept_is_refused():
    shown = [(text("x"), ""), (text("y"), "")]
    with pytest.raises(UserError, match=r"annotator bob: likert needs one response and a score on the scale"):
        ask(Scripted(4, 6, id="bob"), Likert(5), PROMPT, shown)
    with pytest.raises(ValueError, match="shorter"):  # one answer for two responses
        ask(Scripted(4), Likert(5), PROMPT, shown)


def test_the_panel_answers_every_form_with_the_functions_of_its_members():
    """The same draws from the same generator; the length counts sampled ids, or words if there are no ids."""
    member = panel(GOLD_WEIGHTS, 1, 0)[0]
    texts = {"x": {"right_fix": 1.0}, "y": {"promises": 2.0}, "z": {"flattery": 1.0}}
    shown = [text("x", *[1] * 30), text("y", *[1] * 5), text("z")]
    seen, lengths = list(texts.values()), [30, 5, 1]
    worth = [utility(member, found, length) for found, length in zip(seen, lengths, strict=True)]

    def said(form, count):
        panelist = Panelist(member, lambda prompt, text: texts[text], random.Random(7))
        return panelist.answers(form, PROMPT, shown[:count])

    def rng():
        return random.Random(7)

    assert said(SideBySide(), 2) == [judge(member, *seen[:2], *lengths[:2], rng())]
    assert said(Ranking(), 3) == [rank(member, worth, rng())]
    assert said(BestOfN(), 3) == [pick(member, worth, rng())]
    one = rng()
    assert said(Likert(7), 3) == [rate(member, value, 7, one) for value in worth]
    one = rng()
    assert said(Thumbs(), 3) == ["good" if approve(member, value, one) else "bad" for value in worth]


def test_every_form_agrees_with_gold_on_about_80_percent_of_pairs():
    """Four replies per prompt, like the demonstrations; agreement over the pairs that each form implies, without ties.

    Scores, and thumbs even more, leave close pairs undecided, so the pairs that they decide are right more often.
    """
    world, rng, annotators = World.load(), random.Random(0), panel(GOLD_WEIGHTS, 40, 0)
    right = {form: [] for form in ("ranking", "best_of_n", "likert", "thumbs")}
    ups = []
    for case in split_cases(world, 0)["train"][:600]:
        prompt, annotator = world.prompt(case), rng.choice(annotators)
        replies = [write_reply(world, case, DEMONSTRATOR, rng) for _ in range(4)]
        worth = [utility(annotator, features(world, prompt, text), len(text.split())) for text in replies]
        scores = [rate(annotator, value, 5, rng) for value in worth]
        thumbs = ["good" if approve(annotator, value, rng) else "bad" for value in worth]
        said = {
            "ranking": [record("ranking", rank(annotator, worth, rng), replies)],
            "best_of_n": [record("best_of_n", pick(annotator, worth, rng), replies)],
            "likert": [record("likert", score, [text]) for score, text in zip(scores, replies, strict=True)],
            "thumbs": [record("thumbs", thumb, [text]) for thumb, text in zip(thumbs, replies, strict=True)],
        }
        ups += [thumb == "good" for thumb in thumbs]
        for form, records in said.items():
            for row in preferences(records)[0]:
                gap = gold_score(world, prompt, row["chosen"]) - gold_score(world, prompt, row["rejected"])
                right[form] += [gap > 0] * (abs(gap) > 1e-9)
    shares = {form: sum(hits) / len(hits) for form, hits in right.items()}
    assert 0.77 <= shares["ranking"] <= 0.83
    assert 0.77 <= shares["best_of_n"] <= 0.83
    assert 0.8 <= shares["likert"] <= 0.88
    assert 0.86 <= shares["thumbs"] <= 0.95
    assert 0.4 <= sum(ups) / len(ups) <= 0.8


# --- records ---


@pytest.mark.parametrize(
    ("form", "choice", "responses", "wrong"),
    [
        ("side_by_side", "A", ["x", "y"], "C"),
        ("likert", 4, ["x"], "four"),
        ("ranking", [2, 1, 2], ["x", "y", "z"], [1, 2]),
        ("best_of_n", 2, ["x", "y", "z"], 3),
        ("thumbs", "bad", ["x"], "down"),
    ],
)
def test_records_of_every_form_are_read_back_and_invalid_records_are_refused(form, choice, responses, wrong):
    whole = record(form, choice, responses)
    assert read_judgement(whole.to_row()) == whole
    for broken in ({"choice": wrong}, {"responses": []}):
        with pytest.raises(UserError, match=f"line 3: {form} needs "):
            read_judgement(whole.to_row() | broken, "judgements.jsonl line 3")


def test_a_record_is_checked_with_the_options_of_its_form():
    """9 is beyond the default scale of 5, but not beyond 10; another form's options do not apply."""
    row = record("likert", 9, ["x"]).to_row()
    assert read_judgement(row, asked=Likert(10)).choice == 9
    for other in (None, Likert(5), Ranking()):
        with pytest.raises(UserError, match="likert needs one response and a score on the scale"):
            read_judgement(row, asked=other)


def test_a_record_of_an_unknown_form_is_refused():
    with pytest.raises(UserError, match=r"line 3: the form 'stars' does not exist. Choose from: best_of_n, likert"):
        read_judgement(record("stars", 3).to_row(), "judgements.jsonl line 3")


@pytest.mark.parametrize(
    ("form", "count", "right", "wrong"),
    [
        (SideBySide(), 2, ["A", "B", "tie"], ["C", "", None, 1, ["A"]]),
        (Likert(), 1, [1, 5, 2.5], [0, 5.5, -1, "4", True, math.nan, None]),
        (Likert(9), 1, [1, 9, 2.5], [9.5]),
        (Ranking(), 3, [[1, 2, 3], [1, 1, 1], [1.5, 1, 2]], [[1, 2], [1, 2, "3"], [1, 2, None], [1, 2, True], "123"]),
        (BestOfN(), 3, [0, 2], [3, -1, 1.0, True, "1"]),
        (Thumbs(), 1, ["good", "bad"], ["up", True, 1, ["good"]]),
    ],
)
def test_answers_that_each_form_accepts(form, count, right, wrong):
    assert all(form.accepts(answer, count) for answer in right)
    assert not any(form.accepts(answer, count) for answer in wrong)
    others = {0, 1} - {count} | ({2, 3} if form.is_alone else set())
    assert not any(form.accepts(answer, other) for answer in right for other in others)


def test_question_and_number_of_responses_of_each_form():
    section = SimpleNamespace(scale=7)
    asked = {name: make_form(SimpleNamespace(form=name, **vars(section))) for name in forms()}
    assert {name: (one.question(4), one.shown(4), one.is_alone) for name, one in asked.items()} == {
        "side_by_side": ("two responses side by side", 2, False),
        "likert": ("scores from 1 to 7", 4, True),
        "ranking": ("rankings of 4", 4, False),
        "best_of_n": ("the best of 4", 4, False),
        "thumbs": ("good or bad", 4, True),
    }
    assert [name for name, kind in forms().items() if not kind.has_ties] == ["best_of_n", "thumbs"]


def test_forms_and_reward_losses_fit_together():
    """Every form gives rows for a method; its suggested loss exists and learns from these rows or from pairs."""
    for kind in forms().values():
        assert isinstance(kind.data, Data)
        assert reward_loss(kind.suggested_loss).data in (kind.data, Data.PAIRS)
    feeding = {name: form_feeding(reward_loss(name).data).name for name in reward_losses()}
    assert feeding == {
        "bradley_terry": "side_by_side",
        "thurstone": "side_by_side",
        "likert": "likert",
        "ranking_pairs": "ranking",
        "plackett_luce": "ranking",
        "best_of_n": "ranking",
    }
    with pytest.raises(ValueError, match="no form of feedback gives rows"):
        form_feeding(Data.ROLLOUTS)


def test_rows_of_data_are_read_by_one_form():
    """The best of N is stored as a ranking, so the form `ranking` reads its rows."""
    assert [one.file for one in stored_forms()] == ["preferences", "ratings", "rankings", "unpaired"]
    kinds = {kind: form_of_kind(kind).name for kind in ("preference", "ratings", "rankings", "unpaired")}
    assert list(kinds.values()) == ["side_by_side", "likert", "ranking", "thumbs"]
    assert form_of_kind("prompts") is form_of_kind("") is None
    assert form_named("best_of_n").file == "rankings"


def test_items_are_all_subsets_of_the_size_that_the_form_shows():
    """Of three responses: three pairs in order, or all three at once."""
    row = {
        "prompt": PROMPT,
        "responses": [{"text": t, "tokens": [A], "ended": True, "checkpoint": "key"} for t in "xyz"],
    }
    pairs = ["".join(response.text for response, _ in item.responses) for item in _items(SideBySide(), [row])]
    assert pairs == ["xy", "xz", "yz"]
    (item,) = _items(Thumbs(), [row])
    assert item == Item(PROMPT, tuple((text(word, A), "key") for word in "xyz"))


def test_a_soft_verdict_makes_a_soft_label():
    """0.2 for the first: the second is chosen, with 0.8."""
    row = preference_row(Verdict(PROMPT, ("x", "y"), (None, [A]), 0.2, "model"))
    assert row == {"prompt": PROMPT, "chosen": "y", "rejected": "x", "label": 0.8}


def test_a_new_form_that_implies_no_preference_fits_the_interface():
    """A response written by the annotator: its row is a demonstration, and it implies no preference."""

    class Written(Form):
        name, needs, file, data, suggested_loss = "written", "a text", "demonstrations", Data.NOTHING, "bradley_terry"
        has_ties = False

        def accepts(self, answer, count):
            return isinstance(answer, str)

        def row(self, judgement):
            return {"prompt": judgement.prompt, "response": judgement.choice}

        def worth(self, answer, count):
            return [0.0] * count

    (judgement,) = ask(Scripted("better"), Written(), PROMPT, [(text("x"), ""), (text("y"), "")])
    assert Written().row(judgement) == {"prompt": PROMPT, "response": "better"}
    assert list(Written().verdicts([judgement])) == []


def implied(*records):
    choices = {1: "A", 0: "B", 0.5: "tie"}
    return [(*verdict.responses, choices[verdict.preference]) for verdict in verdicts(records)]


def test_preferences_that_each_form_implies():
    """For x, y, z: ranks 2, 1, 2; y is the best; scores 2, 4, 4; thumbs up only for x."""
    assert implied(record("ranking", [2, 1, 2])) == [("x", "y", "B"), ("x", "z", "tie"), ("y", "z", "A")]
    assert implied(record("best_of_n", 1)) == [("x", "y", "B"), ("y", "z", "A")]
    scores = [record("likert", score, [text]) for text, score in (("x", 2), ("y", 4), ("z", 4))]
    assert implied(*scores) == [("x", "y", "B"), ("x", "z", "B"), ("y", "z", "tie")]
    thumbs = [record("thumbs", said, [text]) for text, said in (("x", "good"), ("y", "bad"), ("z", "bad"))]
    assert implied(*thumbs) == [("x", "y", "A"), ("x", "z", "A")]


def test_scores_of_two_annotators_or_prompts_are_not_compared():
    scores = [
        record("likert", 2, ["x"]),
        record("likert", 5, ["y"], annotator="bob"),
        record("likert", 4, ["z"], prompt=OTHER),
    ]
    assert implied(*scores) == []


def test_agreement_of_rankings():
    """x, y, z: ann ranks 1, 2, 3 and bob 1, 3, 2: they agree on two of three pairs."""
    assert agreement([record("ranking", [1, 2, 3]), record("ranking", [1, 3, 2], annotator="bob")]) == 2 / 3


def test_rows_of_every_form_and_the_preferences_they_imply():
    """Rows have the sampled ids; pairs made from user rows keep the name of the source."""
    ranking = record("best_of_n", 1, ["x", "y"], tokens=[[6, 2], [7, 2]])
    row = {"prompt": PROMPT, "responses": ["x", "y"], "responses_tokens": [[6, 2], [7, 2]], "ranks": [2, 1]}
    assert BestOfN().row(ranking) == row
    assert preferences([ranking])[0] == [
        {"prompt": PROMPT, "chosen": "y", "rejected": "x", "chosen_tokens": [7, 2], "rejected_tokens": [6, 2]}
    ]
    assert Ranking().row(replace(ranking, form="ranking", choice=[1, 1])) == row | {"ranks": [1, 1]}
    pair = record("side_by_side", "B", ["x", "y"], tokens=[[6, 2], [7, 2]])
    assert SideBySide().row(pair) == preferences([ranking])[0][0]
    tie = {"prompt": PROMPT, "chosen": "x", "rejected": "y", "label": 0.5}
    assert SideBySide().row(record("side_by_side", "tie", ["x", "y"], tokens=[None, [7, 2]])) == tie
    rated = {"prompt": PROMPT, "response": "x", "score": 3}
    assert Likert().row(record("likert", 3, ["x"])) == rated
    thumb = {"prompt": PROMPT, "response": "x", "response_tokens": [6, 2], "label": False}
    assert Thumbs().row(record("thumbs", "bad", ["x"], tokens=[[6, 2]])) == thumb

    pairs, counts = preferences_of_rows(Ranking(), [{**row, "source": "forum"}], keep_ties=False)
    assert pairs == [{"prompt": PROMPT, "chosen": "y", "rejected": "x", "source": "forum"}]
    assert counts == {"pairs": 1, "ties": 0, "identical": 0}
    others = [rated, {**rated, "response": "y"}, {**rated, "response": "z", "score": 5, "source": "forum"}]
    assert preferences_of_rows(Likert(), others, keep_ties=True) == (
        [{"prompt": PROMPT, "chosen": "x", "rejected": "y", "label": 0.5}],
        {"pairs": 0, "ties": 1, "identical": 0},
    )
    thumbs = [thumb, {**thumb, "response": "y", "label": True}]
    assert preferences_of_rows(Thumbs(), thumbs, keep_ties=False)[0] == [
        {"prompt": PROMPT, "chosen": "y", "rejected": "x"}
    ]


GIVEN = {
    "preference": {"chosen": "a", "rejected": "b", "label": 0.75, "margin": None},
    "ratings": {"response": "a", "score": 3},
    "rankings": {"responses": ("a", "b"), "ranks": (7, 0.5)},
    "unpaired": {"response": "a", "label": False},
}


def test_each_form_stores_the_rows_of_a_user():
    """Values that are missing are left out, and ranks get no gaps."""
    stored = {kind: form_of_kind(kind).stored({"prompt": PROMPT, "source": None, **row}) for kind, row in GIVEN.items()}
    assert stored == {
        "preference": {"prompt": PROMPT, "chosen": "a", "rejected": "b", "label": 0.75},
        "ratings": {"prompt": PROMPT, "response": "a", "score": 3},
        "rankings": {"prompt": PROMPT, "responses": ["a", "b"], "ranks": [2, 1]},
        "unpaired": {"prompt": PROMPT, "response": "a", "label": False},
    }


# --- units ---


def test_the_file_of_each_form_is_read_by_the_reader_of_its_data(tmp_path, tokenizer):
    """Three rows each of two prompts; the second split has no rows. A thumb comes with a mismatched row."""
    others = {"ratings": {"score": 5}, "unpaired": {"label": True}}
    for kind, given in GIVEN.items():
        form = form_of_kind(kind)
        rows = [given | {"prompt": PROMPT}, given | {"prompt": OTHER}, given | others.get(kind, {}) | {"prompt": OTHER}]
        write_jsonl(tmp_path / f"{form.file}_train.jsonl", [form.stored(row) for row in rows])
        write_jsonl(tmp_path / f"{form.file}_development.jsonl", [])
    sizes = {}
    for form in stored_forms():
        read = READERS[form.data]
        units = read(tmp_path, "train", tokenizer, None)
        assert len(read(tmp_path, "train", tokenizer, 2)) == 2
        assert read(tmp_path, "development", tokenizer, None) == []
        sizes[form.file] = [len(unit) for unit in units]
    assert sizes == {"preferences": [2] * 3, "ratings": [1] * 3, "rankings": [2] * 3, "unpaired": [2] * 3}
    ratings = READERS[Data.RATINGS](tmp_path, "train", tokenizer, None)
    assert [unit[0].rating for unit in ratings] == pytest.approx([-math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2)])


def test_rating_units_hold_standardised_scores(tmp_path, tokenizer):
    """Scores 1, 3, 5: mean 3, population variance 8/3."""
    path = tmp_path / "ratings.jsonl"
    rows = [{"prompt": PROMPT, "response": "c", "score": score} for score in (1, 3, 5)]
    write_jsonl(path, [*rows[:2], rows[2] | {"response_tokens": [A]}])
    mean, std = rating_scale(path)
    assert (mean, std) == pytest.approx((3.0, math.sqrt(8 / 3)))
    units = rating_units(path, tokenizer, mean, std)
    assert [unit[0].rating for unit in units] == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert [unit[0].response_ids for unit in units] == [[C, END], [C, END], [A]]
    write_jsonl(path, [rows[0], rows[0]])
    with pytest.raises(UserError, match="no two different scores"):
        rating_scale(path)


def test_ranking_units_are_as_large_as_their_rankings(tmp_path, tokenizer):
    rows = [
        {"prompt": PROMPT, "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        {"prompt": OTHER, "responses": ["a", "b"], "responses_tokens": [[D], [C]], "ranks": [1, 2]},
    ]
    write_jsonl(tmp_path / "rankings.jsonl", rows)
    units = ranking_units(tmp_path / "rankings.jsonl", tokenizer)
    assert [[row.rank for row in unit] for unit in units] == [[2, 1, 2], [1, 2]]
    assert [row.response_ids for row in units[1]] == [[D], [C]]
    assert len({tuple(row.prompt_ids) for row in units[0]}) == 1


def pair(prompt, chosen, rejected, **more):
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected, **more}


def thumb(prompt, response, label):
    return {"prompt": [{"role": "user", "content": prompt}], "response": response, "label": label}


def test_pairs_become_good_and_bad_rows_without_unpaired_data(tmp_path, tokenizer):
    """A mismatched row has the response with the same label to the next prompt; the tie is excluded."""
    write_jsonl(
        tmp_path / "preferences_train.jsonl", [pair("a", "b", "c"), pair("b", "d", "e"), pair("c", "a", "b", label=0.5)]
    )
    units = unpaired_units(tmp_path, "train", tokenizer)
    seen = [(good.desirable, good.response_ids[0], other.response_ids[0]) for good, other in units]
    assert seen == [(1, B, D), (0, C, D + 1), (1, D, B), (0, D + 1, C)]
    assert all(row.prompt_ids == other.prompt_ids for row, other in units)
    assert all(
        math.isnan(row.margin) and math.isnan(row.preference) and math.isnan(other.desirable) for row, other in units
    )


def test_unpaired_rows_come_before_pairs(tmp_path, tokenizer):
    write_jsonl(tmp_path / "preferences_train.jsonl", [pair("a", "b", "c")])
    write_jsonl(tmp_path / "preferences_development.jsonl", [])
    write_jsonl(tmp_path / "unpaired_train.jsonl", [thumb("a", "b", True), thumb("b", "c", False)])
    units = unpaired_units(tmp_path, "train", tokenizer)
    assert [(row.desirable, row.response_ids[0], other.response_ids[0]) for row, other in units] == [
        (1, B, C),
        (0, C, B),
    ]
    assert unpaired_units(tmp_path, "development", tokenizer) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([thumb("a", "b", True), thumb("b", "c", True)], "split train, has only good responses"),
        ([thumb("a", "b", False)], "has only bad responses"),
        ([thumb("a", "b", True), thumb("a", "c", False)], "has responses to only one prompt"),
        ([], "has neither unpaired rows nor preferences"),
    ],
)
def test_unpaired_data_that_kto_cannot_learn_from_is_refused(tmp_path, tokenizer, rows, message):
    write_jsonl(tmp_path / "unpaired_train.jsonl", rows)
    write_jsonl(tmp_path / "preferences_train.jsonl", [])
    with pytest.raises(UserError, match=message):
        unpaired_units(tmp_path, "train", tokenizer)


@pytest.mark.pitfall(23)
@pytest.mark.parametrize(
    "prompts",
    ["ab", "abc", "aab", "abab", "aabbcc", "aaaaab", "baaaa", "aaabaaacaaa", "abcdeffffff", "aabbbcccc"],
)
def test_mismatched_pairs_never_match(prompts):
    """Odd counts, repeated prompts that are not adjacent, and one prompt with most of the rows."""
    rows = [Example([ord(prompt)], [number, ord(prompt)]) for number, prompt in enumerate(prompts)]
    others = mismatched(rows)
    assert len(others) == len(rows)
    for row, other in zip(rows, others, strict=True):
        assert other in rows
        assert row.prompt_ids != other.prompt_ids
    if len(set(Counter(prompts).values())) == 1:  # every response is used once
        assert {other.response_ids[0] for other in others} == set(range(len(rows)))
    assert mismatched(rows[:1]) is None


def test_sources_have_the_order_of_the_pairs(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [pair("a", "b", "c", source="s"), pair("a", "b", "c")])
    assert row_sources(tmp_path / "p.jsonl") == ["s", None]
