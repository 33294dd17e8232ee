"""All methods at equal terms, several seeds: runs profile `comparison` and writes docs/comparison.md.

    python benchmarks/compare_algorithms.py [--seeds 0 1 2]

Each seed is one run of the whole pipeline, kept in runs/comparison-seed-N; a run that is there is not made again.
Delete the folder (and `dvc exp remove comparison-seed-N`) to make it anew.
"""

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks.reporting.findings import label  # noqa: E402
from tasks.reporting.formats import duration, number, rate  # noqa: E402
from tasks.reporting.sources import find_runs  # noqa: E402

PAGE = ROOT / "docs" / "comparison.md"
FIGURES = ("judge_score", "reward", "kl", "mean_length", "sampled_tokens", "trained_tokens")


def name_of(seed):
    """The run's name."""
    return f"comparison-seed-{seed}"


def run(seed):
    """One run of the pipeline; returns its report."""
    report = ROOT / "runs" / name_of(seed) / "report.json"
    if not report.is_file():
        command = ["rlhf", "run", "--profile", "comparison", "--name", name_of(seed), "--set", f"run.seed={seed}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(report.read_text(encoding="utf-8"))


def over_seeds(reports, name):
    """Means over the seeds, the win rate of each, and the least of the training times that MLflow still knows."""
    figures = [report["policies"][name] for report in reports]
    keys = {str(seed): report["sources"]["stages"][f"policy@{name}"]["key"] for seed, report in enumerate(reports)}
    rates = [entry["win_rate_vs_sft"] for entry in figures]
    times = [found.seconds for found in find_runs(keys).values()]
    return {
        "rates": rates,
        "win_rate": mean(entry["value"] for entry in rates),
        "seconds": min(times, default=None),
        **{key: mean(entry[key] for entry in figures) for key in FIGURES},
    }


def page(reports, seeds):
    """The whole page; its last section is written by hand and kept."""
    policies = list(reports[0]["policies"])
    rows = {name: over_seeds(reports, name) for name in policies}
    ranked = sorted(rows.items(), key=lambda item: -item[1]["win_rate"])
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    heads = [f"seed {seed}" for seed in seeds]
    lines = [
        "# Every method at equal terms",
        "",
        "Made by `make compare-algorithms` (profile `comparison`): the embedded default, one SFT model and one reward "
        f"model per seed, the same number of response tokens for every method, {len(seeds)} seeds. "
        f"Win rate against SFT on {reports[0]['prompts']} held-out prompts, judged by: {reports[0]['judge']}; in "
        "brackets the 95 % interval over prompts. Gold, reward, KL, length and tokens are means over the seeds, wall "
        "time is the least of them (two trainings side by side on 2 CPU cores); the KL of best-of-N sampling is its "
        f"upper bound. {date.today().isoformat()}, commit {commit}, {platform.machine()}.",
        "",
        f"| method | mean win rate | {' | '.join(heads)} | gold | reward | KL, nats | length | sampled tokens "
        "| trained tokens | wall time |",
        "|---|---:|" + "---|" * len(seeds) + "---:|" * 7,
    ]
    for name, row in ranked:
        cells = [label(name), f"{row['win_rate']:.3f}", *(rate(entry) for entry in row["rates"])]
        cells += [number(row[key]) for key in FIGURES[:4]]
        cells += [f"{round(row[key]):,}" for key in FIGURES[4:]]
        cells.append("–" if row["seconds"] is None else duration(row["seconds"]))
        lines.append(f"| {' | '.join(cells)} |")
    gold = mean(report["sft"]["judge_score"] for report in reports)
    accuracy = ", ".join(f"{report['reward_model']['accuracy']:.3f}" for report in reports)
    lines += ["", f"The SFT model's gold score is {gold:.2f}; the reward models' held-out accuracies: {accuracy}."]
    return "\n".join(lines) + "\n"


def main():
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    written = page([run(seed) for seed in seeds], seeds)
    marker = "\n## What it says, and what it doesn't\n"
    old = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    PAGE.write_text(written + (marker + old.split(marker, 1)[1] if marker in old else ""), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
