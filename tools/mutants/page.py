"""The section "Planted faults" of docs/proof.md."""

from collections.abc import Sequence

from tools.mutants.copies import TIMED_OUT, Result

HEAD = """## Planted faults

Made by `make mutants`. Each fault is planted in a copy of the project, one at a time, and the tests for its module
must fail. {counts}
The last column names the test that failed first. Numbers of `docs/pitfalls.md` are in brackets.
"""


def section(results: Sequence[Result]) -> str:
    """Return the list of faults with the result of each."""
    survivors = [result for result in results if not result.is_noticed]
    late = sum(result.verdict == TIMED_OUT for result in results)
    counts = f"Planted: {len(results)}. Noticed: {len(results) - len(survivors)}"
    counts += f", of these {late} because the tests did not end." if late else "."
    counts += f" Not noticed: {', '.join(str(result.planted.number) for result in survivors) or 'none'}."
    lines = [HEAD.format(counts=counts), "| | file and symbol | change | what it breaks | noticed by |"]
    lines += ["|---|---|---|---|---|", *map(_row, results), ""]
    return "\n".join(lines)


def _row(result: Result) -> str:
    fault = result.planted.fault
    breaks = fault.breaks + (f" ({fault.pitfall})" if fault.pitfall is not None else "")
    test = result.detail.rpartition("::")[2] if result.is_noticed else f"**{result.verdict}**"
    where = f"`{result.planted.path}` `{fault.symbol}`"
    change = f"{_code(fault.old)} → {_code(fault.new)}"
    return f"| {result.planted.number} | {where} | {change} | {breaks} | {test} |"


def _code(text: str) -> str:
    """Return a snippet for one table cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`` {line} ``" if line else "nothing"
