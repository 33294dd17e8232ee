"""Pages that several commands write: each command replaces its own section and leaves the others."""

from pathlib import Path


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section `name` of a markdown page; a page without it gets it at its end.

    A section stands between two comments, which a reader of the rendered page does not see.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, found, rest = content.partition(begin)
    after = rest.partition(end)[2] if found else ""
    if not found and before:
        before += "\n"
    page.write_text(f"{before}{begin}{text.strip()}\n{end}{after}", encoding="utf-8")
