"""Comparisons: figures for DVC and MLflow, and every policy's curve in one table."""

import csv
import json
from pathlib import Path

from tasks.common.train import write_curve
from tasks.files.jsonl import write_jsonl
from tasks.files.tables import write_csv
from tasks.reporting.comparison import COLUMNS, column, comparison, curve_rows, markdown_table, short_table
from tasks.reporting.formats import rate

RATE = {"value": 0.6, "low": 0.55, "high": 0.65, "n": 300, "judge": "gold"}
REPORT = {
    "policies": {
        "ppo": {"win_rate_vs_sft": RATE, "win_rate_vs_reference": RATE, "kl": 1, "kl_low": 0.5, "reward": None},
        "dpo": {"win_rate_vs_sft": {**RATE, "value": 0.7}, "mean_length": 31.5, "distinct_1": 0.1},
    },
    "reward_model": {"accuracy": 0.66, "log_loss": 0.6, "offset": 3.0},
}


def test_only_compared_figures_are_shown_win_rates_first():
    assert list(comparison(REPORT).items()) == [
        ("win_rate_vs_sft", {"ppo": 0.6, "dpo": 0.7}),
        ("win_rate_vs_reference", {"ppo": 0.6}),
        ("kl", {"ppo": 1}),
        ("mean_length", {"dpo": 31.5}),
        ("reward_model", {"accuracy": 0.66, "log_loss": 0.6}),
    ]
    assert comparison({}) == comparison({"policies": None, "reward_model": None}) == {}


def test_the_figures_of_a_task_are_compared():
    task = {"trained/answers": {"value": 0.8, "difference": None}, "held_out/answers": {"value": None}}
    report = {"policies": {"ppo": {"kl": 1, "task": task}, "dpo": {"kl": 2}}}
    assert comparison(report) == {"kl": {"ppo": 1, "dpo": 2}, "trained/answers": {"ppo": 0.8}}


def test_the_win_rate_against_sft_has_its_interval():
    with_intervals = comparison(REPORT, intervals=True)
    assert with_intervals["win_rate_vs_sft"] == {
        "ppo": 0.6, "ppo_low": 0.55, "ppo_high": 0.65, "dpo": 0.7, "dpo_low": 0.55, "dpo_high": 0.65,
    }  # fmt: skip
    assert with_intervals["win_rate_vs_reference"] == {"ppo": 0.6}


def test_curve_is_the_log_as_a_table(tmp_path: Path):
    """Numbers are unchanged, columns keep the order of first appearance, missing values are empty, and bytes repeat."""
    history = [{"loss": 1 / 3, "kl": 1e-17}, {"loss": 0.25, "kl": 2.0, "development_loss": 0.5}]
    write_curve(tmp_path, history)
    first = (tmp_path / "curve.csv").read_bytes()
    assert first == b"step,loss,kl,development_loss\n1,0.3333333333333333,1e-17,\n2,0.25,2.0,0.5\n"
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    with (tmp_path / "curve.csv").open(newline="") as file:
        table = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert table == log
    write_curve(tmp_path, history)
    assert (tmp_path / "curve.csv").read_bytes() == first


def test_curves_of_all_policies_are_in_one_table(tmp_path: Path):
    """Columns are fixed. A snapshot's win rate is at its step. A policy without training has one empty row."""
    for name, row in {"ppo": {"loss": 2.0, "kl": 0.5, "score": 1.5}, "dpo": {"loss": 0.5, "accuracy": 0.75}}.items():
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "metrics.jsonl", [{"step": step, **row, "extra": 9} for step in (1, 2)])
    judged = [
        {"policy": "sft", "step": 0},
        {"policy": "ppo", "step": 2, "win_rate_vs_sft": {"value": 0.625}},
        {"policy": "dpo", "step": 1, "win_rate_vs_sft": {"value": 0.25}},
    ]
    write_jsonl(tmp_path / "snapshots.jsonl", judged)
    rows = curve_rows(["ppo", "dpo", "best_of_n"], tmp_path, tmp_path / "snapshots.jsonl")
    write_csv(tmp_path / "curves.csv", rows)
    assert (tmp_path / "curves.csv").read_text().splitlines() == [
        "policy,step,loss,kl,score,accuracy,response_length,win_rate_vs_sft",
        "ppo,1,2.0,0.5,1.5,,,",
        "ppo,2,2.0,0.5,1.5,,,0.625",
        "dpo,1,0.5,,,0.75,,0.25",
        "dpo,2,0.5,,,0.75,,",
        "best_of_n,0,,,,,,",
    ]


FIGURES = {
    "win_rate_vs_sft": {"value": 0.84, "low": 0.8, "high": 0.88},
    "kl": 4.75, "kl_low": 4.5, "kl_high": 5.0,
    "reward_terms": {"model": 1.875, "missing_end": -0.25},
    "best_snapshot": 1200, "seconds": 75,
}  # fmt: skip


def test_a_figure_has_the_same_format_everywhere():
    """The same text in both tables; the page also has the interval and details of the cell."""
    assert column("win_rate_vs_sft").cell(FIGURES) == "0.840 (0.800–0.880)"
    assert (column("kl").cell(FIGURES), column("kl").interval(FIGURES)) == ("4.75", "4.50 to 5.00")
    assert column("reward_terms").lines(FIGURES) == ("model 1.88", "missing_end −0.250")
    assert column("reward_terms").cell(FIGURES) == "model 1.88, missing_end −0.250"
    assert (column("best_snapshot").cell(FIGURES), column("seconds").cell(FIGURES)) == ("step 1,200", "1 min 15 s")
    assert (column("reward").cell(FIGURES), column("reward").interval(FIGURES)) == ("–", "")
    bound = FIGURES | {"kl_is_bound": True}
    assert (column("kl").cell(bound), column("kl").interval(bound)) == ("4.75 (upper bound)", "upper bound")


def test_a_rate_with_an_unknown_interval_is_shown_without_one():
    assert rate({"value": 0.5, "low": None, "high": None}) == rate({"value": 0.5}) == "0.500"
    assert rate(None) == rate({}) == rate({"value": None}) == "–"


def test_the_short_table_has_the_page_s_columns_in_its_order_best_first():
    headings, *rows = short_table(REPORT)
    assert headings == ["policy", *(item.heading for item in COLUMNS if item.is_short)]
    assert rows == [
        ["dpo", "0.700 (0.550–0.650)", "–", "–", "–", "31.5"],
        ["ppo", "0.600 (0.550–0.650)", "0.600 (0.550–0.650)", "1", "–", "–"],
    ]
    assert markdown_table(short_table(REPORT)).splitlines()[:2] == [f"| {' | '.join(headings)} |", "|" + " --- |" * 6]
    assert short_table({}) == [] and markdown_table([]) == ""


def test_logged_figures_are_columns_in_their_order():
    full = {"policies": {"ppo": dict.fromkeys((item.key for item in COLUMNS), 1.0)}}
    full["policies"]["ppo"] |= {"win_rate_vs_sft": RATE, "win_rate_vs_reference": RATE}
    assert list(comparison(full)) == [item.key for item in COLUMNS if item.is_logged]
