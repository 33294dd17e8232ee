"""Find the classes that the files of a package define, so that a new file is all that a new class needs."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: str, base: type[T], attribute: str) -> dict[str, list[type[T]]]:
    """The subclasses of `base` that each file of a package defines and that declare `attribute` themselves.

    The keys are the names of the files without .py. Classes that a file imports, and packages inside, are left out.
    """
    found: dict[str, list[type[T]]] = {}
    for file in iter_modules(import_module(package).__path__):
        if file.ispkg:
            continue
        module = import_module(f"{package}.{file.name}")
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
        found[file.name] = [kind for kind in own if issubclass(kind, base) and attribute in vars(kind)]
    return found
