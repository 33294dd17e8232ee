"""CSV and TSV with cells as text, numbers or lists; numbered responses; soft labels; prompts without responses."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from rlhf_core.algorithms.cdpo import CDPO
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.ipo import IPO
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.algorithms.reward.thurstone import Thurstone
from rlhf_core.common.batch import Outputs, collate_units
from rlhf_core.common.errors import UserError
from tasks.common.rows import preference_units, unpaired_units
from tasks.data.clean import to_prepared
from tasks.data.readers import read_rows
from tasks.files.jsonl import write_jsonl
from tiny import PAD, WORDS, tiny_tokenizer


def table(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def rows(path, text, **options):
    return read_rows(table(path, text), "", **options)


@pytest.mark.parametrize(("name", "comma"), [("d.csv", ","), ("d.tsv", "\t"), ("d.csv.gz", ","), ("d.tsv.gz", "\t")])
def test_cells_are_text_and_quotes_may_contain_lines_and_delimiters(tmp_path, name, comma):
    """A row's line number is its first line. The byte order mark is not part of the first name."""
    text = '\ufeffprompt,chosen,rejected\n2020-01-01,5,007\n\n"a""b","c\nd\ne","f,g"\r\nh,true,null\n'.replace(
        ",", comma
    )
    assert [(row.line, row.prompt[0]["content"], row.chosen, row.rejected) for row in rows(tmp_path / name, text)] == [
        (2, "2020-01-01", "5", "007"),
        (4, 'a"b', "c\nd\ne", f"f{comma}g"),
        (7, "h", "true", "null"),
    ]


def test_numbers_and_lists_are_parsed_in_fields_of_these_types(tmp_path):
    path = tmp_path / "d.csv"
    found = rows(path, "prompt,response,score\na,5,4\nb,6,4.5\nc,7,high\n")
    assert [(row.kind, row.response, row.score) for row in found] == [
        ("ratings", "5", 4),
        ("ratings", "6", 4.5),
        ("ratings", "7", "high"),
    ]
    assert [row.label for row in rows(path, "prompt,response,label\na,b,true\nc,d,FALSE\ne,f,1\ng,h,0\n")] == [
        True,
        False,
        True,
        False,
    ]
    (ranked,) = rows(path, 'prompt,responses,ranks\na,"[""x"", ""y""]","[2, 1]"\n')
    assert (ranked.ranked, ranked.ranks) == (("x", "y"), (2, 1))
    messages = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]).replace('"', '""')
    (talk,) = rows(path, f'messages\n"{messages}"\n')
    assert (talk.prompt, talk.response) == ([{"role": "user", "content": "a"}], "b")
    (question,) = rows(path, "question,answer\nWhy?,5\n")
    assert (question.response, question.answer) == ("5", "5")


