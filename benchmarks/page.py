"""The generated sections of benchmarks/README.md: `python -m benchmarks.page` writes them from the stored results."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peer.cells import METHODS, PLACES
from benchmarks.stored import RESULTS, ROOT, load
from tools.sections import write_section

PAGE = ROOT / "benchmarks" / "README.md"
NONE = "–"
NAMES = {"grpo": "GRPO, whole step", "dpo": "DPO", "ppo": "PPO (TRL 1.12)", "reward": "reward model", "sft": "SFT"}
# TRL's seconds per step over ours, by PLACES: floors for GRPO and DPO, targets for the others.
FLOORS: dict[str, tuple[float | None, ...]] = {
    "grpo": (3.0, 4.5, 2.5, 4.5),
    "dpo": (2.0, 3.7, 2.0, 4.0),
    "ppo": (2.0, 2.5, 2.0, None),
    "reward": (1.3, 1.3, 1.2, None),
    "sft": (1.7, 2.6, 1.5, None),
}
MEMORY_FLOOR = 4.0  # TRL's growth over ours, for GRPO and DPO at small256
Results = Mapping[str, Mapping[str, Any]]


def write() -> None:
    """Write all sections."""
    peer = load(RESULTS / "peer.json")
    sections = {
        "speed": speed(peer),
        "memory": memory(peer),
        "limit": limits(peer),
        "growth": growth(load(RESULTS / "growth.json")),
        "demo": demo(load(RESULTS / "demo.json")),
        "gpu": gpu(load(RESULTS / "gpu.json")),
    }
    for name, text in sections.items():
        write_section(PAGE, name, text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose first column is text."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(results: Results) -> str:
    """When, where and on which commit the results were measured."""
    stamps = [result["measured"] for result in results.values()]
    dates = sorted({stamp["date"] for stamp in stamps})
    commits = sorted({stamp["commit"] for stamp in stamps})
    machines = sorted({f"{stamp['machine']}, {stamp['cores']} cores" for stamp in stamps})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{span}, commit {', '.join(commits)}, {'; '.join(machines)}."


def not_run(title: str, command: str) -> str:
    """The section of a measurement without results."""
    return f"## {title}\n\nNot run yet. Command: `{command}`."


def ratio(result: Mapping[str, Any] | None, key: str, side: str = "trl") -> float | None:
    """A side's figure over ours; None if one is missing."""
    sides = {} if result is None else result["sides"]
    if "ours" not in sides or side not in sides or not sides["ours"][key]:
        return None
    return sides[side][key] / sides["ours"][key]


def speed(peer: Results) -> str:
    """TRL's seconds per step over ours beside the floor, for both columns of TRL, and the seconds themselves."""
    if not peer:
        return not_run("Speed beside TRL", "make bench-peer")
    reached = [[NAMES[method], *(_reached(peer, method, column) for column in range(4))] for method in METHODS]
    seconds = [[NAMES[method], *(_seconds(peer.get(f"{method} {place}")) for place in PLACES)] for method in METHODS]
    return "\n\n".join(
        [
            "## Speed beside TRL",
            "TRL's CPU seconds per optimiser step divided by ours: TRL at its defaults / with its best options (floor "
            f"for the defaults). **Bold**: below the floor. {measured(peer)}",
            table(["", *PLACES], reached),
            "Median CPU seconds per optimiser step: ours / TRL / TRL with its best options.",
            table(["", *PLACES], seconds),
        ]
    )


def _reached(peer: Results, method: str, column: int) -> str:
    result, floor = peer.get(f"{method} {PLACES[column]}"), FLOORS[method][column]
    value, best = ratio(result, "seconds"), ratio(result, "seconds", "trl_best")
    if value is None:
        return NONE
    text = f"{value:.2f}" if floor is None or value >= floor else f"**{value:.2f}**"
    return f"{text} / {NONE if best is None else f'{best:.2f}'}" + (f" ({floor})" if floor else "")


def _seconds(result: Mapping[str, Any] | None) -> str:
    sides = {} if result is None else result["sides"]
    found = (f"{sides[side]['seconds']:.3g}" if side in sides else NONE for side in ("ours", "trl", "trl_best"))
    return " / ".join(found)


