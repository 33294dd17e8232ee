"""The report and its page, on a small handwritten tree of outputs: figures, sources, escaping, links."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_core.common.errors import UserError
from tasks.files import paths
from tasks.files.jsonl import write_jsonl
from tasks.reporting.charts import curve, running_mean, tradeoff
from tasks.reporting.comparison import COLUMNS, comparison, page_columns
from tasks.reporting.explanations import reward_sentence, sampling_sentences
from tasks.reporting.findings import label, title
from tasks.reporting.formats import duration, number
from tasks.reporting.report_page import markdown_text, task_cell
from tasks.reporting.seeds import code_and_data
from tasks.runtime import tracking
from tasks.runtime.stage import Stage, write_json
from tasks.stages.report import build_report, render_page

JUDGE = "gold rubric"
SAMPLES = 13  # more than evaluate.samples is by default
ATTACK = "<script>alert(1)</script>"
STAGES = {
    "data/prepared": "prepare",
    "models/base": "base",
    "models/sft": "sft",
    "data/feedback": "collect",
    "models/reward": "reward",
    "models/judge": "reward",
    "models/policies/ppo": "online@ppo",
    "models/policies/dpo": "offline@dpo",
    "evaluation": "evaluate",
}
REWARDS = [
    {"name": "model", "weight": 1.0, "clamp": 3.0, "meaning": "score of the reward model"},
    {"name": "missing_end", "weight": 3.0, "clamp": None, "meaning": "−1 for a cut"},
]
OWN = {"key": "f" * 32, "params": {}, "inputs": {"evaluation": "ee.dir"}, "outputs": ["reports/report.json"]}


def key_of(stage: str) -> str:
    """A key with eight distinct characters at its beginning."""
    return f"{list(STAGES.values()).index(stage):08d}".ljust(32, "a")


def interval(value: float, spread: float) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def won(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 300, "judge": JUDGE}


def described(kl: float, reward: float | None, judged: float) -> dict[str, Any]:
    return {
        "temperature": 1.0,
        "kl": interval(kl, 0.25),
        "kl_temperature": 1.0,
        "kl_is_bound": False,
        "reward": None if reward is None else interval(reward, 0.125),
        "reward_terms": {} if reward is None else {"model": reward + 0.5, "missing_end": -0.25},
        "reward_model_score": None if reward is None else interval(reward + 1, 0.25),
        "judge_score": interval(judged, 0.5),
        "mean_length": 31.25,
        "ended_fraction": 0.99,
        "distinct_1": 0.0375,
        "distinct_2": 0.109,
    }


def results(reward: float | None) -> dict[str, Any]:
    return {
        "judge": JUDGE,
        "prompts": 300,
        "rewards": [] if reward is None else REWARDS,
        "sft": described(0.0, reward, 2.0) | {"win_rate_vs_reference": won(0.415, 0.365, 0.465)},
        "policies": {
            "ppo": described(6.5, reward, 3.25)
            | {"win_rate_vs_reference": won(0.875, 0.825, 0.925), "win_rate_vs_sft": won(0.7935, 0.7475, 0.8395)}
            | {"reward_optimised": True},
            "dpo": described(4.75, reward, 3.75)
            | {"win_rate_vs_reference": won(0.625, 0.575, 0.675), "win_rate_vs_sft": won(0.8635, 0.8255, 0.9015)}
            | {"reward_optimised": False},
        },
    }


def snapshots(reward: float | None) -> list[dict[str, Any]]:
    rows = [{"policy": "sft", "step": 0, **described(0.01, reward, 2.0)}]
    # PPO is best at step 4 of 6. DPO's two snapshots win equally often, so the earlier one is best.
    for policy, step, kl, rate in (("ppo", 2, 2.0, 0.6), ("ppo", 4, 4.0, 0.8), ("ppo", 6, 6.0, 0.7)):
        rows.append(
            {"policy": policy, "step": step, **described(kl, reward, kl / 2), "win_rate_vs_sft": won(rate, 0, 1)}
        )
    for step in (5, 10):
        rows.append({"policy": "dpo", "step": step, **described(3.0, reward, 3.0), "win_rate_vs_sft": won(0.85, 0, 1)})
    return rows


def make_outputs(reward: float | None) -> None:
    """Write the outputs of all stages except report; without a reward model if `reward` is None."""
    for folder, stage in STAGES.items():
        Path(folder).mkdir(parents=True)
        params = {"run": {"seed": 7}, "model": {"hub": "", "path": "model.json"}}
        inputs = {"tasks/x.py": "0c0de", "data/in": f"digest-of-{stage}"}
        write_json(
            Path(folder, "manifest.json"), {"stage": stage, "key": key_of(stage), "params": params, "inputs": inputs}
        )
    card = {"source": "world.json", "kind": "helpdesk", "read": 9500, "kept": 9400, "dropped": {}}
    write_json(Path("data/prepared/card.json"), card)
    write_json(Path("data/feedback/summary.json"), {"source": "a panel", "agreement_with_gold": 0.781})
    if reward is None:
        write_json(Path("models/reward/none.json"), {"why": "no preferences: rewards come from verified answers"})
    else:
        fitted = {
            "accuracy": 0.658,
            "log_loss": 0.6175,
            "log_loss_se": 0.02,
            "ece": 0.0415,
            "pairs": 16978,
            "held_out_pairs": 561,
        }
        write_json(Path("models/reward/summary.json"), fitted | {"length_correlation": -0.125, "offset": 1, "scale": 2})
        curve_of("models/reward", 3, ("loss", "accuracy", "margin", "development_loss"))
    write_json(Path("models/judge/none.json"), {"why": "evaluation has gold"})
    curve_of("models/sft", 3, ("loss", "development_loss"))
    curve_of("models/policies/ppo", 6, ("score", "kl", "response_length", "loss", "sampled_tokens", "trained_tokens"))
    curve_of("models/policies/dpo", 100, ("loss", "accuracy", "margin", "trained_tokens"))
    write_json(Path("evaluation/results.json"), results(reward))
    write_jsonl(Path("evaluation/snapshots.jsonl"), snapshots(reward))
    responses = {"reference": "Sorry.", "sft": f"Hello {ATTACK}", "ppo": "a | b\n[x](http://e.example)", "dpo": "_Hi_"}
    prompts = [{"role": "user", "content": f"Emma & Tom ask {ATTACK}"}]
    write_jsonl(Path("evaluation/samples.jsonl"), [{"prompt": prompts, "responses": responses}] * SAMPLES)


def curve_of(folder: str, steps: int, keys: tuple[str, ...]) -> None:
    write_jsonl(Path(folder, "metrics.jsonl"), [{"step": s, **dict.fromkeys(keys, s / 8)} for s in range(1, steps + 1)])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RLHF_MLFLOW_UI", raising=False)
    monkeypatch.setenv("RLHF_ROOT", str(tmp_path))


@pytest.fixture
def outputs(checkout: None) -> None:
    make_outputs(1.375)


def draw() -> tuple[str, str]:
    """Make report.json and the page; return the HTML and the markdown."""
    Path("reports").mkdir(exist_ok=True)
    write_json(paths.REPORT, build_report(OWN))
    render_page()
    return Path("reports/report.html").read_text(), Path("reports/report.md").read_text()


def test_report_json(outputs: None) -> None:
    built = build_report(OWN)
    assert built["judge"] == JUDGE and built["prompts"] == 300
    dpo = built["policies"]["dpo"]
    assert dpo["win_rate_vs_sft"] == {"value": 0.8635, "low": 0.8255, "high": 0.9015, "n": 300, "judge": JUDGE}
    assert dpo["win_rate_vs_reference"]["value"] == 0.625
    assert (dpo["kl"], dpo["kl_low"], dpo["kl_high"]) == (4.75, 4.5, 5.0)
    assert (dpo["judge_score"], dpo["mean_length"], dpo["distinct_2"], dpo["ended_fraction"]) == (
        3.75,
        31.25,
        0.109,
        0.99,
    )
    assert built["sft"]["win_rate_vs_reference"]["value"] == 0.415
    assert (dpo["reward"], dpo["reward_low"], dpo["reward_high"]) == (1.375, 1.25, 1.5)
    assert (dpo["reward_model_score"], dpo["reward_model_score_low"]) == (2.375, 2.125)
    assert dpo["reward_terms"] == {"model": 1.875, "missing_end": -0.25}
    assert built["rewards"] == REWARDS
    assert built["reward_model"]["accuracy"] == 0.658 and built["reward_model"]["ece"] == 0.0415
    assert built["no_reward_model"] is None and built["judge_model"] is None


def test_tokens_are_summed_over_a_training(outputs: None) -> None:
    """Curves are step/8: (1 + ... + 6)/8 = 2.6 for PPO, (1 + ... + 100)/8 = 631.25 for DPO, which samples nothing."""
    policies = build_report(OWN)["policies"]
    assert (policies["ppo"]["sampled_tokens"], policies["ppo"]["trained_tokens"]) == (2, 2)
    assert (policies["dpo"]["sampled_tokens"], policies["dpo"]["trained_tokens"]) == (0, 631)


def test_without_a_reward_model_its_figures_are_null_and_the_reason_is_stated(checkout: None) -> None:
    make_outputs(None)
    built = build_report(OWN)
    ppo = built["policies"]["ppo"]
    assert built["reward_model"] is None
    assert built["no_reward_model"] == "no preferences: rewards come from verified answers"
    assert (ppo["reward"], ppo["reward_low"], ppo["reward_high"]) == (None, None, None)
    html, markdown = draw()
    assert "no preferences: rewards come from verified answers" in html
    assert "no preferences: rewards come from verified answers" in markdown
    assert html.count("<svg") == 1 + 1 + 3 + 3  # judge score against KL; sft, ppo, dpo


def test_best_snapshot_is_the_development_winner_and_the_earliest_of_equals(outputs: None) -> None:
    policies = build_report(OWN)["policies"]
    assert (policies["ppo"]["best_snapshot"], policies["dpo"]["best_snapshot"]) == (4, 5)


def test_sources(outputs: None) -> None:
    sources = build_report(OWN)["sources"]
    assert set(sources["stages"]) == set(STAGES.values()) | {"report"}
    assert sources["stages"]["reward"]["outputs"] == ["models/reward", "models/judge"]
    assert sources["stages"]["evaluate"]["key"] == key_of("evaluate")
    assert sources["stages"]["evaluate"]["inputs"] == {"tasks/x.py": "0c0de", "data/in": "digest-of-evaluate"}
    assert all(Path(file).is_file() for file in sources["figures"].values())


def test_report_json_is_reproducible(outputs: None) -> None:
    draw()
    first = paths.REPORT.read_bytes()
    draw()
    assert paths.REPORT.read_bytes() == first


def test_figures_are_on_both_pages(outputs: None) -> None:
    html, markdown = draw()
    for page in (html, markdown):
        for figure in (
            "0.864 (0.826–0.901)",
            "0.793 (0.748–0.840)",
            "0.625 (0.575–0.675)",
            "0.875 (0.825–0.925)",
            "0.415 (0.365–0.465)",
        ):
            assert figure in page
        for figure in ("4.75", "31.2", "0.109", "0.0375", "0.99"):
            assert figure in page
        for figure in ("0.658", "0.781", "0.618", "0.0415", "−0.125", "16,978", "1.38"):
            assert figure in page
        assert "9,400 of 9,500 rows" in page
        assert "no MLflow run found" in page
    assert "from: evaluation/results.json, stage evaluate, key 00000008…" in html
    assert "from: models/policies/dpo/metrics.jsonl, stage offline@dpo, key 00000007…" in html
    assert html.count("<svg") == 2 + 1 + 3 + 3 + 3  # trade-offs; sft, reward model, ppo, dpo
    assert html.count("<details") == SAMPLES + len(set(STAGES.values())) + 1  # samples; stages and the report itself


def test_policies_are_ranked_by_their_win_rate_against_the_sft_model(outputs: None) -> None:
    """DPO wins 86 % against SFT and 63 % against references, PPO 79 % and 88 %."""
    html, markdown = draw()
    rows = re.findall(r'<td><span class="dot"></span>(\w+)</td>', html)
    assert rows == ["DPO", "PPO", "SFT"]
    assert markdown.index("| DPO | 0.864") < markdown.index("| PPO | 0.793") < markdown.index("| SFT | – |")
    assert "<h1>DPO and PPO against each other</h1>" in html


def test_both_pages_show_every_column_in_one_order(outputs: None) -> None:
    html, markdown = draw()
    headings = [item.heading for item in COLUMNS]
    table = html[html.index("<thead>") : html.index("</thead>")]
    assert re.findall(r"<th>(.*?)</th>", table)[1:] == [
        ", ".join(item.heading for item in (column, *under)) for column, under in page_columns()
    ]
    line = next(line for line in markdown.splitlines() if line.startswith("| policy |"))
    assert line == f"| policy | {' | '.join(headings)} |"
    for name in ("DPO", "PPO", "SFT"):
        row = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
        assert row.count(" | ") == len(headings)
    assert "<td>100<small>step 5</small></td>" in html  # steps, best snapshot; no run is known, so no wall time


def test_reward_is_shown_as_the_sum_and_its_terms(outputs: None) -> None:
    said = (
        "Reward is the sum of policy.rewards: 1 × model (within ±3) + 3 × missing_end. Each term is shown as its mean "
        "before weighting. PPO was optimised for it, apart from any KL penalty; DPO was not, but trained on feedback."
    )
    report = build_report(OWN)
    assert reward_sentence(report) == said
    alone = report | {"policies": {"dpo": report["policies"]["dpo"]}}
    assert reward_sentence(alone).endswith("before weighting. DPO was not optimised for it, but trained on feedback.")
    html, markdown = draw()
    assert "1.38<small>1.25 to 1.50</small><small>model 1.88</small><small>missing_end −0.250</small></td>" in html
    assert "<td>2.38<small>2.12 to 2.62</small></td>" in html
    assert "| 1.38 | model 1.88, missing_end −0.250 | 2.38 |" in re.sub(r"\\(?=_)", "", markdown)
    assert "what was optimised" not in html + markdown and "(proxy)" not in html + markdown


def test_a_reward_without_a_reward_model_is_shown(checkout: None) -> None:
    """A run of GRPO on exact answers."""
    make_outputs(None)
    results = json.loads(Path("evaluation/results.json").read_text())
    results["rewards"] = [{"name": "exact_answer", "weight": 2.0, "clamp": None, "meaning": "1 for a right one"}]
    for figures in (results["sft"], *results["policies"].values()):
        figures |= {"reward": interval(0.75, 0.25), "reward_terms": {"exact_answer": 0.375}}
    write_json(Path("evaluation/results.json"), results)
    html, markdown = draw()
    assert "0.750<small>0.500 to 1.00</small><small>exact_answer 0.375</small></td>\n<td>–</td>" in html
    assert "| 0.750 | exact\\_answer 0.375 | – |" in markdown
    assert "Reward is the sum of policy.rewards: 2 × exact_answer." in html
    assert "<b>exact_answer</b>: 1 for a right one" in html and "- **exact\\_answer**: 1 for a right one" in markdown
    assert "<b>missing_end</b>" not in html


def test_the_tasks_own_figures_are_shown_with_their_differences(outputs: None) -> None:
    """A value with its difference to SFT, one without, and one that no prompt has a part in."""
    results = json.loads(Path("evaluation/results.json").read_text())
    own = {"a/strict": (0.525, interval(0.35, 0.08)), "a/loose": (0.5, None), "b/strict": (None, None)}
    for figures in (results["sft"], *results["policies"].values()):
        is_sft = figures is results["sft"]
        figures["task"] = {
            name: {"value": value, "difference": None if is_sft else difference}
            for name, (value, difference) in own.items()
        }
    write_json(Path("evaluation/results.json"), results)
    html, markdown = draw()
    assert "<td>a/strict</td><td>0.525 (+0.350, 0.270 to 0.430)</td><td>0.525 (+0.350, 0.270 to 0.430)</td>" in html
    assert "<td>b/strict</td><td>–</td><td>–</td><td>–</td>" in html
    assert "| a/loose | 0.500 | 0.500 | 0.500 |" in markdown
    assert "Figures of the task" in html and "## Figures of the task" in markdown


def test_a_task_without_own_figures_has_no_such_table(outputs: None) -> None:
    html, markdown = draw()
    assert "Figures of the task" not in html + markdown


def test_a_judge_without_scores_is_reported_by_its_win_rates(outputs: None) -> None:
    """One chart less than with scores: the judge score against KL."""
    results = json.loads(Path("evaluation/results.json").read_text())
    for figures in (results["sft"], *results["policies"].values()):
        figures["judge_score"] = None
    write_json(Path("evaluation/results.json"), results)
    write_jsonl(Path("evaluation/snapshots.jsonl"), [row | {"judge_score": None} for row in snapshots(1.375)])
    html, markdown = draw()
    assert html.count("<svg") == 1 + 1 + 3 + 3 + 3
    assert "0.864 (0.826–0.901)" in html and "0.864 (0.826–0.901)" in markdown
    figures = comparison(build_report(OWN))
    assert "judge_score" not in figures
    assert figures["win_rate_vs_sft"] == {"ppo": 0.7935, "dpo": 0.8635}


def test_a_reward_model_without_probabilities_is_shown_without_their_figures(outputs: None) -> None:
    """A regression on ratings has an accuracy, but neither log-loss nor calibration."""
    path = Path("models/reward/summary.json")
    fitted = json.loads(path.read_text())
    write_json(path, {key: fitted[key] for key in set(fitted) - {"log_loss", "log_loss_se", "ece"}})
    for page in draw():
        assert "accuracy on held-out pairs" in page
        assert "log-loss, nats" not in page and "ECE" not in page


def test_without_rewards_the_page_says_so() -> None:
    assert reward_sentence({"rewards": []}).startswith("There is no reward")


def described_at(temperature: float, own: float, *, is_bound: bool = False) -> dict[str, Any]:
    return {"temperature": temperature, "kl_temperature": own, "kl_is_bound": is_bound}


KL = "KL is measured against the SFT model, in nats per response, summed over the vocabulary at each sampled token"
TEMPERED = "; the temperature also divides the SFT model's logits."


@pytest.mark.parametrize(
    ("sft", "policies", "at", "kl"),
    [
        ((1.0, 1.0), {"dpo": (1.0, 1.0)}, "temperature 1.", f"{KL}."),
        ((1.0, 1.0), {"ppo": (0.7, 0.7)}, "each policy's own temperature (SFT 1, PPO 0.7).", KL + TEMPERED),
        (
            (0.0, 1.0),
            {"ppo": (0.0, 0.7)},
            "temperature 0.",
            f"{KL}, on a second sample at each policy's own temperature (SFT 1, PPO 0.7){TEMPERED}",
        ),
        ((0.0, 1.0), {"dpo": (0.0, 1.0)}, "temperature 0.", f"{KL}, on a second sample at temperature 1."),
    ],
)
def test_the_page_says_at_which_temperature_responses_are_sampled_and_kl_is_measured(
    sft: Any, policies: Any, at: str, kl: str
) -> None:
    report = {"sft": described_at(*sft), "policies": {name: described_at(*both) for name, both in policies.items()}}
    assert sampling_sentences(report) == [f"Responses are sampled at {at}", kl]
    report["policies"]["best_of_n"] = described_at(sft[0], sft[0], is_bound=True)
    assert sampling_sentences(report)[2] == "The KL of Best of N is an upper bound, not a measurement."


def test_a_policy_without_figures_is_shown_last(outputs: None) -> None:
    results = json.loads(Path("evaluation/results.json").read_text())
    results["policies"]["dpo"] |= dict.fromkeys(("win_rate_vs_sft", "win_rate_vs_reference", "kl"))
    write_json(Path("evaluation/results.json"), results)
    html, markdown = draw()
    assert re.findall(r'<td><span class="dot"></span>(\w+)</td>', html) == ["PPO", "DPO", "SFT"]
    assert "| DPO | – | – | – |" in markdown


def test_sampled_text_is_never_markup(outputs: None) -> None:
    html, markdown = draw()
    assert "<script" not in html and "<script" not in markdown
    assert "Hello &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "Emma &amp; Tom ask" in html and "Emma &amp; Tom ask" in markdown
    assert r"a \| b<br>\[x\](http://e.example)" in markdown
    assert r"\_Hi\_" in markdown


def test_the_page_fetches_nothing(outputs: None) -> None:
    html, _ = draw()
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", html) == []
    assert re.findall(r"url\((?!#)|@import|xmlns", html) == []
    assert re.findall(r"https?://[^\s<)]+", html) == ["http://e.example"] * SAMPLES  # text of a sample
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', html)) <= set(ids)


def test_colours_are_the_pages(outputs: None) -> None:
    html, _ = draw()
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert re.findall(r"(?:fill|stroke): (?!none|var\()[^;\"]*", drawn) == []


def test_runs_are_linked_by_stage_key(outputs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer of two finished runs is linked. Failed runs and runs with another key are not. 75 s is 1 min 15 s."""
    monkeypatch.setenv("RLHF_MLFLOW_UI", "http://127.0.0.1:5999/")
    client = tracking.client()
    experiment = tracking.experiment_id(client)

    def run(key: str, start: int, end: int, status: str = "FINISHED") -> str:
        begun = client.create_run(experiment, start_time=start * 1000, tags={"stage_key": key})
        client.set_terminated(begun.info.run_id, status, end * 1000)
        return str(begun.info.run_id)

    older = run(key_of("offline@dpo"), 1000, 1010)
    newer = run(key_of("offline@dpo"), 2000, 2075)
    failed = run(key_of("offline@dpo"), 3000, 3001, "FAILED")
    other = run("b" * 32, 4000, 4001)
    before = paths.REPORT
    html, markdown = draw()
    url = f"http://127.0.0.1:5999/#/experiments/{experiment}/runs/{newer}"
    assert f'<a href="{url}">' in html and f"[run]({url})" in markdown
    assert "1 min 15 s" in html and "1 min 15 s" in markdown
    assert not any(identity in html for identity in (older, failed, other))
    assert newer not in before.read_text()


