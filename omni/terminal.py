"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from qwen_omni_onnx.common.console import without_commands

__all__ = ["print_table"]


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table with a title, folded to the terminal's width; in a log, to 150 columns."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(without_commands, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # in a log, the default of 80 columns would fold every row
    console.print(table)
