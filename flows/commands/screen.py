"""Tables that commands print. A narrow terminal wraps their cells, so that no text is cut off."""

from rich import box
from rich.table import Column, Table


def plain_table(*headings: str, title: str | None = None) -> Table:
    """Return a table with a line under its headings and no other frame."""
    columns = (Column(heading, overflow="fold") for heading in headings)
    return Table(
        *columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