def test_looking_for_runs_creates_no_store(outputs: None) -> None:
    draw()
    assert not Path("mlflow.db").exists()


def test_the_pages_have_a_section_over_seeds(outputs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO's win rates 0.8635 and 0.8435 of seeds 7 and 8: mean 0.8535, s/√2 = 0.01, ± 12.7062 × 0.01 = 0.127.

    The run of seed 8 has the same parameters, code and data; the one of seed 9 has other code.
    """
    Path("dvc.lock").write_text("lock")
    params = {"run.seed": "7", "sft.epochs": "1"}
    metrics = {"win_rate_vs_sft/dpo": 0.8435, "kl/dpo": 5.25, "mean_length/dpo": 30.0}
    code = code_and_data(build_report(OWN))

    def finished(params: dict[str, str], **tags: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(params=params, metrics=metrics, tags=tags))

    runs = [
        finished(params | {"run.seed": "9"}, code_and_data="other"),
        finished(params | {"run.seed": "8"}, code_and_data=code),
        finished(params, code_and_data=code, **tracking.lock_tag(Path())),
    ]
    monkeypatch.setattr(tracking, "pipeline_runs", lambda: runs)
    html, markdown = draw()
    assert "seeds 7, 8 (n = 2)" in html and "seeds 7, 8 (n = 2)" in markdown
    dpo = next(line for line in markdown.splitlines() if line.startswith("| DPO | 0.854"))
    assert dpo == (
        "| DPO | 0.854 (0.726 to 0.981) | 7: 0.864, 8: 0.844 | 5.00 (1.82 to 8.18) | 7: 4.75, 8: 5.25 "
        "| 30.6 (22.7 to 38.6) | 7: 31.2, 8: 30.0 |"
    )
    assert "0.854 (0.726 to 0.981)<small>7: 0.864, 8: 0.844</small>" in html
    assert "95 % interval over the prompts of this run" in html
    monkeypatch.setattr(tracking, "pipeline_runs", lambda: runs[2:])  # one seed alone
    assert "Over seeds" not in "".join(draw())


def test_outputs_that_are_not_the_reports_are_named(outputs: None) -> None:
    assert "may not fit" not in draw()[0]
    manifest = Path("evaluation/manifest.json")
    manifest.write_text(manifest.read_text().replace(key_of("evaluate"), "c" * 32))
    for file in Path("models/sft").iterdir():
        file.unlink()
    render_page()
    assert "The outputs of evaluate, sft are missing or newer" in Path("reports/report.html").read_text()


def test_missing_and_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"reports/report\.json does not exist.*dvc repro"):
        render_page()
    with pytest.raises(UserError, match=r"evaluation/results\.json does not exist.*dvc repro"):
        build_report(OWN)
    Path("evaluation").mkdir()
    Path("evaluation/results.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation/results\.json is not JSON"):
        build_report(OWN)


def test_a_file_as_output_replaces_the_old_one_and_has_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reports").mkdir()
    Path("reports/report.json").write_text("old")
    Path("reports/report.html").write_text("kept")
    stage: Any = Stage("report", SimpleNamespace(), {}, {}, "k", SimpleNamespace())  # type: ignore[arg-type]
    stage.out_file("reports/report.json").write_text("new")
    assert Path("reports/report.json").read_text() == "old"
    stage.finish()
    assert {path.name: path.read_text() for path in Path("reports").iterdir()} == {
        "report.json": "new",
        "report.html": "kept",
    }


def test_title() -> None:
    assert title(["ppo"]) == "PPO against the SFT model"
    assert title(["ppo", "dpo", "kto"]) == "PPO, DPO and KTO against each other"
    assert title(list("abcde")) == "5 policies against each other"


def test_running_mean() -> None:
    """Width 1: (1+2)/2 = 1.5, (1+2+6)/3 = 3, (2+6+4)/3 = 4, (6+4)/2 = 5."""
    assert running_mean([1.0, 2.0, 6.0, 4.0], 1) == pytest.approx([1.5, 3.0, 4.0, 5.0])


def test_charts_are_reproducible() -> None:
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 90)]
    assert curve(rows, "loss", "sft", 0) == curve(rows, "loss", "sft", 0)
    best = {"ppo": 4, "dpo": None}
    assert tradeoff(snapshots(1.0), best, "reward", "reward") == tradeoff(snapshots(1.0), best, "reward", "reward")


def test_formats() -> None:
    assert number(-1234) == "−1,234"
    change = {"value": -0.05, "low": -0.1, "high": 0.02}
    assert task_cell({"value": 0.2, "difference": change}) == "0.200 (−0.050, −0.100 to 0.020)"
    shown = {None: "–", 16978: "16,978", 0.04153: "0.0415", 134.2: "134", -0.125: "−0.125", 2.0: "2.00", -1e-8: "0.000"}
    assert {value: number(value) for value in shown} == shown
    assert [duration(seconds) for seconds in (0.4, 59.6, 312)] == ["0 s", "1 min 0 s", "5 min 12 s"]
    assert markdown_text("a|b") == r"a\|b" and markdown_text(3) == 3
    assert label("online_dpo") == "Online DPO"
