"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

TABLE_WIDTH = 120


def make_console() -> Console:
    """A console as wide as the terminal; a file or a pipe has no width of its own and gets one that the tables fit in."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