def memory(peer: Results) -> str:
    """The growth of memory over the level after loading."""
    if not peer:
        return not_run("Memory beside TRL", "make bench-peer")
    rows = [[NAMES[method], *(_growth(peer, method, place) for place in PLACES)] for method in METHODS]
    return "\n\n".join(
        [
            "## Memory beside TRL",
            "Growth of the peak of resident memory over the level after loading, in MiB: ours / TRL (TRL / ours). "
            f"Floor for GRPO and DPO at small256: {MEMORY_FLOOR:g}. {measured(peer)}",
            table(["", *PLACES], rows),
        ]
    )


def _growth(peer: Results, method: str, place: str) -> str:
    result = peer.get(f"{method} {place}")
    value = ratio(result, "growth_mib")
    if result is None or value is None:
        return NONE
    is_low = method in ("grpo", "dpo") and place == PLACES[-1] and value < MEMORY_FLOOR
    sides = result["sides"]
    text = f"**{value:.1f}**" if is_low else f"{value:.1f}"
    return f"{sides['ours']['growth_mib']:.0f} / {sides['trl']['growth_mib']:.0f} ({text})"


def limits(peer: Results) -> str:
    """The share of the matrix-multiply limit on both sides, and where our time goes."""
    known = {name: result["sides"]["ours"] for name, result in peer.items() if "ours" in result["sides"]}
    if not known:
        return not_run("Share of the machine's limit", "make bench-peer")
    best = max(ours["limit_gflops"] for ours in known.values())
    shares = [[name, *_shares(peer[name]["sides"])] for name in known]
    kinds = list(next((ours["operations"] for ours in known.values() if ours["operations"]), {}))
    rows = [
        [name, *(f"{100 * ours['operations'][kind]:.0f}" for kind in kinds)]
        for name, ours in known.items()
        if ours["operations"]
    ]
    return "\n\n".join(
        [
            "## Share of the machine's limit",
            "The least arithmetic of a step (each prompt read once per group or pair, no padding) divided by the time "
            f"and by the measured limit of a large float32 matrix product on one thread ({best:.0f} GFLOP/s at best), "
            f"in percent: ours / TRL. {measured(peer)}",
            table(["", "training", "decoding"], shares),
            "What our steps consist of (torch.profiler, percent of CPU time):",
            table(["", *kinds], rows),
        ]
    )


def _shares(sides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def percent(side: str, key: str) -> str:
        value = sides.get(side, {}).get(key)
        return NONE if value is None else f"{100 * value:.0f}"

    keys = ("training_share", "decoding_share")
    return [NONE if sides["ours"][key] is None else f"{percent('ours', key)} / {percent('trl', key)}" for key in keys]


def growth(results: Results) -> str:
    """How the cost of a step grows, one picture per quantity."""
    if not results:
        return not_run("How cost grows", "make bench-growth")
    pictures = [f"![{name}](../docs/images/growth-{name}.png)" for name in results]
    return "\n\n".join(
        [
            "## How cost grows",
            "Seconds and growth of memory per GRPO step of the tiny model, ours and TRL's, while one quantity varies: "
            f"{', '.join(results)}. {measured(results)}",
            *pictures,
        ]
    )


def demo(results: Results) -> str:
    """The demo stage by stage, before and after."""
    if not results:
        return not_run("The demo", "make bench-demo")
    runs = list(results)
    stages = list(dict.fromkeys(stage for run in results.values() for stage in run["stages"]))
    rows = [[stage, *(_stage(results[run]["stages"].get(stage)) for run in runs)] for stage in stages]
    rows.append(["whole flow", *(f"{results[run]['flow']:.0f}" for run in runs)])
    when = [f"{run}: {results[run]['measured']['date']}, commit {results[run]['measured']['commit']}" for run in runs]
    return "\n\n".join(
        [
            "## The demo",
            "Wall seconds of each stage of `make demo` (of them imports and bookkeeping: the stage's time minus its "
            f"work). Stages may run two at a time. {'; '.join(when)}.",
            table(["", *runs], rows),
        ]
    )


def _stage(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return NONE
    around = found.get("around")
    return f"{found['wall']:.0f}" + ("" if around is None else f" ({around:.1f})")


def gpu(results: Results) -> str:
    """Speed and memory on a GPU beside its physical limits."""
    if not results:
        return not_run("On a GPU", "make bench-gpu")
    lines = ["## On a GPU", measured(results)]
    for name, result in results.items():
        if result["rows"]:
            keys = list(result["rows"][0])
            rows = [["" if row.get(key) is None else _figure(row[key]) for key in keys] for row in result["rows"]]
            lines += [f"{name}: {result['about']}", table(keys, rows)]
    return "\n\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    write()
