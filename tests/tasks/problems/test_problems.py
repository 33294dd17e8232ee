"""What each task offers and what it rejects."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpdesk.rubric import GOLD_WEIGHTS, features, gold_score
from helpdesk.world import World
from rlhf_core.algorithms.base.table import policy_algorithms
from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.feedback.table import make_form
from rlhf_core.models.responses import Responses
from rlhf_core.models.tokens import Prompt
from tasks.data.clean import Cleaned
from tasks.files.formats import AUTO, GENERATED, ROWS
from tasks.files.jsonl import write_jsonl
from tasks.params.load import load_params
from tasks.params.reward_terms import RewardTerm
from tasks.params.sections import PrepareParams
from tasks.problems.table import generated_problem, owner_of, prepared_problem, problem_of, problems
from tools.closure import ROOT

KINDS = (
    "helpdesk",
    "instructions",
    "preference",
    "ratings",
    "rankings",
    "unpaired",
    "question_answer",
    "demonstration",
    "prompts",
)
PARAMS = load_params(ROOT / "params.yaml")
PREPARE = replace(PARAMS.prepare, path=str(ROOT / "helpdesk/world.json"))


def offering(flag):
    return [kind for kind in KINDS if getattr(problem_of(kind), flag)]


def test_what_each_task_offers():
    feedback = ["preference", "ratings", "rankings", "unpaired"]
    assert offering("has_feedback") == ["helpdesk", "instructions", *feedback]
    assert offering("needs_judge_model") == feedback
    assert offering("has_judge") == ["helpdesk", "instructions", "question_answer"]
    assert offering("has_constraints") == offering("has_outcomes") == ["instructions"]
    assert offering("has_answers") == ["question_answer"]
    assert offering("has_panel") == offering("is_generated") == ["helpdesk", "instructions"]
    assert [kind for kind in KINDS if not problem_of(kind).has_text] == ["instructions", "prompts"]
    assert [kind for kind in KINDS if problem_of(kind).gold(PREPARE) is not None] == ["helpdesk", "instructions"]
    judges = {kind: judge.name for kind in KINDS if (judge := problem_of(kind).judge(PREPARE)) is not None}
    assert judges == {
        "helpdesk": "gold rubric",
        "instructions": "constraint checker",
        "question_answer": "exact match",
    }
    assert [problem_of(kind).kind for kind in KINDS] == list(KINDS)


def test_a_kind_without_a_task_is_an_error():
    with pytest.raises(ValueError, match="no task for data of kind 'poems'; the kinds are "):
        problem_of("poems")


def test_generated_formats():
    assert [generated_problem(form).kind for form in GENERATED] == ["helpdesk", "instructions"]
    for form in (AUTO, *ROWS):
        assert generated_problem(form) is None


def test_every_kind_and_format_is_in_the_one_table():
    """`implicit` is another notation of preferences, so all other formats of rows are kinds."""
    assert set(KINDS) == set(problems()) == {*GENERATED, *ROWS} - {"implicit"}
    assert [kind for kind in problems() if problem_of(kind).is_generated] == list(GENERATED)


def test_the_owner_of_a_file_is_the_task_in_whose_folder_it_is():
    assert owner_of("helpdesk/world.json").kind == "helpdesk"
    assert owner_of("helpdesk/models/tiny.json").title == "the help desk"
    assert owner_of("inputs/helpdesk/world.json") is None and owner_of("") is None


def test_the_help_desk_checks_its_source(tmp_path):
    def check(path):
        problem_of("helpdesk").check_source(PrepareParams(path=path), tmp_path)

    (tmp_path / "world.json").write_text("")  # only the path is checked
    check("world.json")
    (tmp_path / "rows.jsonl").write_text("")
    for path, message in (
        ("missing.jsonl", r"prepare\.path missing\.jsonl does not exist"),
        ("rows.jsonl", r"rows\.jsonl is a data file, but prepare\.format is helpdesk"),
        ("other.json", r"other\.json does not exist"),
        (".", r"is not a file\. Name a world file"),
    ):
        with pytest.raises(UserError, match=message):
            check(path)


def test_the_prepared_task_is_the_one_named_by_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/card.json").write_text(json.dumps({"kind": "ratings"}))
    assert prepared_problem().kind == "ratings"


def said(prompts, *texts):
    """Responses for judges that see only the text."""
    return Responses(prompts, [Response([], text, ended=True) for text in texts], 0)


def test_the_help_desks_gold_reads_the_last_message():
    world = World.load(ROOT / "helpdesk/world.json")
    mood = next(iter(world.moods))
    case = (world.names[0], next(iter(world.families_of)), next(iter(world.issues)))
    from helpdesk.world import Case

    text = world.prompt(Case(*case, mood, world.moods[mood].lines[0]))
    messages = [{"role": "user", "content": "Hello?"}, {"role": "user", "content": text}]
    gold = problem_of("helpdesk").gold(PREPARE)
    assert gold.weights == GOLD_WEIGHTS
    assert gold.features(messages, "Thanks!") == features(world, text, "Thanks!")
    assert gold.score(messages, "Thanks!") == gold_score(world, text, "Thanks!")
    judge = problem_of("helpdesk").judge(PREPARE)
    assert judge.scores(said([Prompt(messages, [])] * 2, "Thanks!", "")) == [
        gold_score(world, text, "Thanks!"),
        -12.0,
    ]


def write_prepared(folder, *rows):
    path = folder / "data" / "prepared" / "prompts_train.jsonl"
    path.parent.mkdir(parents=True)
    write_jsonl(path, rows)


ROW = {
    "prompt": [{"role": "user", "content": "Write about tea. No commas."}],
    "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    "kwargs": [{}, {}],
    "about": ["tea"],
    "group": "trained",
}
TEA = "the best tea is hot and strong, with milk"


def test_the_checker_is_gold_judge_and_reward_of_the_instructions(tmp_path, monkeypatch):
    """One of two constraints is met; a text of one word is no answer, but meets both."""
    monkeypatch.chdir(tmp_path)
    write_prepared(tmp_path, ROW)
    problem, prompt = problem_of("instructions"), ROW["prompt"]
    assert [problem.gold(PREPARE).score(prompt, text) for text in (TEA, "tea")] == [0.5, 0.0]
    assert problem.judge(PREPARE).scores(said([Prompt(prompt, [])] * 2, TEA, "tea")) == [0.5, 0.0]
    scores = {guard: problem.constraint_score(guard) for guard in (True, False)}
    assert [scores[guard](prompt, "tea") for guard in (True, False)] == [0.0, 1.0]
    (annotator,) = problem.annotators(PARAMS, None)
    first, second = (Response([5], text, ended=True) for text in (TEA, TEA.replace(",", "")))
    assert annotator.answers(make_form(PARAMS.collect), prompt, [first, second]) == ["B"]
    with pytest.raises(UserError, match="has no constraints for the prompt 'Other'"):
        scores[True]([{"role": "user", "content": "Other"}], TEA)


def test_perplexity_is_part_of_the_guard(tmp_path, monkeypatch):
    """Typical perplexities of 10 allow up to 30."""
    monkeypatch.chdir(tmp_path)
    write_prepared(tmp_path, ROW)
    found = problem_of("instructions").outcomes([ROW["prompt"]] * 2, [TEA] * 2, [30.0, 30.1], [10.0] * 5)
    assert found["trained/answers"].met == [1.0, 0.0]
    assert found["trained/guarded_inst_level_strict_acc"].value == 0.25
    assert found["trained/inst_level_strict_acc"].value == 0.5
    assert found["trained/answers"].is_mean and not found["trained/inst_level_strict_acc"].is_mean


def test_prompts_in_the_format_of_ifeval_are_split(tmp_path):
    """Ten prompts: a tenth each for development and test."""
    ids = {"instruction_id_list": ["punctuation:no_comma"]}
    write_jsonl(tmp_path / "mine.jsonl", [{"key": n, "prompt": f"Write {n}.", **ids} for n in range(10)])
    path = str(tmp_path / "mine.jsonl")
    params = replace(PARAMS, prepare=replace(PREPARE, format="instructions", path=path))
    problem = problem_of("instructions")
    problem.check_source(params.prepare, tmp_path)
    assert problem.look(params.prepare, tmp_path) == f"{path}, 10 prompts with constraints"
    material = problem.generate(params)
    files = material.files(Cleaned(rows=material.rows[:-1]))  # one was dropped
    texts = [row["prompt"][0]["content"] for name in files for row in files[name]]
    assert sorted(texts) == [f"Write {n}." for n in range(9)]
    assert {name: len(rows) for name, rows in files.items()} == {
        "prompts_train": 7,
        "prompts_development": 1,
        "prompts_test": 1,
    }
    with pytest.raises(UserError, match="is not a file"):
        problem.check_source(replace(params.prepare, path=str(tmp_path)), tmp_path)


def test_questions_are_judged_by_their_answers():
    judge = problem_of("question_answer").judge(replace(PREPARE, answer_pattern=r"#(\d+)"))
    prompts = [Prompt([], [], answer="4")] * 3
    assert judge.scores(said(prompts, "so #4", "so #5", "4.0")) == [1.0, 0.0, 1.0]


def test_what_to_set_for_a_form_of_feedback():
    assert problem_of("helpdesk").setting_for("likert", "ratings") == "collect.form to likert"
    assert problem_of("unpaired").setting_for("likert", "ratings") == "prepare.path to ratings"


def test_why_there_is_no_reward_model_or_judge():
    assert problem_of("question_answer").no_feedback == "rewards come from verified answers"
    assert problem_of("prompts").no_feedback == problem_of("demonstration").no_feedback == "the data has none"
    reasons = {kind: problem_of(kind).why_no_judge_model() for kind in ("helpdesk", "question_answer", "prompts")}
    gold = "evaluation uses gold, so no second reward model"
    assert reasons == {
        "helpdesk": gold,
        "question_answer": gold,
        "prompts": "the data has no feedback to train one on",
    }


def with_policy(algorithms, *terms):
    rewards = [RewardTerm(name=name) for name in terms]
    online = [name for name in algorithms if policy_algorithms()[name].data.is_rewarded]
    offline = [name for name in algorithms if name not in online]
    return replace(PARAMS, policy=replace(PARAMS.policy, online=online, offline=offline, rewards=rewards))


@pytest.mark.parametrize(
    ("kind", "algorithms", "terms", "message"),
    [
        ("demonstration", ["dpo"], ["model"], "names dpo, which learns from feedback, but demonstration data has"),
        ("question_answer", ["ppo"], ["exact_answer"], "names ppo, whose critic starts from the reward model, .* "
         r"Use the reward exact_answer instead, with a method that trains no critic: .*\bgrpo, .*\brloo\."),
        ("prompts", ["grpo"], ["model"], r"policy.rewards names model, .* Use the reward length, format or python"),
        ("preference", ["grpo"], ["exact_answer"], "names exact_answer, but the data has no answers"),
        ("helpdesk", ["best_of_n"], ["exact_answer"], "names exact_answer, but the data has no answers"),
        ("helpdesk", ["grpo"], ["constraints"], "names constraints, but the data has no constraints"),
        ("instructions", ["grpo"], ["exact_answer"], "names exact_answer, but the data has no answers"),
    ],
)  # fmt: skip
def test_methods_and_rewards_that_a_task_does_not_support_are_rejected(kind, algorithms, terms, message):
    with pytest.raises(UserError, match=message):
        problem_of(kind).check(with_policy(algorithms, *terms), from_scratch=False)


@pytest.mark.parametrize(
    ("kind", "algorithms", "terms"),
    [
        ("helpdesk", ["ppo", "dpo", "kto"], ["model"]),
        ("unpaired", ["ppo", "dpo", "kto"], ["model"]),
        ("question_answer", ["grpo"], ["exact_answer"]),
        ("prompts", ["grpo"], ["length"]),
        ("instructions", ["ppo", "dpo", "grpo"], ["model", "constraints"]),
        ("preference", ["dpo"], ["exact_answer"]),  # DPO never reads policy.rewards
    ],
)
def test_methods_and_rewards_that_a_task_supports_are_accepted(kind, algorithms, terms):
    problem_of(kind).check(with_policy(algorithms, *terms), from_scratch=problem_of(kind).has_text)


def test_prompts_train_nothing_from_scratch():
    with pytest.raises(UserError, match="the data has only prompts and no text to train on"):
        problem_of("prompts").check_model(from_scratch=True)
    problem_of("prompts").check_model(from_scratch=False)
    problem_of("demonstration").check_model(from_scratch=True)


def test_a_world_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        generated_problem("helpdesk").look(PrepareParams(path="nowhere.json"), tmp_path)
    assert (
        generated_problem("helpdesk").look(PrepareParams(path="helpdesk/world.json"), ROOT)
        == "helpdesk/world.json, the help desk"
    )
