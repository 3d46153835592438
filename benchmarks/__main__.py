"""Is a controller better than what people do by hand? Runs it against tuned schedules and rules, and says so with intervals."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm
from tyro.extras import SubcommandApp

from benchmarks.lr_bench.analysis import summarise
from benchmarks.lr_bench.contestants import enter, identities, left_out, rivals, split_names
from benchmarks.lr_bench.engine import Benchmark, Engine, LocalEngine
from benchmarks.lr_bench.records import Cell, CellResult
from benchmarks.lr_bench.report import print_tables, write
from benchmarks.lr_bench.store import Store, StoreError
from benchmarks.lr_bench.suites import REFERENCES, SUITES, TRACKS, Suite, find_suite
from benchmarks.statistics import paired_difference
from benchmarks.terminal import exit_interrupted, make_console
from lr_env.checks import positive_integer, unknown_name

STORE = "results.sqlite"
RESULTS = Path("results/bench")
KEPT = Path("benchmarks/results/standard")
"""What is published: reports without curves."""
MOST_WORKERS = 8

Folder: TypeAlias = Annotated[Path, tyro.conf.Positional]
Name: TypeAlias = Annotated[str, tyro.conf.Positional]

app = SubcommandApp()


@app.command
def run(
    suite: str = "quick",
    controllers: tuple[str, ...] = (),
    seeds: int | None = None,
    output: Path | None = None,
    start_from: Path | None = None,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    replace_optimizer: bool = False,
    controls: bool = True,
    training_costs: tuple[str, ...] = (),
) -> None:
    """Runs a suite; what an earlier or interrupted run has computed is not computed again. Ends with the tables.

    Args:
        suite: Its name; see `lr-bench list`.
        controllers: What enters beside the rivals, with commas between: `name=file.safetensors`, `path/to/file.py:MyController`,
            `module:MyController`, `model.zip`. A name with several files is one controller trained with several seeds. The first one has the
            primary comparison.
        seeds: Reported trainings of each task, at least 2; the suite's own where not given.
        output: Folder of the results; results/bench/SUITE where not given. Several processes may share it.
        start_from: A file of `lr-bench export`, such as benchmarks/results/standard/results.sqlite.xz: its results are taken over, and
            only what it lacks is computed.
        workers: Processes; one for each core, at most 8, where not given. With Ray pieces of work at a time, all that it has cores for.
        engine: Where it is computed; with ray on a cluster, see `benchmarks/lr_bench/ray_engine.py` for what its machines need.
        address: Of the cluster: HOST:PORT or auto; the variable RAY_ADDRESS, else this machine alone, where not given.
        replace_optimizer: Run controllers that were made for another optimizer with each track's all the same.
        controls: Run the controls of each controller that enters, too: does what it sees matter?
        training_costs: What the training of controllers cost, to stand beside the tuning of their rivals: `"NAME=in words"`.
    """
    chosen = find_suite(suite).with_reporting(seeds)
    chosen.check_data()
    contestants = enter(controllers, chosen, replace_optimizer, controls)
    folder = RESULTS / chosen.name if output is None else output
    console = make_console()
    for name, reason in left_out(chosen).items():
        console.print(f"Left out: {name}, {reason}", markup=False)
    costs = parse_training_costs(training_costs, [contestant.name for contestant in contestants])
    entered = [contestant.name for contestant in contestants if contestant.is_entered]
    computing = make_engine(engine, address, workers)
    with Store(folder / STORE) as store:
        store.record_run(chosen.key, typed_command(), entered)  # before those that are taken over: the newcomer has the primary comparison
        if start_from is not None:
            store.take_over(start_from)
        store.forget(chosen.key, identities(contestants, chosen))
        store.record_training_costs(costs)
        show_versions(store.versions_with_this(), console)
        benchmark, cells = run_benchmark(chosen, contestants, store, computing)
        show_problems(benchmark.problems, console)
        print_tables(summarise(stored(store, cells, benchmark), chosen, entered or None, provenance(store, chosen), store.training_costs()), console)
    console.print(f"Results: {folder / STORE}. A page with everything: lr-bench report {shlex.quote(str(folder))}", markup=False)
    succeeded = {cell.contestant for cell in cells if benchmark.results[cell.key].error is None}
    if failed := [name for name in entered if name not in succeeded]:
        raise SystemExit(f"lr-bench: no training of {', '.join(failed)} has a result: what went wrong stands above.")


@app.command
def report(folder: Folder, suite: str | None = None, controllers: tuple[str, ...] = ()) -> None:
    """Writes a page, figures and tables of what a folder holds.

    Args:
        folder: Of `lr-bench run`.
        suite: Where the folder holds several.
        controllers: Names of those that the report is about, with commas between, the one of the primary comparison first; where not given,
            those that were entered, in the order in which they were.
    """
    with open_store(folder) as store:
        chosen = stored_suite(store, suite)
        names = tuple(name for text in controllers for name in split_names(text, store.contestants(chosen.key)))
        check_names(names, store, chosen)
        origins = provenance(store, chosen, typed_command())
        summary = summarise(store.cells(chosen.key), chosen, names or entered_names(store, chosen), origins, store.training_costs())
        console = make_console()
        show_versions(store.versions(), console)
        print_tables(summary, console)
        console.print(f"Written to {write(summary, folder / 'report')}", markup=False)


@app.command
def export(folder: Folder, file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Writes the results of a folder without their curves into one small file, to be published or kept.

    `lr-bench run --start-from FILE` computes what it lacks, such as another controller. As results.sqlite in a folder it is a store like any other.

    Args:
        folder: Of `lr-bench run`.
        file: Which is made; compressed where its name ends in .xz.
    """
    with open_store(folder) as store:
        store.export(file)
    make_console().print(f"Written to {file}, {file.stat().st_size / 1e6:.1f} MB")


