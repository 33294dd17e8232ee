"""`rlhf chat`, `rlhf compare` and `rlhf doctor` on examples small enough to calculate by hand."""

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, GPT2Config, LlamaConfig

from flow_scratch import make_scratch
from flows.commands import compare
from flows.commands.chat import talk
from flows.commands.compare import Run, claim, comparable, compare_runs, distinct, renamed
from flows.commands.differences import differences, is_read
from flows.commands.doctor import _data, _idle, _stages, examine
from flows.commands.durations import START, Speed, measure, seconds, span_text, together, work
from flows.commands.run import _say_where
from flows.run.graph import Stage
from rlhf_core.algorithms.base.algorithm import Work
from rlhf_core.common.errors import UserError
from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.store import new_policy, new_scalar_model, save_policy, save_scalar_model
from tasks.files import declared
from tasks.files.declared import Declared, Loads
from tasks.params.derived import stage_of
from tasks.params.load import ROOT, load_params, merged, read_yaml, validate
from tasks.params.schema import Params, algorithm_of
from tasks.problems.problem import Counts
from tasks.problems.table import problem_of
from tasks.runtime.memory import PROCESS, ModelShape, estimate, model_shape


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy and a tiny reward model, both untrained."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = train_tokenizer(["the oven is late, we are sorry"] * 3, 80)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    save_policy(new_policy(config), tokenizer, folder / "policy", max_new_tokens=8)
    save_scalar_model(new_scalar_model(folder / "policy"), tokenizer, folder / "reward")
    return folder


def console(columns: int = 200) -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(file=text, width=columns, highlight=False, soft_wrap=True), text


