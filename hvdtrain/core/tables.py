"""Tables whose names and numbers are whole, on a terminal of any width and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Kind = Literal["name", "number", "text"]
# Wider than any table.
_UNBOUNDED = 100_000


def make_table(
    columns: Mapping[str, Kind],
    rows: Iterable[Sequence[str | Text]],
    title: str | None = None,
    lines: bool = True,
) -> Table:
    """A table to be shown by `print_table`.

    Args:
        columns: what each column holds, by its heading; headings that are all spaces show none. Names and
            numbers stand on one line; text is wrapped between words. Numbers are at the right.
        rows: cells in the order of the columns.
        title: above the table.
        lines: draw lines around it.
    """
    # Rich's own style is italic, which a file would have as escape codes.
    table = Table(
        title=title, title_style="none", title_justify="left", show_header=any(map(str.strip, columns))
    )
    if not lines:
        table.box, table.pad_edge = None, False
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for i, (heading, kind) in enumerate(columns.items()):
        texts = [heading.strip(), *(row[i].plain for row in cells)]
        pieces = texts if kind != "text" else [word for text in texts for word in text.split()]
        table.add_column(
            heading.strip(),
            justify="right" if kind == "number" else "left",
            no_wrap=kind != "text",
            min_width=max(map(cell_len, pieces), default=0),
        )
    for row in cells:
        table.add_row(*row)
    return table


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table at the console's width or, where names, numbers and words need more, as wide as they do.

    Args:
        table: from `make_table`.
        console: where; standard output by default.
    """
    console = console or Console()
    natural = [max((cell_len(str(cell)) for cell in column.cells), default=0) for column in table.columns]
    natural = [max(n, cell_len(str(c.header))) for n, c in zip(natural, table.columns, strict=True)]
    unbounded = console.options.update(max_width=_UNBOUNDED)
    around = Measurement.get(console, unbounded, table).maximum - sum(natural)
    left = console.width - around - sum(column.min_width or 0 for column in table.columns)
    wanted = sum(natural) - sum(column.min_width or 0 for column in table.columns)
    # Rich would take from every column; only text may give, each by what it has above its longest word.
    share = min(1.0, max(0.0, left / wanted)) if wanted else 1.0
    for column, whole in zip(table.columns, natural, strict=True):
        least = column.min_width or 0
        column.width = least + int(share * (whole - least))
    table.width = around + sum(column.width or 0 for column in table.columns)
    console.print(table, crop=False)
