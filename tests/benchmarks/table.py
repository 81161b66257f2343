"""Rows of a benchmark: timed in turns, printed, written as text, csv and picture."""

import csv
import dataclasses
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils import atomic_write

ABSENT = "not installed"
BAR, LINE = "#0072B2", "#767676"
PATIENCE = 5.0  # s: a comparison that took as long is not repeated
PANEL = 42  # bars in a column of the picture


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` says how many times better ours is; None where there is nothing to compare with."""

    subject: str
    what: str
    against: str
    ours: float
    reference: float | None
    unit: str
    ratio: float | None
    note: str = ""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, a GPU's work included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, patience: float = PATIENCE
) -> dict[str, list[float]]:
    """Seconds of each work, round by round: on a shared machine only what ran next to each other compares.

    No round begins after `patience` seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    begin = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - begin > patience:
            break
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def better(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast: the median over rounds of seconds."""
    return statistics.median(slow / fast for slow, fast in zip(theirs, ours, strict=True))


def compare(
    subject: str,
    what: str,
    ours: Callable[[], object],
    references: Mapping[str, Callable[[], object] | None],
    rounds: int,
    note: Callable[[str], str] = lambda name: "",
) -> list[Row]:
    """A row in ms for each reference; None stands for a package that is not installed.

    `note`: what to say of a reference, asked when everything has run. Ours runs once untimed.
    """
    ours()
    times = in_turns({"": ours, **{name: work for name, work in references.items() if work}}, rounds)
    own = times.pop("")
    rows = []
    for name in references:
        theirs = times.get(name)
        rows.append(
            Row(
                subject,
                what,
                name,
                1e3 * statistics.median(own),
                1e3 * statistics.median(theirs) if theirs else None,
                "ms",
                better(own, theirs) if theirs else None,
                note(name) if theirs else ABSENT,
            )
        )
    return rows


# ---------------------------------------------------------------------------------------------------- output


def describe_machine() -> str:
    """Processor, cores, threads, GPU and torch in one line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{gpu}, torch {torch.__version__}"
    )


def number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{number(ratio)}x"


def as_text(rows: Sequence[Row]) -> list[str]:
    """The table, a header line in front of each subject."""
    widths = [max(len(getattr(row, name)) for row in rows) for name in ("what", "against")]
    lines = []
    for position, row in enumerate(rows):
        if not position or rows[position - 1].subject != row.subject:
            lines += [
                "",
                f"{row.subject:{widths[0]}}  {'against':{widths[1]}}  {'ours':>9} {'theirs':>9} {'':9} {'':>7}",
            ]
        lines.append(
            f"{row.what:{widths[0]}}  {row.against:{widths[1]}}  {number(row.ours):>9} {number(row.reference):>9} "
            f"{row.unit:9} {times(row.ratio):>7}  {row.note}".rstrip()
        )
    return lines


def write(rows: Sequence[Row], machine: str, folder: Path, name: str) -> None:
    """<folder>/<name>.txt, .csv and, where there is a ratio to draw, .png."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{name}.txt", "w") as file:
        file.write("\n".join([machine, *as_text(rows)]) + "\n")
    with atomic_write(folder / f"{name}.csv", "w") as file:
        table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(dataclasses.asdict(row) for row in rows)
    if drawn := [row for row in rows if row.ratio is not None and row.unit != "MiB"]:
        figure = draw(drawn, machine)
        with atomic_write(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=110)


def draw(rows: Sequence[Row], machine: str) -> Figure:
    """Horizontal bars of how many times better, on a logarithmic axis, below the names of their subjects."""
    size = -(-len(rows) // -(-len(rows) // PANEL))  # bars a column, much the same in each
    columns = [with_headings(rows[first : first + size]) for first in range(0, len(rows), size)]
    height = max(map(len, columns))
    figure = Figure((9 * len(columns), 1.2 + 0.21 * height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"How many times better than the reference\n{machine}", fontsize=11)
    ratios = [row.ratio for row in rows]
    limits = [min(0.8, *ratios) / 1.6, max(2.0, *ratios) * 2.5]
    for lines, axes in zip(columns, figure.subplots(1, len(columns), squeeze=False)[0], strict=True):
        draw_column(axes, lines)
        axes.set(xscale="log", xlim=limits, ylim=(0.4 - height, 0.6))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    return figure


def with_headings(rows: Sequence[Row]) -> list[Row | str]:
    """The rows, the name of a subject in front of its first."""
    groups = itertools.groupby(rows, key=lambda row: row.subject)
    return [line for subject, group in groups for line in (subject, *group)]


def draw_column(axes: Axes, lines: Sequence[Row | str]) -> None:
    axes.axvline(1, color=LINE, linewidth=1)
    for place, line in enumerate(lines):
        if isinstance(line, str):
            continue
        axes.barh(-place, line.ratio - 1, left=1, height=0.7, color=BAR)
        beyond = max(1.0, line.ratio), -place
        axes.annotate(times(line.ratio), beyond, (4, 0), textcoords="offset points", va="center", size=8)
    labels = [line if isinstance(line, str) else f"{line.what}, against {line.against}" for line in lines]
    axes.set_yticks([-place for place in range(len(lines))], labels, fontsize=8)
    for line, label in zip(lines, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if isinstance(line, str) else "normal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
