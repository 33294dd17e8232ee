"""The help desk's facts and phrases: customers, products, issues, fixes and the agents' sentences.

`world.json` is written by hand. Every prompt and reply is built from it, so the phrase book gives the exact meaning of
every sentence.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_core.common.errors import UserError

DEFAULT_WORLD = Path(__file__).with_name("world.json")


@dataclass(frozen=True)
class Issue:
    """A problem in the customer's words (`complaint`) and in the agent's, with `{product}` to fill in (`trouble`)."""

    complaint: str
    trouble: str


@dataclass(frozen=True)
class Mood:
    """A customer's mood: the sentences that show it, and whether the reply must apologise."""

    lines: tuple[str, ...]
    needs_apology: bool


@dataclass(frozen=True)
class Case:
    """The content of one prompt: customer, product, issue, mood, and the line that shows the mood."""

    name: str
    product: str
    issue: str
    mood: str
    line: str


@dataclass(frozen=True)
class Phrase:
    """The meaning of one sentence of a reply: its kind, and the product and issue or the fix that it names."""

    kind: str
    product: str | None = None
    issue: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class World:
    """The help desk: facts, phrases, and the right fix for each issue and product family."""

    names: tuple[str, ...]
    families: Mapping[str, tuple[str, ...]]
    issues: Mapping[str, Issue]
    moods: Mapping[str, Mood]
    fixes: Mapping[str, tuple[str, ...]]
    right_fixes: Mapping[str, Mapping[str, str]]
    greetings: tuple[str, ...]
    openers: tuple[str, ...]
    apologies: tuple[str, ...]
    grovelling: tuple[str, ...]
    follow_ups: tuple[str, ...]
    flattery: tuple[str, ...]
    promises: tuple[str, ...]

    @classmethod
    def load(cls, path: Path = DEFAULT_WORLD) -> "World":
        """Load a world from a JSON file. Raises UserError naming the file and the wrong key."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}). Check the path and permissions.") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({error}). Correct or restore the file.") from error
        return _read_world(_Reader(path), raw)

    @cached_property
    def families_of(self) -> dict[str, str]:
        """The family of each product."""
        return {product: family for family, products in self.families.items() for product in products}

    @cached_property
    def phrase_book(self) -> dict[str, Phrase]:
        """Every sentence that a reply may contain after its greeting, and its meaning."""
        book = {line: Phrase("fix", fix=fix) for fix, lines in self.fixes.items() for line in lines}
        for kind in ("follow_ups", "flattery", "promises"):
            book.update({line: Phrase(kind) for line in getattr(self, kind)})
        for kind in ("openers", "apologies", "grovelling"):
            for template in getattr(self, kind):
                for issue in self.issues:
                    for product in self.families_of:
                        sentence = self.about_trouble(template, product, issue)
                        book[sentence] = Phrase(kind, product, issue)
        return book

    def about_trouble(self, template: str, product: str, issue: str) -> str:
        """Return the template filled with this product's issue."""
        return template.format(trouble=self.issues[issue].trouble.format(product=product))

    def right_fix(self, case: Case) -> str:
        """Return the right fix for this case."""
        return self.right_fixes[case.issue][self.families_of[case.product]]

    def prompt(self, case: Case) -> str:
        """Return the text of the customer's message."""
        complaint = self.issues[case.issue].complaint
        return f"{case.name} writes about {article(case.product)} {case.product}: {complaint}. {case.line}"

    def read_prompt(self, text: str) -> Case:
        """Return the case of a prompt. Raises UserError if the prompt does not belong to this world."""
        match = re.fullmatch(r"(\w+) writes about an? (\w+): ([^.]+)\. (.+)", text)
        if match:
            name, product, complaint, line = match.groups()
            issue = next((key for key, issue in self.issues.items() if issue.complaint == complaint), None)
            mood = next((key for key, mood in self.moods.items() if line in mood.lines), None)
            if issue and mood and name in self.names and product in self.families_of:
                return Case(name, product, issue, mood, line)
        raise UserError(f"The prompt {text!r} is not a help-desk prompt. Use the gold rubric only for these.")


def article(noun: str) -> str:
    """Return 'an' before a vowel sound, else 'a': an oven, an urn, an hour, but a ukulele."""
    if re.match(r"uk|uni|us[aeu]|ut[ei]|eu|one", noun):
        return "a"
    return "an" if re.match(r"[aeiou]|hour|heir|hono", noun) else "a"


