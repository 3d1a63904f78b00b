"""python -m benchmarks list | run | compare"""

import argparse
import fnmatch
import os
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Json


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Speed of dfke_jax, against its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    lister = commands.add_parser("list", help="the rows of a suite")
    runner = commands.add_parser("run", help="measure rows")
    runner.add_argument("names", nargs="*", default=["*"], help="names or patterns such as 'noise*'; all by default")
    for command in (lister, runner):
        command.add_argument("--suite", choices=("smoke", "full", "gpu"), default="full")
    runner.add_argument("--out", help="JSON lines are added to this file")
    runner.add_argument("--repeats", type=int, help="blocks per contender instead of the row's own number; at least 7")
    runner.add_argument("--contenders", nargs="+", metavar="NAME", help="measure only these, and each row's first")
    comparer = commands.add_parser("compare", help="ratios between two files")
    comparer.add_argument("a")
    comparer.add_argument("b")
    options = parser.parse_args(arguments)
    if options.command == "compare":
        return _compare(options.a, options.b)
    if options.command == "run" and options.repeats is not None and options.repeats < 7:
        parser.error(f"--repeats must be at least 7, got {options.repeats}")
    return _list(options.suite) if options.command == "list" else _run(options)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _list(suite: str) -> int:
    from benchmarks.suites import rows

    for name in rows(suite):
        print(name)
    return 0


def _run(options: argparse.Namespace) -> int:
    import jax

    from benchmarks.harness import append, measure
    from benchmarks.suites import rows
    from dfke_jax.core.mesh import split_cpu

    split_cpu()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are to be times of compiling
    available = rows(options.suite)
    wanted = []
    for pattern in options.names:
        matching = fnmatch.filter(available, pattern)
        if not matching:
            print(f"no row matches {pattern!r}; there are {', '.join(available)}", file=sys.stderr)
            return 2
        wanted += [name for name in matching if name not in wanted]
    console = _console()
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.3 * cores:
        console.print(f"[yellow]The machine is busy (load {load:.1f} on {cores} cores): read ratios, not rates.")
    records: list[Json] = []
    for name in wanted:
        with console.status(name) as status:
            measured = measure(
                name,
                available[name](),
                suite=options.suite,
                blocks=options.repeats,
                min_seconds=0.02 if options.suite == "smoke" else 0.2,
                only=options.contenders or (),
                note=status.update,
            )
        if options.out:
            append(options.out, measured)
        records += measured
        if not console.is_terminal:
            print(f"measured {name}", file=sys.stderr, flush=True)
    console.print(table(records))
    for name, trip in {record["name"]: record["core_round_trip"] for record in records}.items():
        if trip:
            moved = trip["p90"] > 1.7 * trip["p10"]
            console.print(
                f"{name}: from one core to the next and back in {trip['median']:.0f} ns"
                + (f" (from {trip['p10']:.0f} to {trip['p90']:.0f}: cores were moved meanwhile)" if moved else "")
            )
    return 0


def table(records: list[Json]) -> Table:
    """Records as a table; ratios are of the row's first contender to each."""
    shown = Table(
        "row",
        "contender",
        "rate",
        "p10–p90",
        "unit",
        title="Steady state; ratio = first contender / this one",
    )
    for heading in ("ratio", "p10–p90", "trace s", "compile s", "first s", "GFLOP/s", "executed", "MB"):
        shown.add_column(heading, justify="right")
    first: Json = {}
    for record in records:
        starts = record["name"] != first.get("name")
        if starts:
            first = record
            shown.add_section()
        head = (record["name"] if starts else "", record["contender"])
        if "skipped" in record:
            shown.add_row(*head, f"[dim]{record['skipped']}")
            continue
        rate, flops = record["rate"], record["flops"]
        ratio = first.get("ratio_to", {}).get(record["contender"])
        seconds = (record["compile"][part] for part in ("trace_lower", "compile", "first_call"))
        memory = record["memory"]
        shown.add_row(
            *head,
            f"{rate['median']:,.4g}" if rate["median"] < 1000 else f"{rate['median']:,.0f}",
            f"{rate['p10']:,.4g}–{rate['p90']:,.4g}"
            if rate["p90"] < 1000
            else f"{rate['p10']:,.0f}–{rate['p90']:,.0f}",
            record["unit"],
            f"{ratio['median']:.2f}" if ratio else "",
            f"{ratio['p10']:.2f}–{ratio['p90']:.2f}" if ratio else "",
            *("" if value is None else f"{value:.2f}" for value in seconds),
            *(
                "" if flops[part] is None else f"{flops[part] / 1e9:,.1f}"
                for part in ("model_per_second", "executed_per_second")
            ),
            "" if memory is None else f"{memory['total'] / 1e6:,.0f}",
        )
    return shown


def _compare(a: str, b: str) -> int:
    from benchmarks.compare import REFERENCE, compare
    from benchmarks.harness import read

    found = compare(read(a), read(b))
    if not found:
        print(
            "the two files have no measurement in common (same row, contender and parameters)",
            file=sys.stderr,
        )
        return 1
    shown = Table("row", "contender", "A", "B", "unit", title="B / A, medians with 95 % bootstrap intervals")
    for heading in (
        "B/A",
        "interval",
        f"B/A relative to {REFERENCE}",
        "interval",
        "executed FLOPs",
        "memory",
    ):
        shown.add_column(heading, justify="right")
    exact = lambda value: "" if value is None else f"{value:.3f}"
    for row in found:
        cells = []
        for change in (row.change, row.corrected):
            if change is None:
                cells += ["", ""]
                continue
            colour = "green" if change.low > 1 else "red" if change.high < 1 else "default"
            cells += [f"[{colour}]{change.ratio:.3f}", f"{change.low:.3f}–{change.high:.3f}"]
        shown.add_row(
            row.name,
            row.contender,
            f"{row.a:,.4g}",
            f"{row.b:,.4g}",
            row.unit,
            *cells,
            exact(row.executed),
            exact(row.memory),
        )
    _console().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