def test_an_empty_cell_is_null_and_a_row_of_another_width_is_dropped(tmp_path):
    found = rows(tmp_path / "d.csv", "prompt,chosen,rejected,margin\na,b,c,\nd,,e,1\nf,g\nh,i,j,1,k\n")
    assert [(row.margin, row.fault) for row in found] == [
        (None, ""),
        (None, "no value in 'chosen'"),
        (None, "fewer cells than the header"),
        (None, "more cells than the header"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "d.csv is empty"),
        ("prompt,chosen,rejected\n", "d.csv contains no rows"),
        ("prompt,chosn,rejected\na,b,c\n", "line 2: the field 'chosen' is missing; 'chosn' is similar"),
        ("prompt;chosen;rejected\na;b;c\n", "the row has: prompt;chosen;rejected"),
        ("prompt,response,prompt\na,b,c\n", "two columns named 'prompt'. Rename one."),
        ('prompt,response\na,b\nc,"d\ne,f\n', "d.csv, line 3 is not CSV"),
        ('prompt,response\na,"b"c\n', "d.csv, line 2 is not CSV"),
    ],
)
def test_broken_tables_are_named(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        rows(tmp_path / "d.csv", text)
    assert message in str(caught.value)


def jsonl(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def numbered(*preferences):
    return [{"prompt": "a", "response_1": "x", "response_2": "y", "preference": value} for value in preferences]


def sides(found):
    return [row.fault or (row.chosen, row.rejected, row.label) for row in found]


def test_numbered_responses_are_pairs(tmp_path):
    """1 and 2 name the better response; 0 is a tie."""
    found = read_rows(jsonl(tmp_path / "d.jsonl", *numbered(1, 2, 0, 3, True, "1", None, 2.0)), "")
    outside = "preference not 1, 2 or 0 (tie)"
    assert sides(found) == [
        ("x", "y", None),
        ("y", "x", None),
        ("x", "y", 0.5),
        outside,
        outside,
        outside,
        "no value in 'preference'",
        ("y", "x", None),
    ]
    assert found[0].kind == "preference"


@pytest.mark.pitfall(38)
@pytest.mark.parametrize("values", [(0, 1), (1, 1), (0,), (0.0, 1.0)])
def test_preferences_of_only_0_and_1_need_a_base(tmp_path, values):
    path = jsonl(tmp_path / "d.jsonl", *numbered(*values))
    with pytest.raises(UserError, match=r"'preference' is always 0 or 1 in .*d.jsonl.* Set prepare.preference_base"):
        read_rows(path, "")
    assert len(read_rows(path, "", preference_base=1)) == len(values)


@pytest.mark.pitfall(38)
def test_the_base_defines_the_meaning_of_0_and_1(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", *numbered(0, 1, 2))
    assert sides(read_rows(path, "", preference_base=0)) == [
        ("x", "y", None),
        ("y", "x", None),
        "preference not 0 or 1",
    ]
    path = jsonl(tmp_path / "d.jsonl", *numbered(0, 1))
    assert sides(read_rows(path, "", preference_base=1)) == [("x", "y", 0.5), ("x", "y", None)]
    path = table(tmp_path / "d.csv", "prompt,response_1,response_2,preference\na,x,y,2\n")
    assert sides(read_rows(path, "")) == [("y", "x", None)]


@pytest.mark.pitfall(38)
@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (1, ("x", "y", None)),
        (True, ("x", "y", None)),
        (0, ("y", "x", None)),
        (False, ("y", "x", None)),
        (0.5, ("x", "y", 0.5)),
        (0.75, ("x", "y", 0.75)),
        (0.25, ("y", "x", 0.75)),
        (-0.1, "label outside 0 to 1"),
        ("0.5", "label not a number"),
    ],
)
def test_a_label_is_the_probability_that_chosen_is_better(tmp_path, label, expected):
    """Below one half the sides are swapped, so that chosen is never the worse response."""
    row = {"prompt": "a", "chosen": "x", "rejected": "y"}
    found = read_rows(jsonl(tmp_path / "d.jsonl", row, row | {"label": label}), "")
    assert sides(found)[1] == expected


PROMPTS = [{"prompt": "a"}, {"prompt": "b", "id": 3}]


def test_prompts_without_responses_are_a_data_set(tmp_path):
    path = tmp_path / "d.jsonl"
    assert [(row.kind, row.responses) for row in read_rows(jsonl(path, *PROMPTS), "")] == [("prompts", [])] * 2
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert [row.kind for row in read_rows(jsonl(path, {"messages": [user]}), "")] == ["prompts"]
    assert [row.kind for row in read_rows(jsonl(path, {"instruction": "a", "input": "b"}), "")] == ["prompts"]
    assert [row.prompt for row in rows(tmp_path / "d.csv", "prompt\na\n")] == [[user]]
    # One conversation without a reply does not turn demonstrations into prompts.
    talks = read_rows(jsonl(path, {"messages": [user]}, {"messages": [user, assistant]}), "")
    assert [(row.kind, row.response) for row in talks] == [("demonstration", ""), ("demonstration", "b")]
    answered = read_rows(jsonl(path, {"messages": [user]}, {"messages": [user, assistant]}), "", "prompts")
    assert [row.fault for row in answered] == ["", "prompt ends with the assistant's turn"]


def test_a_row_with_more_than_a_prompt_is_not_a_prompt(tmp_path):
    for row in ({"prompt": "a", "answer": "b"}, {"prompt": "a", "score": 3}, {"prompt": "a", "complétion": "b"}):
        with pytest.raises(UserError, match="'response' or 'completion' or 'output' is missing"):
            read_rows(jsonl(tmp_path / "d.jsonl", row), "")
        assert [found.kind for found in read_rows(jsonl(tmp_path / "d.jsonl", row), "", "prompts")] == ["prompts"]


@pytest.mark.pitfall(38)
def test_labels_are_used_by_every_loss_on_pairs(tmp_path):
    """p is the probability that chosen is better, from file to loss: -p log σ(d) - (1 - p) log σ(-d) at d = 1."""
    sources = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "label": label} for label in (1, 0.75, 0.5, 0.25, True, 0)
    ]
    rows = read_rows(jsonl(tmp_path / "d.jsonl", *sources), "")
    files = to_prepared({"train": rows, "development": [], "test": []}, "preference")
    write_jsonl(tmp_path / "preferences_train.jsonl", files["preferences_train"])
    units = preference_units(tmp_path / "preferences_train.jsonl", tiny_tokenizer())
    p = torch.tensor([1, 0.75, 0.5, 0.75, 1, 1], dtype=torch.float64)
    words = [WORDS[chosen.response_ids[0]] for chosen, _ in units]
    assert words == ["b", "b", "b", "c", "b", "c"]
    batch = collate_units(units, PAD)
    batch = replace(batch, preferences=batch.preferences.double(), margins=batch.margins.double())
    assert torch.equal(batch.preferences[0::2], p)
    difference = torch.ones(6, dtype=torch.float64)
    scores = torch.stack([difference, 0 * difference], -1).flatten()
    logprobs = scores[:, None] * batch.response_mask / batch.lengths[:, None]
    nothing = torch.full_like(logprobs, torch.nan)
    outputs = Outputs(logprobs=logprobs, entropies=nothing, values=nothing, scores=scores, exact_kl=nothing)
    batch = replace(batch, ref_logprobs=0 * logprobs)

    def both(loss):
        return p * loss(difference) + (1 - p) * loss(-difference)

    def logistic(d):
        return -torch.nn.functional.logsigmoid(d)

    for algorithm, expected in (
        (BradleyTerry(), both(logistic)),
        (Thurstone(), both(lambda d: -torch.special.log_ndtr(d))),
        (DPO(beta=0.5), both(lambda d: logistic(0.5 * d))),
        (IPO(beta=0.5), both(lambda d: (d - 1).square())),
    ):
        torch.testing.assert_close(algorithm.losses(outputs, batch), expected, atol=1e-6, rtol=0)
    conservative = CDPO(beta=0.5, label_smoothing=0.1).losses(outputs, batch)
    smooth = p * 0.9 + (1 - p) * 0.1
    expected = smooth * logistic(0.5 * difference) + (1 - smooth) * logistic(-0.5 * difference)
    torch.testing.assert_close(conservative, expected, atol=1e-6, rtol=0)


def test_kto_omits_ties_and_uses_the_better_side(tmp_path):
    rows = [
        {"prompt": user, "chosen": "b", "rejected": "c", "label": label}
        for user, label in (("a", 0.5), ("d", 0.25), ("e", 0.9))
    ]
    files = to_prepared(
        {"train": read_rows(jsonl(tmp_path / "d.jsonl", *rows), ""), "development": [], "test": []}, "preference"
    )
    write_jsonl(tmp_path / "preferences_train.jsonl", files["preferences_train"])
    units = unpaired_units(tmp_path, "train", tiny_tokenizer())
    labelled = [(WORDS[unit[0].response_ids[0]], unit[0].desirable) for unit in units]
    assert labelled == [("c", 1.0), ("b", 0.0), ("b", 1.0), ("c", 0.0)]
