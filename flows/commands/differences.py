"""Which parameters tell finished runs apart. Parameters are those that MLflow has: text by dotted key."""

from collections.abc import Mapping, Sequence

from tasks.params.derived import LOOPS
from tasks.reporting.seeds import NOT_RESULTS

Texts = Mapping[str, str]
LISTS = ("policy.online", "policy.offline")


def differences(runs: Sequence[Texts]) -> list[str]:
    """Return the keys whose values differ between the runs that read them, each difference once.

    A value that a method has from its loop is shown for the loop alone.
    """
    keys = sorted({key for params in runs for key in params} - NOT_RESULTS)
    return [key for key in keys if len(_values(key, runs)) > 1 and not _is_of_loop(key, runs)]


def is_read(key: str, params: Texts) -> bool:
    """Return whether a run reads a parameter: not if it is one of a method that the run does not train."""
    method = _method(key)
    listed = [params[name] for name in LISTS if name in params]
    return method is None or not listed or any(repr(method) in names for names in listed)


def _values(key: str, runs: Sequence[Texts]) -> set[str | None]:
    return {params.get(key) for params in runs if is_read(key, params)}


def _method(key: str) -> str | None:
    """Return the method whose section has the key: `policy.dpo.beta` -> `dpo`."""
    parts = key.split(".")
    return parts[1] if len(parts) > 2 and parts[0] == "policy" and parts[1] not in LOOPS.values() else None


def _is_of_loop(key: str, runs: Sequence[Texts]) -> bool:
    """Return whether the key is one of a method, and its value is that of a loop in every run that reads it."""
    option = key.rpartition(".")[2]
    readers = [params for params in runs if is_read(key, params)]
    return _method(key) is not None and any(
        all(params.get(key) == params.get(f"policy.{loop}.{option}") for params in readers) for loop in LOOPS.values()
    )