@app.command
def freeze(folder: Folder, suite: str | None = None) -> None:
    """Makes what a finished run found at the default rate and of the rival tuned per task the suite's own numbers, which scores are measured by.

    Args:
        folder: Of `lr-bench run`.
        suite: Where the folder holds several.
    """
    with open_store(folder) as store:
        chosen = stored_suite(store, suite)
        references = summarise(store.cells(chosen.key), chosen).references
    wanted = {task.name: task.reporting for task in chosen.tasks}
    if other := sorted({row.task for row in references if row.trainings not in (0, wanted[row.task])}):
        raise ValueError(
            f"The run in {folder} has another number of reported trainings than {chosen.key}, on {', '.join(other)}: run it without --seeds."
        )
    known = json.loads(REFERENCES.read_text())
    if chosen.key in known:
        raise ValueError(f"{chosen.key} has frozen numbers, which never change: a new version of the suite may have others.")
    if lacking := [row.task for row in references if row.default is None or row.rival is None]:
        raise ValueError(f"The run in {folder} is not finished: numbers of {', '.join(dict.fromkeys(lacking))} are missing.")
    known[chosen.key] = {track: {} for track in chosen.tracks}
    for row in references:
        known[chosen.key][row.track][row.task] = {"default": row.default, "rival": row.rival, "scored": row.scored}
    REFERENCES.write_text(json.dumps(known, indent=1) + "\n")
    make_console().print(f"Written to {REFERENCES}")


