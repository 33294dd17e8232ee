"""Pages that several commands write. Each command replaces its own section and leaves the others unchanged."""

from pathlib import Path


def write_section(page: Path, name: str, text: str) -> None:
    """Return a markdown page with the section `name` replaced, or appended if it is missing.

    Two comments, invisible in the rendered page, enclose a section.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, found, rest = content.partition(begin)
    after = rest.partition(end)[2] if found else ""
    if not found and before:
        before += "\n"
    page.write_text(f"{before}{begin}{text.strip()}\n{end}{after}", encoding="utf-8")