def test_chat_answers_once_and_reproducibly(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for _ in range(2):
        talk(checkpoints / "policy", "the oven", 8, 1.0, 7, console()[0])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    assert "<|" not in answers[0]


def test_chat_truncates_if_asked(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one possible token per step, temperature 1 answers as 0 does. A stop string ends the answer."""
    options: list[tuple[float, dict[str, Any]]] = [
        (0.0, {}),
        (1.0, {"top_k": 1}),
        (1.0, {"top_p": 1e-6, "top_k": None}),
    ]
    answers = []
    for temperature, truncation in options:
        talk(checkpoints / "policy", "the oven", 8, temperature, 0, console()[0], truncation)
        answers.append(capsys.readouterr().out.strip())
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) > 2
    part = answers[0][1]
    talk(checkpoints / "policy", "the oven", 8, 0.0, 0, console()[0], {"stop_strings": [part]})
    assert len(capsys.readouterr().out.strip()) < len(answers[0])


def test_chat_keeps_the_conversation_until_an_empty_line(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["the oven", "is late", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out, text = console()
    talk(checkpoints / "policy", None, 4, 0.0, 0, out)
    assert "Enter an empty line to quit" in text.getvalue()
    assert next(lines, "read all") == "read all"


@pytest.mark.parametrize(
    ("folder", "prompt", "message"),
    [
        ("nowhere", "a", r"nowhere does not exist\.\nThere is none in models yet"),
        ("reward", "a", "does not generate text"),
        ("policy", "the oven is late " * 20, r"exceed the model's context of 64"),
    ],
)
def test_chat_names_the_error(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, prompt: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        talk(checkpoints / folder, prompt, 8, 1.0, 0, console()[0])


def test_chat_lists_the_checkpoints_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the base model, which is the user's own, and no folder without a model such as best-of-N sampling's."""
    monkeypatch.chdir(tmp_path)
    for name in ("base/model", "sft/config", "policies/ppo/config", "policies/best_of_n/best_of_n"):
        path = tmp_path / "models" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    for name, what in {"nosuch": "does not exist", "models/sft/config.json": "is no folder"}.items():
        with pytest.raises(UserError, match=f"^{name} {what}\\.\nChoose from: models/sft, models/policies/ppo\\.$"):
            talk(Path(name), "a", 8, 1.0, 0, console()[0])


# Comparison of runs


TERMS = {"judge": "gold rubric", "prompts": "300", "test_prompts": "0123abcd"}


def run(name: str, lock: str, rates: dict[str, float], **params: str) -> Run:
    metrics = {f"win_rate_vs_sft/{policy}": rate for policy, rate in rates.items()}
    metrics |= {f"{key}_low": rate - 0.05 for key, rate in metrics.items()} | {
        f"{key}_high": rate + 0.05 for key, rate in metrics.items()
    }
    params = {key.replace("__", "."): value for key, value in params.items()}
    return Run(name, "2026-01-01 12:00", lock, params, metrics, TERMS)


def test_runs_are_distinguished_by_result_and_parameters() -> None:
    runs = [
        run("again", "l1", {"dpo": 0.7, "ppo": 0.8}, policy__dpo__beta="0.1", run__parallel="3"),
        run("strong", "l2", {"dpo": 0.9, "ppo": 0.8}, policy__dpo__beta="0.2", run__parallel="2"),
        run("first", "l1", {"dpo": 0.7, "ppo": 0.8}, policy__dpo__beta="0.1", run__parallel="2"),
        run("sft only", "l3", {}),
    ]
    kept = distinct(runs)
    assert [item.name for item in kept] == ["strong", "again"]
    assert [item.best() for item in kept] == [("dpo", 0.9), ("ppo", 0.8)]
    assert differences([item.params for item in kept]) == ["policy.dpo.beta"]


def test_compare_claims_only_what_the_interval_shows() -> None:
    """The interval is ± 0.05, so at 0.55 it begins at one half. A KL of 0.0005 nats does not count as movement."""
    highest = "Highest win rate: dpo of a"
    assert claim([run("a", "1", {"dpo": 0.56, "ppo": 0.4})]) == highest
    assert claim([run("a", "1", {"dpo": 0.54})]) == (
        f"{highest}; the policy is not shown to be better than its SFT model"
    )
    unmoved = run("a", "1", {"dpo": 0.56})
    unmoved = replace(unmoved, metrics={**unmoved.metrics, "kl/dpo": 0.0005})
    assert claim([unmoved]) == f"{highest}; the policy did not move from its SFT model"


def test_compare_claims_no_order_where_intervals_overlap() -> None:
    """0.8 ± 0.05 touches 0.7 ± 0.05 and not 0.69 ± 0.05. Rates that are shown alike, 0.8 and 0.8001, are equal."""
    best = run("a", "1", {"dpo": 0.8, "ppo": 0.71})
    chance = "the order may be due to chance"
    assert claim([best, run("b", "2", {"dpo": 0.69})]) == (
        f"Highest win rate: dpo of a.\nIts interval overlaps with that of ppo of a: {chance}"
    )
    many = {name: 0.75 for name in ("ppo", "grpo", "rloo", "trpo")}
    assert claim([best, run("b", "2", many)]).endswith(f"that of ppo of a, ppo of b, grpo of b and 2 others: {chance}")
    assert claim([best, run("b", "2", {"dpo": 0.8001})]) == (
        f"Equal highest win rates: dpo of a and dpo of b.\nTheir intervals overlap with that of ppo of a: {chance}"
    )
    still = run("b", "2", {"dpo": 0.8})
    still = replace(still, metrics=still.metrics | {"kl/dpo": 0.0})
    assert claim([run("a", "1", {"dpo": 0.8}), still]) == (
        "Equal highest win rates: dpo of a and dpo of b; dpo of b did not move from its SFT model"
    )


def test_a_new_method_differs_only_in_the_list_of_methods() -> None:
    """Its parameters tell nothing: the other run does not read them. Values of a loop are not repeated per method."""
    loop, own = "policy.online_loop.learning_rate", "policy.ppo.learning_rate"
    first = {
        "policy.online": "['ppo', 'grpo']",
        "policy.offline": "[]",
        loop: "0.1",
        own: "0.1",
        "policy.dpo.beta": "1",
    }
    first |= {"policy.grpo.learning_rate": "0.3"}
    second = first | {"policy.online": "['ppo', 'mine']", "policy.mine.strength": "1", "policy.dpo.beta": "2"}
    assert differences([first, second]) == ["policy.online"]
    assert differences([first, second | {loop: "0.2", own: "0.2"}]) == ["policy.online", loop]
    assert differences([first, second | {own: "0.2"}]) == ["policy.online", own]
    assert not is_read("policy.grpo.learning_rate", second)
    assert is_read("policy.dpo.beta", {"sft.epochs": "1"})  # the lists are unknown


def test_runs_that_were_judged_differently_are_separate() -> None:
    """Runs are comparable if test prompts, their number and the judge are equal. Runs without this record come last."""
    runs = [run(name, name, {"dpo": 0.7}) for name in ("a", "b", "fewer", "other data", "other judge", "old")]
    terms = {
        "fewer": TERMS | {"prompts": "100"},
        "other data": TERMS | {"test_prompts": "ffff0000"},
        "other judge": TERMS | {"judge": "second reward model 11112222"},
        "old": {},
    }
    groups = comparable([replace(item, terms=terms.get(item.name, item.terms)) for item in reversed(runs)])
    names = [[item.name for item in group] for group in groups]
    assert names == [["b", "a"], ["other judge"], ["other data"], ["fewer"], ["old"]]


def test_compare_shows_runs_of_several_seeds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings with two seeds each, the better mean first; a seed alone is only shown by itself."""
    runs = [
        replace(run(name, name, {"dpo": rate}, run__seed=seed, policy__dpo__beta=beta), code_and_data="c")
        for name, rate, seed, beta in (
            ("a-0", 0.6, "0", "0.1"), ("a-1", 0.7, "1", "0.1"), ("b-0", 0.7, "0", "0.2"), ("b-1", 0.9, "1", "0.2"),
            ("alone", 0.95, "0", "0.3"),
        )
    ]  # fmt: skip
    monkeypatch.setattr(compare, "finished_runs", lambda: runs)
    out, text = console()
    compare_runs(out)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert [line for line in lines if "Over seeds" in line] == [
        "S1  Over seeds 0, 1 (n = 2): b-0, b-1",
        "S2  Over seeds 0, 1 (n = 2): a-0, a-1",
        "Over seeds: mean (95 % t-interval over seeds).",
    ]
    # b: mean 0.8, ± 12.7062 × 0.1; a: mean 0.65, ± 12.7062 × 0.05
    rows = [" ".join(line.split()) for line in lines if line.startswith("dpo")]
    assert rows == [
        "dpo 0.800 (−0.471 to 2.071) – – 0: 0.700, 1: 0.900",
        "dpo 0.650 (0.015 to 1.285) – – 0: 0.600, 1: 0.700",
    ]
    assert [line.split() for line in lines if line.endswith(("S1", "S2"))] == [
        ["policy.dpo.beta", "0.2", "S1"],
        ["0.1", "S2"],
    ]


LONG = "policy.dpo.beta-0.2-sft.epochs-2-reward.epochs-3-x"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_compare_distinguishes_runs_and_ranks_only_comparable_ones(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Two runs with names that differ at the end, one with a higher rate on fewer prompts, and an old one."""
    runs = [
        run(f"{LONG}_aaaaaa", "1", {"dpo": 0.69, "best_of_n_distillation": 0.6}, policy__dpo__beta="0.1"),
        run(f"{LONG}_bbbbbb", "2", {"dpo": 0.8}, policy__dpo__beta="0.2"),
        replace(run("few", "3", {"ppo": 0.95}), terms=TERMS | {"prompts": "100"}),
        replace(run("old", "4", {"ppo": 0.99}), terms={}),
    ]
    monkeypatch.setattr(compare, "finished_runs", lambda: runs)
    out, text = console(columns)
    compare_runs(out)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert f"  1  {LONG}_bbbbbb  2026-01-01 12:00" in lines  # in full at every width
    assert f"  2  {LONG}_aaaaaa  2026-01-01 12:00" in lines
    assert [line for line in lines if line.startswith("Highest")] == [
        f"Highest win rate: dpo of {LONG}_bbbbbb",
        "Highest win rate: ppo of few",
    ]
    assert not [line for line in lines if "overlap" in line]
    headings = [line for line in lines if "udge" in line]
    assert headings == [
        "Judged on 300 test prompts (0123abcd) by: gold rubric.",
        "Judged on 100 test prompts (0123abcd) by: gold rubric. "
        "Not ranked with the runs above: another number of prompts.",
        "Not ranked: an earlier version made these runs and did not record the judge and the test prompts.",
    ]
    if columns == 80:
        assert "1    dpo                     0.800 (0.750–0.850)  –   –       –" in lines
        assert "policy.dpo.beta  0.2    1" in lines
        assert "                 0.1    2" in lines
        assert all(len(line) <= 80 for line in lines if LONG not in line and not line.startswith(("Judged", "Not")))
    assert "…" not in text.getvalue()


def test_metrics_of_earlier_versions_get_their_current_names() -> None:
    old = ["policies.dpo.win_rate_vs_sft", "policies.dpo.win_rate_vs_sft.low", "policies.ppo.kl", "reward_model.ece"]
    assert [renamed(key) for key in old] == [
        "win_rate_vs_sft/dpo", "win_rate_vs_sft/dpo_low", "kl/ppo", "reward_model/ece",
    ]  # fmt: skip
    assert renamed("win_rate_vs_sft/dpo_low") == "win_rate_vs_sft/dpo_low"


# Lines with commands, paths and addresses


@pytest.mark.parametrize("columns", [40, 80])
def test_commands_and_paths_are_never_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    from flows.cli import out

    reports = tmp_path / "a-folder-with-a-long-name" / "reports"
    reports.mkdir(parents=True)
    (reports / "report.html").touch()
    rate = {"value": 0.6, "low": 0.5, "high": 0.7}
    figures = {"win_rate_vs_sft": rate, "win_rate_vs_reference": rate, "kl": 1.5, "reward": 0.25, "mean_length": 31.0}
    (reports / "report.json").write_text(json.dumps({"policies": {"best_of_n_distillation": figures}}))
    text = StringIO()
    monkeypatch.setattr(out, "file", text)
    monkeypatch.setattr(out, "_width", columns)
    _say_where(reports, f"{LONG}_aaaaaa", False, out)
    lines = text.getvalue().splitlines()
    assert f"Report: {reports / 'report.html'}" in lines
    assert any(line.endswith(f"dvc exp apply {LONG}_aaaaaa") for line in lines)
    assert "Compare runs: rlhf compare. Curves and graphs in a browser: rlhf up" in lines
    assert "…" not in text.getvalue()
    assert max(len(line.rstrip()) for line in lines if "(0.5" in line) <= columns


# Time


def params_with(changes: dict[str, Any]) -> Params:
    return validate(merged(read_yaml(ROOT / "params.yaml"), changes))


FEW = {
    "prepare": {
        "threads": 100,
        "demonstrations": 64,
        "prompts": 50,
        "max_prompt_tokens": 10,
        "max_response_tokens": 30,
    },
    "base": {"epochs": 2, "max_steps": None, "batch_size": 10},
    "sft": {"epochs": 1, "batch_size": 32},
    "sample": {"prompts": 30, "development_prompts": 5, "responses": 4},
    "collect": {"judgements": 2, "development_judgements": 3},
    "reward": {"epochs": 1, "batch_size": 10, "centre_prompts": 20},
    "policy": {
        "online": ["ppo", "best_of_n", "best_of_n_distillation"],
        "offline": ["dpo"],
        "ppo": {"steps": 3, "rollout_size": 16, "minibatch_size": 8, "epochs": 2, "snapshots": 2},
        "dpo": {"epochs": 1, "batch_size": 8, "max_steps": 5, "snapshots": 1},
        "best_of_n": {"best_of": 4},
        "best_of_n_distillation": {"best_of": 8, "prompts": 20, "batch_size": 10, "epochs": 1, "snapshots": 0},
    },
    "evaluate": {"prompts": 20, "development_prompts": 10},
}


def test_rows_are_counted_from_the_parameters() -> None:
    """Of 50 prompts, two tenths are held out: 40 for training, 30 for feedback; 6 pairs of 4, two annotators."""

    def counts(kind: str, rows: int, **changes: Any) -> Counts:
        return problem_of(kind).count_rows(params_with(FEW | changes), rows)

    assert counts("helpdesk", 0) == Counts(100, 64, 40, 30 * 6 * 2, 0, 30 + 5)
    # two checkpoints: 28 pairs of 8 responses
    two = FEW["sample"] | {"checkpoints": ["models/sft", "inputs/checkpoints/one"]}
    assert counts("helpdesk", 0, sample=two).preferences == 30 * 28 * 2
    # of the user's 100 rows, 10 + 10 are held out and 20 are for the judge
    assert counts("preference", 100) == Counts(60, 60, 60, 60, 20, 0)
    assert counts("question_answer", 100) == Counts(80, 80, 80, 0, 0, 0)
    assert counts("preference", 100, prepare={"limit": 50}).judge == 10


def test_work_of_each_stage_by_hand() -> None:
    params = params_with(FEW)
    stages = work(params, problem_of("helpdesk").count_rows(params, 0), is_from_scratch=True)
    pairs = 360
    assert stages == {
        "base": Work(trained=2 * 100),
        "sft": Work(trained=64),
        "sample": Work(sampled=(30 + 5) * 4),
        "reward": Work(trained=2 * pairs, sampled=20),
        # 3 rollouts of 16, twice, for policy and critic; read by policy, reference, reward model and critic
        "online@ppo": Work(trained=2 * 48 * 2, read=4 * 48, sampled=48),
        "offline@dpo": Work(trained=2 * 5 * 8, read=2 * pairs),
        "online@best_of_n": Work(),
        "online@best_of_n_distillation": Work(trained=20, read=160, sampled=160),
        # SFT 20 + 10; PPO 20 + 2·10; DPO 20 + 10; best of 4: 80; distillation 20
        "evaluate": Work(read=6 * 200, sampled=200),
    }
    assert "base" not in work(params, problem_of("helpdesk").count_rows(params, 0), False)


def test_seconds_by_hand() -> None:
    """Rows of 40 tokens, 30 of them sampled: 40·(2·3 + 5·1) + 30·7·0.5 = 545 s at full length, half of it at half."""
    speed = Speed(train=3, read=1, sample=0.5)
    assert seconds(Work(trained=2, read=5, sampled=7), speed, params_with(FEW)) == (START + 272.5, START + 545)


def test_policies_side_by_side_take_as_long_as_the_longest_or_their_share() -> None:
    spans = {"sft": (10.0, 20.0), "online@a": (30.0, 40.0), "online@b": (10.0, 20.0), "offline@c": (10.0, 20.0)}
    assert together(spans, 1) == (60, 100)
    assert together(spans, 2) == (10 + 30, 20 + 40)
    assert [span_text(span) for span in ((8, 12), (60, 240), (3000, 9000), (8, 8))] == [
        "8–12 s", "1–4 min", "0.83–2.5 h", "8 s",
    ]  # fmt: skip


def test_measured_speed_is_scaled_to_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model too large to measure is cut to one of its four layers, and its time is scaled by the weights."""
    from flows.commands import durations

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    whole, cut = model_shape(config).weights, model_shape(durations._cut(config, 10**9)).weights
    assert durations._cut(config, 10**9).num_hidden_layers == 1 and config.num_hidden_layers == 4
    monkeypatch.setattr(durations, "MEASURED", whole / 4)
    times = iter([1.0, 0.25, 5.0, 1.0])  # a training step, a forward pass, nine sampled tokens, one
    asked = []

    def timed(step: Any, device: str) -> float:
        step()  # the timed step must run
        asked.append(device)
        return next(times)

    monkeypatch.setattr(durations, "_seconds", timed)
    speed = measure(config, params_with(FEW | {"sft": {"micro_batch_size": 5}}), "cpu")
    scale = whole / cut
    assert speed == Speed(scale * 1.0 / (5 * 40), scale * 0.25 / (5 * 40), scale * 4.0 / (128 * 8))
    assert asked == ["cpu"] * 4


@pytest.mark.parametrize("name", ["ppo", "trpo", "kto", "online_dpo", "reinforce", "ipo"])
def test_every_method_has_an_estimate(name: str) -> None:
    kind = stage_of(name).partition("@")[0]
    params = params_with({"policy": {"online": [], "offline": []} | {kind: [name]}})
    item = work(params, Counts(10, 10, 10, 10, 0, 0), False)[stage_of(name)]
    samples = algorithm_of(params, name).data == "rollouts"
    assert item.trained > 0 and item.read > 0 and (item.sampled > 0) == samples


def test_work_of_a_trust_region_by_hand() -> None:
    """3 rollouts of 16 responses: the critic trains twice on each; 5 products on a quarter of them cost 2.5 passes."""
    trpo = {"steps": 3, "rollout_size": 16, "minibatch_size": 8, "epochs": 2, "cg_iterations": 5}
    changes = {"policy": {"online": ["trpo"], "offline": [], "trpo": trpo | {"fisher_fraction": 0.25}}}
    found = work(params_with(FEW | changes), Counts(10, 10, 10, 10, 0, 0), False)
    assert found["online@trpo"] == Work(trained=48 * (2 + 2.5), read=4 * 48, sampled=48)


def test_a_new_stage_needs_only_its_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains nothing and has no section in params.yaml, but loads a model and writes one."""
    before = len(declared.checkpoints())
    new = Declared("critique", outputs=(Path("models/critique"),), loads=Loads(frozen=2))
    monkeypatch.setattr(declared, "STAGES", (*declared.STAGES, new))
    params = scratch_params(tmp_path)
    shape = ModelShape(weights=1000, layers=2, width=10, heads=3, vocabulary=100)
    need = next(need for need in estimate(shape, params, is_from_scratch=True) if need.stage == "critique")
    assert (need.models, need.activations) == (2 * 4 * 1000, 0)
    assert work(params, Counts(10, 10, 10, 10, 0, 0), True)["critique"] == Work()
    assert before == 4 and len(declared.checkpoints()) == 5  # base, sft, reward and judge before


# Memory


def scratch_params(tmp_path: Path) -> Params:
    return load_params(make_scratch(tmp_path) / "params.yaml")


def test_weights_are_counted_without_allocating_them() -> None:
    llama = LlamaConfig(
        vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    # embeddings 10*4, attention 4*4*4, feed-forward 3*4*6, norms 3*4; the head is the embeddings
    # linear layers: four of 4*4, two of 4*6 and one of 6*4
    linear = {"linear": 64 + 72, "sides": 4 * 8 + 3 * 10}
    assert model_shape(llama) == ModelShape(188, layers=1, width=4, heads=2, vocabulary=10, keys=4, **linear)
    assert model_shape(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=10, n_positions=4)).layers == 2


def test_memory_of_a_trust_region_by_hand() -> None:
    """Policy and critic are trained; the reference, the reward model and π_old are frozen."""
    shape = ModelShape(weights=1_000_000, layers=2, width=10, heads=3, vocabulary=100)
    params = params_with({"policy": {"online": ["trpo", "best_of_n"], "offline": []}})
    models = {need.stage: need.models / shape.weights for need in estimate(shape, params, is_from_scratch=False)}
    assert (models["online@trpo"], models["online@best_of_n"]) == (2 * 16 + 3 * 4, 0)


def test_memory_of_each_stage_by_hand(tmp_path: Path) -> None:
    params = scratch_params(tmp_path)
    shape = ModelShape(weights=1_000_000, layers=2, width=10, heads=3, vocabulary=100)
    needs = {need.stage: need for need in estimate(shape, params, is_from_scratch=True)}
    assert list(needs) == ["base", "sft", "sample", "reward", "online@ppo", "online@grpo", "offline@dpo", "evaluate"]
    # bytes per weight: trained 16, frozen 4. PPO: policy and critic trained, reference and reward model frozen.
    models = {stage: need.models / shape.weights for stage, need in needs.items()}
    assert models == {
        "base": 16, "sft": 16, "sample": 4, "reward": 20,
        "online@ppo": 40, "online@grpo": 24, "offline@dpo": 20, "evaluate": 16,
    }  # fmt: skip
    # 128 tokens, 32 rows, 2 layers of 32*10 + 3*128 values; logits of 64 response tokens, 2 copies
    layers = 2 * 128 * 32 * (320 + 384) * 4
    assert needs["sft"].activations == layers + 2 * 32 * 64 * 100 * 4
    assert needs["sft"].total == PROCESS + 16e6 + needs["sft"].activations
    assert "base" not in [need.stage for need in estimate(shape, params, is_from_scratch=False)]


# Doctor


def test_doctor_accepts_a_valid_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, text = console()
    assert examine(make_scratch(tmp_path), "default", [], out)
    assert "rows.jsonl, 1 rows of kind preference" in text.getvalue()
    assert "✗" not in text.getvalue()
    times = [
        line.rstrip().split("  ")[-1].strip()
        for line in text.getvalue().splitlines()
        if line.startswith(("online@", "offline@"))
    ]
    assert len(times) == 3 and all(re.fullmatch(r"[\d.]+(–[\d.]+)? (s|min|h)", time) for time in times)
    assert re.search(r"✓ time +about [\d.]+(–[\d.]+)? (s|min|h) for all stages", text.getvalue())


@pytest.mark.parametrize(
    ("base", "mark", "said"),
    [("null", "✗", "Set prepare.preference_base"), ("1", "✓", "1 rows of kind preference")],
)
def test_doctor_reads_preferences_as_stage_prepare_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, mark: str, said: str
) -> None:
    root = make_scratch(tmp_path)
    monkeypatch.chdir(root)
    row = {"prompt": "p", "response_1": "a", "response_2": "b", "preference": 1}
    (root / "choices.jsonl").write_text(json.dumps(row) + "\n")
    out, text = console()
    examine(root, "default", ["prepare.path=choices.jsonl", f"prepare.preference_base={base}"], out)
    (line,) = [line for line in text.getvalue().splitlines() if line.split()[1:2] == ["data"]]
    assert line.split()[0] == mark and said in line


def test_doctor_shows_the_stages_of_the_run_it_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_scratch(tmp_path)
    monkeypatch.chdir(root)
    out, text = console()
    examine(root, "default", ["policy.online=[rloo]", "policy.offline=[]", "prepare.path=nowhere.jsonl"], out)
    assert re.search(r"✓ stages +prepare, sft, online@rloo, report$", text.getvalue(), re.MULTILINE)


@pytest.mark.parametrize(("kind", "idle"), [("preference", {"sample"}), ("question_answer", {"sample", "reward"})])
def test_doctor_leaves_out_what_a_stage_does_not_do(kind: str, idle: set[str]) -> None:
    """The user's data is not sampled for; questions with answers have no feedback for a reward model."""
    params = load_params(ROOT / "params.yaml")
    assert _idle(params, problem_of(kind).count_rows(params, 1000)) == idle
    assert _stages([Stage("sft", ()), Stage("reward", ())], idle) == (
        "sft, reward (nothing to do)" if "reward" in idle else "sft, reward"
    )


@pytest.mark.parametrize("columns", [40, 80])
def test_doctor_does_not_break_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.commands.installation._installed", lambda name: None)
    out, text = console(columns)
    assert not examine(make_scratch(tmp_path), "default", ["prepare.path=nowhere.jsonl"], out)
    assert "Run: pip install -c constraints.txt -e ." in text.getvalue()
    assert "time  " not in text.getvalue()  # nothing is measured if the run cannot start


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["prepare.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["model.path=nowhere"], "model.path nowhere does not exist"),
        (["model.path=large.json"], "Lower run.parallel, a micro_batch_size"),
        (["policy.dpo.beta=-1"], "'policy.dpo.beta' is -1"),
        (["model.path=models/sft"], "model.path models/sft is an output of stage sft"),
    ],
)
def test_doctor_names_the_faults_that_would_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignments: list[str], expected: str
) -> None:
    root = make_scratch(tmp_path)
    monkeypatch.chdir(root)
    large = json.loads((root / "model.json").read_text()) | {"hidden_size": 16384, "num_hidden_layers": 120}
    (root / "large.json").write_text(json.dumps(large))
    out, text = console()
    assert not examine(root, "default", assignments, out)
    assert expected in text.getvalue().replace("\n", " ")


def test_model_of_the_default_has_0_3_million_weights() -> None:
    config = AutoConfig.from_pretrained(str(Path(__file__).parents[3] / "helpdesk/model.json"))
    config.vocab_size = 512
    # embeddings 512*96; two layers of attention 4*96*96, feed-forward 3*96*256, norms 2*96; last norm 96
    assert model_shape(config).weights == 512 * 96 + 2 * (4 * 96 * 96 + 3 * 96 * 256 + 2 * 96) + 96


def test_the_doctor_reads_the_data_as_stage_prepare_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is broken, and preferences are 0 or 1, so only prepare.preference_base gives them a meaning."""
    row = {"prompt": "a", "response_1": "b", "response_2": "c"}
    rows = [json.dumps(row | {"preference": choice}) for choice in (0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(['{"prompt": ', *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    data = _data(params_with({"prepare": {"format": "auto", "path": "rows.jsonl", "preference_base": 0}}))
    assert data.detail == "rows.jsonl, 3 rows of kind preference"
