"""Tables as Markdown has them."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Return the lines of a table.

    Args:
        head: of the columns.
        cells: row by row, as many as there are columns.
        words: columns of words, which stand to the left; those of figures behind them stand to the right.
    """
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in cells)]