@app.command
def leaderboard(folder: Folder = KEPT, readme: Path = Path("README.md")) -> None:
    """Puts the answer that is kept in a folder into a README, between its two lines that mark the place.

    These are `<!-- leaderboard -->` and `<!-- /leaderboard -->`. The answers about other controllers than the first one, and the leaderboards, are
    folded.

    Args:
        folder: Whose `tables/leaderboard-TRACK.md` and `tables/answer.md` are taken, as `lr-bench report` writes them.
        readme: The file; a relative path is one of the present folder.
    """
    leaderboards = (folder / "tables" / f"leaderboard-{track}.md" for track in TRACKS)
    tables = [folder / "tables" / "answer.md", *(path for path in leaderboards if path.is_file())]
    if missing := [str(path) for path in (readme, *tables) if not path.is_file()] or ([str(folder)] if len(tables) == 1 else []):
        raise FileNotFoundError(f"There is no {' and no '.join(missing)}: `lr-bench report` writes tables.")
    before, begin, rest = readme.read_text().partition("<!-- leaderboard -->\n")
    _, end, after = rest.partition("<!-- /leaderboard -->\n")
    if not end:
        raise ValueError(f"{readme} has no lines <!-- leaderboard --> and <!-- /leaderboard --> to put the leaderboards between.")
    answer, *folded = (path.read_text().strip() for path in tables)
    title, table, note = answer.split("\n\n", 2)
    head, line, *rows = table.splitlines()
    own, others = ([row for row in rows if (row.split(" | ")[0] == rows[0].split(" | ")[0]) is is_own] for is_own in (True, False))
    shown = ["\n\n".join((title, "\n".join((head, line, *own)), note))]
    if others:
        folded.insert(0, "\n".join(("And the other controllers?", head, line, *others)))
    for table in folded:
        title, _, rest_of_table = table.partition("\n")
        shown.append(f"<details><summary>{title}</summary>\n\n{rest_of_table.strip()}\n\n</details>")
    readme.write_text("".join((before, begin, "\n\n".join(shown), "\n", end, after)))


@app.command
def compare(first: Name, second: Name, output: Path = RESULTS / "quick", suite: str | None = None) -> None:
    """Prints the paired differences of two contestants, per task.

    Args:
        first: Its name.
        second: Its name.
        output: Folder of the results.
        suite: Where the folder holds several.
    """
    if first == second:
        raise ValueError(f"Two different contestants are compared, but {first!r} was given twice.")
    with open_store(output) as store:
        chosen = stored_suite(store, suite)
        check_names((first, second), store, chosen)
        cells = [(cell, result) for cell, result in store.cells(chosen.key) if cell.role == "report" and result.error is None]
    make_console().print(comparison(cells, first, second))


@app.command(name="list")
def list_all(suite: str | None = None) -> None:
    """Lists the suites; or the tasks and rivals of one.

    Args:
        suite: Its name.
    """
    console = make_console()
    if suite is None:
        table = new_table("Suites", ("Suite", "version", "tasks", "tracks", "core hours, about", "what for"))
        for each in SUITES.values():
            row = (each.name, str(each.version), str(len(each.tasks)), ", ".join(each.tracks), f"{hours(each):.2g}", each.question)
            table.add_row(*row)
        console.print(table)
        return
    chosen = find_suite(suite)
    table = new_table(chosen.question, ("Task", "budget", "SGD steps", "tuning seeds", "reported seeds", "random search", "on seeds", "whole grids"))
    for task in chosen.tasks:
        numbers = (task.horizon, task.tuning, task.reporting, task.pool, task.searching)
        table.add_row(task.name, task.budget, *(f"{number:,}" for number in numbers), "no" if task.is_costly else "yes")
    console.print(table)
    table = new_table("Rivals", ("Contestant", "tuned", "points", "tracks"))
    for contestant in rivals(chosen):
        points = len(next(iter(contestant.grid.values())).points(chosen.tasks[0])) if contestant.grid else 0
        table.add_row(contestant.name, contestant.tuning or "not", str(points or "–"), ", ".join(contestant.tracks))
    console.print(table)


def parse_training_costs(given: Sequence[str], contestants: Sequence[str]) -> dict[str, str]:
    """Words by contestant, of ``NAME=WORDS``.

    Raises:
        ValueError: If there are no words, or the contestant is unknown.
    """
    costs = {}
    for text in given:
        name, _, words = text.partition("=")
        if not words.strip():
            raise ValueError(f'Training costs are given as "NAME=in words", but {text!r} was given.')
        if name not in contestants:
            raise unknown_name("contestant", name, contestants)
        costs[name] = words.strip()
    return costs