@dataclass(frozen=True)
class _Reader:
    """Reads values from the JSON file. Every error names the file and the key."""

    path: Path

    def fail(self, key: str, fault: str) -> UserError:
        return UserError(f"{self.path}: {key} {fault}. Correct this entry.")

    def get(self, table: Any, key: str, where: str = "") -> Any:
        if not isinstance(table, dict) or key not in table:
            raise self.fail(f"{where}{key}", "is missing")
        return table[key]

    def text(self, value: Any, key: str, placeholder: str = "") -> str:
        if not isinstance(value, str) or not value.strip() or not value.isascii():
            raise self.fail(key, "must be plain ASCII text")
        rest = value.replace(placeholder, "", 1)
        if placeholder not in value or "{" in rest or "}" in rest:
            raise self.fail(key, f"must contain {placeholder} once" if placeholder else "must not contain braces")
        return value

    def texts(self, value: Any, key: str, placeholder: str = "") -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self.fail(key, "must be a non-empty list")
        items = tuple(self.text(item, f"{key}[{n}]", placeholder) for n, item in enumerate(value))
        if len(set(items)) < len(items):
            raise self.fail(key, "contains an entry twice")
        return items

    def table(self, raw: Any, key: str) -> dict[str, Any]:
        value = self.get(raw, key)
        if not isinstance(value, dict) or not value:
            raise self.fail(key, "must be a non-empty table")
        return value


def _read_world(reader: _Reader, raw: Any) -> World:
    families = {k: reader.texts(v, f"families.{k}") for k, v in reader.table(raw, "families").items()}
    fixes = {k: reader.texts(v, f"fixes.{k}") for k, v in reader.table(raw, "fixes").items()}
    world = World(
        names=reader.texts(reader.get(raw, "names"), "names"),
        families=families,
        issues={k: _read_issue(reader, k, v) for k, v in reader.table(raw, "issues").items()},
        moods={k: _read_mood(reader, k, v) for k, v in reader.table(raw, "moods").items()},
        fixes=fixes,
        right_fixes=reader.table(raw, "right_fixes"),
        greetings=reader.texts(reader.get(raw, "greetings"), "greetings"),
        **{k: reader.texts(reader.get(raw, k), k, "{trouble}") for k in ("openers", "apologies", "grovelling")},
        **{k: reader.texts(reader.get(raw, k), k) for k in ("follow_ups", "flattery", "promises")},
    )
    _check(reader, world)
    return world


def _read_issue(reader: _Reader, key: str, raw: Any) -> Issue:
    where = f"issues.{key}."
    complaint = reader.text(reader.get(raw, "complaint", where), f"{where}complaint")
    return Issue(complaint, reader.text(reader.get(raw, "trouble", where), f"{where}trouble", "{product}"))


def _read_mood(reader: _Reader, key: str, raw: Any) -> Mood:
    where = f"moods.{key}."
    needs_apology = reader.get(raw, "needs_apology", where)
    if not isinstance(needs_apology, bool):
        raise reader.fail(f"{where}needs_apology", "must be true or false")
    return Mood(reader.texts(reader.get(raw, "lines", where), f"{where}lines"), needs_apology)


def _check(reader: _Reader, world: World) -> None:
    """Check what single entries do not show: complete facts and unambiguous words."""
    if len(world.fixes) < 2:
        raise reader.fail("fixes", "must contain at least two fixes, so that one can be wrong")
    for issue in world.issues:
        row = reader.get(world.right_fixes, issue, "right_fixes.")
        for family in world.families:
            right = reader.get(row, family, f"right_fixes.{issue}.")
            if right not in world.fixes:
                raise reader.fail(f"right_fixes.{issue}.{family}", f"names {right!r}, which is not in fixes")
    if len(world.families_of) < sum(map(len, world.families.values())):
        raise reader.fail("families", "contains a product in two families")
    for words, key in (
        (world.names, "names"),
        (world.greetings, "greetings"),
        (world.families_of, "families"),
    ):
        if not all(re.fullmatch(r"[A-Za-z]+", word) for word in words):
            raise reader.fail(key, "must contain only single words of letters")
    _check_prompts(reader, world)
    _check_phrases(reader, world)


def _check_prompts(reader: _Reader, world: World) -> None:
    """Check that every issue and every mood can be read back from its prompt."""
    for issue in world.issues:
        for mood, feeling in world.moods.items():
            for line in feeling.lines:
                case = Case(world.names[0], next(iter(world.families_of)), issue, mood, line)
                try:
                    differs = world.read_prompt(world.prompt(case)) != case
                except UserError:
                    differs = True
                if differs:
                    raise reader.fail(f"issues.{issue} or moods.{mood}", "is ambiguous in a prompt")


def _check_phrases(reader: _Reader, world: World) -> None:
    """Check that every entry of the phrase book is one sentence and has one meaning."""
    openings = len(world.openers) + len(world.apologies) + len(world.grovelling)
    others = sum(map(len, (*world.fixes.values(), world.follow_ups, world.flattery, world.promises)))
    if len(world.phrase_book) < openings * len(world.issues) * len(world.families_of) + others:
        raise reader.fail("fixes or phrases", "contain a sentence with two meanings")
    for sentence in world.phrase_book:
        if not re.fullmatch(r"[^.!?]+[.!?]", sentence):
            raise reader.fail(repr(sentence), "must be one sentence that ends in . ! or ?")
