"""What commands have in common: how they begin, and where they print tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console

Options = TypeVar("Options")

TABLE_WIDTH = 120


def run_command(main: Callable[[Options], None], options: type[Options], description: str | None) -> None:
    """Runs a benchmark with options of the command line.

    Args:
        main: The benchmark.
        options: A dataclass with an ``output``, a file's or folder's path.
        description: For ``--help``.

    Raises:
        SystemExit: With status 1 and a message, if something that the user gave is wrong.
    """
    given: Any = tyro.cli(options, description=description)
    default: Any = next(field.default for field in fields(options) if field.name == "output")  # type: ignore[arg-type]
    try:
        check_output(given.output, is_file=bool(Path(default).suffix))
        main(given)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: {error}") from error
    except KeyboardInterrupt:
        exit_interrupted(Path(sys.argv[0]).stem)


def exit_interrupted(program: str) -> NoReturn:
    """Ends the process after Ctrl-C, with the usual status and without a traceback."""
    print(f"{program}: interrupted. What is finished is kept: the same command goes on.", file=sys.stderr)
    raise SystemExit(130)


def check_output(output: Path, is_file: bool) -> None:
    """Finds before the work, and not after it, that nothing could be written.

    Raises:
        ValueError: If there is a folder where a file is to be, or a file where a folder.
    """
    if is_file and output.is_dir():
        raise ValueError(f"output must be a file, but {output} is a folder. Give a file in it, such as {output / 'results.json'}.")
    folders = output.parents if is_file else [output, *output.parents]
    if found := next((folder for folder in folders if folder.exists() and not folder.is_dir()), None):
        raise ValueError(f"output {output} can't be written: {found} is a file, not a folder. Choose another place.")


def make_console() -> Console:
    """A console as wide as the terminal; a file or a pipe has no width of its own and gets one that the tables fit in."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