def make_engine(name: Literal["local", "ray"], address: str | None, workers: int | None) -> Engine:
    """Where work is computed.

    Raises:
        ValueError: If an option is wrong.
        ImportError: If Ray is missing.
        ConnectionError: If it can't be reached.
    """
    if workers is not None:
        positive_integer("workers", workers)
    if name == "ray":
        from benchmarks.lr_bench.ray_engine import RayEngine

        return RayEngine(address, workers)
    if address is not None:
        raise ValueError(f"An address is for Ray, but {address!r} was given with the engine {name!r}. Pass --engine ray, or leave --address out.")
    return LocalEngine(workers or _cores())


def run_benchmark(
    suite: Suite, contestants: Sequence[Any], store: Store, engine: Engine, kind: type[Benchmark] = Benchmark
) -> tuple[Benchmark, list[Cell]]:
    """Runs with a progress bar; returns the benchmark and the cells that it is about."""
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} to go {postfix}"
    interval = 0.1 if sys.stderr.isatty() else 60.0  # seconds; a log is not to be filled with bars
    with tqdm(total=1.0, desc=suite.key, bar_format=layout, dynamic_ncols=True, smoothing=0.1, mininterval=interval) as bar:

        def show(what: str, done: float, known: float) -> None:
            bar.total = max(bar.total + known, bar.n + done)
            bar.set_postfix_str(what[:60], refresh=False)
            bar.update(done)

        benchmark = kind(suite, contestants, store, engine, show)
        bar.total = benchmark.cost()
        try:
            cells = benchmark.run()
        finally:
            engine.shutdown()
        bar.total = bar.n
        bar.set_postfix_str("")
    return benchmark, cells


def stored(store: Store, cells: Sequence[Cell], benchmark: Benchmark) -> list[tuple[Cell, CellResult]]:
    """The cells' results, from the store, with curves; what could not be stored from memory."""
    return [(cell, store.find(cell) or benchmark.results[cell.key]) for cell in cells]


def open_store(folder: Path) -> Store:
    """The store of a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = folder / STORE
    if not path.is_file():
        raise FileNotFoundError(f"There are no results in {folder}: it has no file {STORE}. `lr-bench run --output {folder}` makes them.")
    return Store(path)


def stored_suite(store: Store, name: str | None) -> Suite:
    """The suite of this name, or the only one that a store has results of; results of its earlier versions are left alone.

    Raises:
        ValueError: If there is none or several, or its version is not the present one.
    """
    keys = store.suites()
    found = {key.rpartition("-")[0] for key in keys}
    if name is not None:
        found &= {name}
    if len(found) != 1:
        raise ValueError(f"{store.path} has results of {', '.join(keys) or 'no finished suite'}. Choose one with --suite, such as quick or standard.")
    present = [suite for suite in SUITES.values() if suite.key in keys and suite.name in found]
    if not present:
        raise ValueError(f"{store.path} has results of {', '.join(keys)}, but this version has {', '.join(suite.key for suite in SUITES.values())}.")
    return present[0]


def check_names(names: Sequence[str], store: Store, suite: Suite) -> None:
    """Whether a store has results of these contestants.

    Raises:
        ValueError: If it has none of one.
    """
    known = store.contestants(suite.key)
    for name in names:
        if name not in known:
            raise unknown_name("contestant", name, known)


def entered_names(store: Store, suite: Suite) -> tuple[str, ...] | None:
    """Contestants of a store that were entered, the first one first; None where there is none."""
    there = store.contestants(suite.key)
    entered = [name for name in store.entered(suite.key) if name in there]
    known = {*entered, *(contestant.name for contestant in rivals(suite)), *left_out(suite)}
    others = [name for name in there if name not in known and not any(name.startswith(f"{other}: ") for other in there)]
    return (*others, *entered) or None  # the others are of versions that did not record who was entered


def comparison(cells: Sequence[tuple[Cell, CellResult]], first: str, second: str) -> Table:
    """Paired differences of log10 of the final loss, below 0 the first is better; controllers of several training seeds are averaged."""
    scores: dict[tuple[str, str], dict[str, list[CellResult]]] = {}
    for cell, result in cells:
        if cell.contestant in (first, second):
            scores.setdefault((cell.track, cell.task), {}).setdefault(cell.contestant, []).append(result)
    title = f"log10 of the final loss: {first} − {second}, paired; below 0 the first is better"
    table = new_table(title, ("Track", "Task", first, second, "difference [95 % interval]", "loss ratio", "diverged"))
    for (track, task), found in scores.items():
        if len(found) < 2:
            continue
        ours, theirs = (np.mean([result.scores for result in found[name]], axis=0) for name in (first, second))
        if len(ours) != len(theirs):
            table.add_row(track, task, "ran on other seeds")
            continue
        difference = paired_difference(ours, theirs)
        interval = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        diverged = " / ".join(f"{np.mean([result.diverged for result in found[name]]):.0%}" for name in (first, second))
        table.add_row(track, task, f"{ours.mean():+.3f}", f"{theirs.mean():+.3f}", interval, f"{10**difference.mean:.3f}", diverged)
    return table


def provenance(store: Store, suite: Suite, report_command: str | None = None) -> dict[str, str]:
    """The commands of a suite's runs and of the report about them, machines and versions."""
    commands = store.commands(suite.key) or ["not recorded, as the results are of a version that did not"]
    machines = [", ".join(f"{name} {value}" for name, value in machine.items()) for machine in store.machines()]
    different = versions_in_words(store.versions())
    reports = {"report": report_command} if report_command else {}
    return numbered("run", commands) | reports | numbered("machine", machines) | ({"versions": different} if different else {})


