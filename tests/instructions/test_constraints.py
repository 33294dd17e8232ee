"""Every type of constraint: responses that meet it and responses that do not, worked by hand."""

import random

import pytest

from instructions.constraint import RELATIONS, Constraint, Topic
from instructions.table import UNSUPPORTED, constraint_types, make_constraint, values_of
from rlhf_core.common.errors import UserError

TOPIC = Topic("baking bread", ("flour", "dough", "oven", "loaf"))
# The ids of IFEval (Zhou et al. 2023, arXiv:2311.07911, table 1).
IFEVAL = {
    "keywords:existence", "keywords:frequency", "keywords:forbidden_words", "keywords:letter_frequency",
    "language:response_language", "length_constraints:number_sentences", "length_constraints:number_paragraphs",
    "length_constraints:number_words", "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders", "detectable_content:postscript",
    "detectable_format:number_bullet_lists", "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections", "detectable_format:multiple_sections",
    "detectable_format:json_format", "detectable_format:title", "combination:two_responses",
    "combination:repeat_prompt", "startend:end_checker", "startend:quotation",
    "change_case:capital_word_frequency", "change_case:english_capital", "change_case:english_lowercase",
    "punctuation:no_comma",
}  # fmt: skip

SPELT = {1: ("one", "a ", "first"), 2: ("two", "second"), 3: ("three",)}

