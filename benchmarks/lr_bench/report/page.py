"""The page, and the files beside it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import jinja2
from markupsafe import Markup

from benchmarks.lr_bench.report import words
from benchmarks.lr_bench.report.figures import COLOURS, MOST_SHOWN, Figure, all_figures, contestants_drawn
from benchmarks.lr_bench.report.tables import all_tables
from benchmarks.lr_bench.summary import DEFAULT, HINDSIGHT, POOL, RIVAL, Summary

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("benchmarks.lr_bench.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)


def write(summary: Summary, folder: Path) -> Path:
    """Writes ``report.html``, ``summary.json``, ``figures/*.png|svg`` and ``tables/*.csv|tex|md`` into a folder, replacing what is there.

    Args:
        summary: What to show.
        folder: Made where it is missing.

    Returns:
        Path of the page, which needs none of the other files.
    """
    figures_folder, tables_folder = folder / "figures", folder / "tables"
    for path in (figures_folder, tables_folder):
        path.mkdir(parents=True, exist_ok=True)
        for old in path.iterdir():  # of a run with other tasks
            if old.suffix in (".png", ".svg", ".csv", ".tex", ".md"):
                old.unlink()
    sections: dict[str, list[tuple[Figure, Markup]]] = defaultdict(list)
    for figure in all_figures(summary):
        png, svg = figure.files()
        (figures_folder / f"{figure.name}.png").write_bytes(png)
        (figures_folder / f"{figure.name}.svg").write_text(svg)
        sections[figure.section].append((figure, Markup(figure.inline(svg))))
    tables = {table.name: table for table in all_tables(summary)}
    for name, table in tables.items():
        (tables_folder / f"{name}.csv").write_text(table.to_csv())
        (tables_folder / f"{name}.tex").write_text(table.to_latex())
        (tables_folder / f"{name}.md").write_text(f"{table.title}\n\n{table.to_markdown()}\n{table.note}\n")
    (folder / "summary.json").write_text(summary.to_json())
    page = folder / "report.html"
    names = {"rival": RIVAL, "default": DEFAULT, "pool": POOL, "hindsight": HINDSIGHT}
    given = {"summary": summary, "figures": sections, "tables": tables, "words": words, "names": names, "most_shown": MOST_SHOWN}
    drawn = {name: _variable(colour) for track in summary.tracks for name, colour in contestants_drawn(summary, track).items()}
    page.write_text(_ENVIRONMENT.get_template("report.html").render(**given, drawn=drawn))
    return page


def _variable(colour: str) -> str:
    return next(name for name, value in COLOURS.items() if value == colour)