def numbered(name: str, texts: Sequence[str]) -> dict[str, str]:
    """Texts by name, with a number where there are several."""
    return {f"{name} {number}" if len(texts) > 1 else name: text for number, text in enumerate(texts, 1)}


def typed_command(program: str = "lr-bench") -> str:
    """What was typed to start this process."""
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def versions_in_words(versions: Sequence[Mapping[str, Any]]) -> str | None:
    """A line about results of several versions, with what differs; None where there is one."""
    if len(versions) < 2:
        return None
    differing = [name for name in versions[0] if len({each[name] for each in versions}) > 1]
    texts = [", ".join(f"{name} {each[name] or 'unknown'}" for name in differing) for each in versions]
    return f"Results of {len(versions)} versions stand side by side: {'; '.join(texts)}."


def show_versions(versions: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Says so where results are of several versions."""
    if text := versions_in_words(versions):
        console.print(text, markup=False, highlight=False)


def show_problems(problems: Sequence[str], console: Console) -> None:
    """Says what went wrong."""
    if problems:
        console.print(f"{len(problems)} problems; the rest is as it should be:", style="bold")
        for problem in problems:
            console.print(f"  {problem}", markup=False)


def hours(suite: Suite) -> float:
    """Of one core, estimated."""
    with_nothing: Any = None  # no store is needed to count
    return Benchmark(suite, rivals(suite), with_nothing, LocalEngine()).cost() / 3600


def new_table(title: str, columns: Sequence[str]) -> Table:
    """A table whose numbers stand below each other."""
    table = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if index == 0 else "right")
    return table


def _cores() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MOST_WORKERS)


def main() -> None:
    """The command `lr-bench`.

    Raises:
        SystemExit: With status 1 and a message, if something that the user gave is wrong.
    """
    torch.set_num_threads(1)
    try:
        app.cli(description=__doc__, prog="lr-bench")
    except (ValueError, OSError, ImportError, TypeError, StoreError) as error:
        raise SystemExit(f"lr-bench: {error}") from error
    except KeyboardInterrupt:
        exit_interrupted("lr-bench")


if __name__ == "__main__":
    main()