# id, values, responses that meet the constraint, responses that do not
CASES = [
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, ["two words", "a"],
     ["now three words", "a-b c"]),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, ["it's two", "one two three"],
     ["two words"]),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2},
     ["One sentence.", "no end mark", "It costs 3.50 in all.", 'He said "Go."', "Ask Dr. Ray."],
     ["One. Two.", "First line\nsecond line", 'He said "Go!" She went.', "Really? Yes."]),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3}, ["One. Two! Three"],
     ["One. Two.", "Wait... what?"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a *** b", "***\na\n***\nb", "a\n***\nb ***"],
     ["a", "a *** b *** c", "a *** *** b", "a\n\nb"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
     ["a\n\nThen b", 'a\n\n"then, b', "a\n\nthen. b"],
     ["Then a\n\nb", "Then a", "a\n\nthen b\n\nc", "a\n\nThence b", "a\n\n\n\nThen b"]),
    ("keywords:existence", {"keywords": ["oven", "loaf"]}, ["The OVEN and loaf.", "ovens, loafing"], ["The oven."]),
    ("keywords:frequency", {"relation": "at least", "keyword": "tea", "frequency": 2}, ["Tea, tea", "tea in a teapot"],
     ["tea"]),
    ("keywords:frequency", {"relation": "less than", "keyword": "tea", "frequency": 2}, ["tea", "no"], ["tea tea"]),
    ("keywords:forbidden_words", {"forbidden_words": ["oven", "hot"]}, ["ovens", "a shot"], ["My Oven", "so hot!"]),
    ("keywords:letter_frequency", {"letter": "B", "let_frequency": 2, "let_relation": "at least"}, ["Bob", "b b"],
     ["b"]),
    ("keywords:letter_frequency", {"letter": "b", "let_frequency": 2, "let_relation": "less than"}, ["b", "a"],
     ["Bob"]),
    ("change_case:english_capital", {}, ["ALL BIG 1!"], ["ALL BIg", "1!"]),
    ("change_case:english_lowercase", {}, ["all small 1!"], ["All small", "1!"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, ["I am BIG"],
     ["Am BIG"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, ["Am BIG"],
     ["I am BIG"]),
    ("startend:end_checker", {"end_phrase": "That is all."}, ["Yes. that is ALL. ", '"Yes. That is all."'],
     ["That is all. Bye.", "That is all"]),
    ("startend:quotation", {}, ['"a b"', ' "a" \n'], ['"a b', 'a b"', '"', "'a b'"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["a\nP.S. b", "a p. s. b"], ["a PS b"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["a\nP.P.S b", "a p. p. s"], ["a\nP.S. b"]),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, ["a n.b. b"], ["a nxbx b"]),
    ("own:start_phrase", {"start_phrase": "In short,"}, ["in short, yes", ' "In short, yes"'], ["Yes, in short,"]),
    ("own:question_end", {}, ["So? Why?", '"Why?" '], ["Why? So."]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why bread?"}, [" why bread? Yes."], ["Yes. Why bread?"]),
    ("detectable_format:title", {}, ["<<Bread>> a", "a <<b c>>"], ["<Bread> a", "<< >>", "<<a\nb>>"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b*", "**a** *b*"],
     ["*a* b", "* * *a*", "*a\nb*"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]"], ["[a]", "[a\n] [b]"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n{"a": 1}\n```', "[1]", "```\n{}\n```"],
     ["{a: 1}", 'So {"a": 1}']),
    ("combination:two_responses", {}, ["a ****** b", "****** a ****** b ******"],
     ["a", "a ****** a", "a ****** b ****** c", "a ****** ****** b", "a *** b"]),
    ("detectable_format:constrained_response", {}, ["So. My answer is no.", "My answer is maybe."],
     ["My answer is No.", "No."]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n  - b", "a\n* b\n- c"],
     ["* a", "* a\n* b\n* c", "**a**\n* b", "1. a\n2. b"]),
    ("own:numbered_list", {"num_items": 2}, ["1. a\n2. b", "So:\n1) a\n 2) b"],
     ["1. a", "1. a\n3. b", "1. a\n2. b\n3. c"]),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, ["PART 1\na\nPART 2\nb"],
     ["PART 1 a", "Part 1 a Part 2 b", "PART one PART two"]),
    ("own:one_line", {}, ["a. b\n"], ["a\nb"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("own:exclamation", {}, ["a! b"], ["a. b"]),
    ("own:parentheses", {}, ["a (b c) d"], ["a ( ) b", "a) b (c"]),
    ("own:digit", {}, ["about 20", "1. take 3"], ["twenty", "1. take three"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("id", "values", "right", "wrong"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)]
)
def test_responses_that_meet_a_constraint_and_that_do_not(id, values, right, wrong):
    constraint = make_constraint(id, values, "here")
    assert [text for text in right if not constraint.check(text)] == []
    assert [text for text in wrong if constraint.check(text)] == []


def test_every_type_has_cases_and_all_ids_of_ifeval_are_known():
    ours = set(constraint_types())
    assert ours == {case[0] for case in CASES}
    assert {id for id in ours if not id.startswith("own:")} | set(UNSUPPORTED) == IFEVAL
    assert len(ours) == 31


@pytest.mark.parametrize("id", sorted(constraint_types()))
def test_drawn_values_are_stated_and_can_be_stored(id):
    """Every text and number of the values is in the phrase, and the values read back give the same constraint."""
    kind, rng = constraint_types()[id], random.Random(0)
    for _ in range(20):
        drawn = kind.draw(rng, TOPIC)
        assert make_constraint(id, values_of(drawn), "here") == drawn
        phrase = drawn.phrase()
        assert phrase and len(phrase) <= 110
        if id != "length_constraints:number_sentences":  # "Write one sentence." says fewer than two
            stored = [value if isinstance(value, list) else [value] for value in values_of(drawn).values()]
            for value in (part for values in stored for part in values if part not in RELATIONS):
                said = {str(value), *SPELT.get(value, ())}
                assert any(word in phrase for word in said)


def test_relations_are_stated():
    for relation, words in (("less than", "fewer than 4"), ("at least", "at least 4")):
        for id, values in (
            ("length_constraints:number_words", {"relation": relation, "num_words": 4}),
            ("length_constraints:number_sentences", {"relation": relation, "num_sentences": 4}),
            ("keywords:frequency", {"relation": relation, "keyword": "a", "frequency": 4}),
            ("keywords:letter_frequency", {"let_relation": relation, "letter": "a", "let_frequency": 4}),
            ("change_case:capital_word_frequency", {"capital_relation": relation, "capital_frequency": 4}),
        ):
            assert words in make_constraint(id, values, "here").phrase()
    assert (
        make_constraint(
            "length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}, ""
        ).phrase()
        == "Write one sentence."
    )


@pytest.mark.parametrize(
    ("id", "values", "message"),
    [
        ("poems:rhyme", {}, r"^row 3: the instruction id poems:rhyme is unknown\. Known ids: .*keywords:existence"),
        ("language:response_language", {"language": "de"}, "not supported, because it needs a detector of languages"),
        ("startend:end_checker", None, r"^row 3: startend:end_checker needs the value end_phrase\. Add it to kwargs"),
        ("startend:end_checker", {"end_phrase": None}, "needs the value end_phrase"),
        ("startend:end_checker", {"end_phrase": "a", "n": 1}, "has no value n; it has end_phrase"),
        ("startend:end_checker", {"end_phrase": " "}, "end_phrase of .* is ' '; it must be a text that is not empty"),
        ("keywords:existence", {"keywords": "tea"}, "keywords of .* is 'tea'; it must be a list of words"),
        ("keywords:existence", {"keywords": []}, "it must be a list of words"),
        ("own:numbered_list", {"num_items": True}, "num_items of .* is True; it must be a whole number of at least 1"),
        ("own:numbered_list", {"num_items": 0}, "num_items of .* is 0; it must be a whole number of at least 1"),
        ("keywords:frequency", {"relation": "exactly", "keyword": "a", "frequency": 1},
         r"^row 3: keywords:frequency: the relation is 'exactly'; it must be one of less than, at least"),
        ("keywords:letter_frequency", {"let_relation": "at least", "letter": "ab", "let_frequency": 1},
         "letter is 'ab'; it must be one letter"),
    ],
)  # fmt: skip
def test_wrong_ids_and_values_are_named(id, values, message):
    with pytest.raises(UserError, match=message):
        make_constraint(id, values, "row 3")


def test_null_values_count_as_missing():
    assert make_constraint("punctuation:no_comma", {"end_phrase": None}, "") == make_constraint(
        "punctuation:no_comma", None, ""
    )
    assert issubclass(constraint_types()["punctuation:no_comma"], Constraint)
