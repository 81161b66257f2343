"""The format of sizes/*.csv: one row a slice, one column a prior, in each cell the pixels of the K classes.

    # made from: data/prostate_target
    # estimator dumbpredwtags: constant 8000 pixels
    # supervision dumbpredwtags: image-level tags
    val_ids,dumbpredwtags
    Case00_0,"[139456, 8000]"

Files written by other programs are read too. Only their content counts: the separator is the one that the header
uses, a row is cut at it outside brackets, then quotes are dropped. That reads quoted and bare lists, lists with a
stray quote, CRLF, a byte-order mark, unnamed index columns and blank lines. Slices are matched by stem.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from files.listing import stem
from processes.errors import UserError
from processes.quoting import for_cell, for_comment
from utils import atomic_write, listing, nearest

LEAST, MOST = 1e-6, 1e12  # pixels of a class that is there; 32 bits hold their ratios
ID_COLUMN = "val_ids"
TRUE_SIZES = "val_gt_size"
WITH_TAGS, WITHOUT_TAGS = "dumbpredwtags", "dumbprednotags"
LOW, HIGH = "_low", "_high"  # of a column: the ends of the interval of its estimate
ORACLE = "oracle (true sizes)"
BY_COLUMN_NAME = {"notags": "none", "wtags": "image-level tags"}  # the published names, where a file says nothing
HOW_TO_MAKE = "`python -m preprocess.size_priors make`"

Line = tuple[int, str]  # line number in the file, text


@dataclass(frozen=True)
class SizeTable:
    """One column of a size csv, looked up by slice. `sizes`: stem -> (K,) float64 pixels, not to be written to."""

    path: Path
    column: str
    sizes: dict[str, np.ndarray]
    skipped: frozenset[str]  # slices whose list is all zero: they are left out of training
    comments: dict[str, str]  # the file's leading `# key: value` lines
    supervision: str  # what the numbers were made from, as far as the file or the column's name tells

    @property
    def oracle(self) -> bool:
        """Whether ground truth of the very slices went into the column."""
        return "oracle" in self.supervision

    def __getitem__(self, name: str) -> np.ndarray:
        """(K,) pixels. Raises UserError for a slice without a row."""
        self.require([name])
        return self.sizes[stem(name)]

    def skips(self, name: str) -> bool:
        """Whether the slice's list is all zero."""
        return stem(name) in self.skipped

    def ratios(self, name: str) -> np.ndarray:
        """(K,) shares of the slice's own sum. Raises UserError for a slice that is missing or left out."""
        sizes = self[name]
        if self.skips(name):
            raise UserError(f"{self.path}, column '{self.column}': the list of {name} is all zero, it has no ratios.")
        return sizes / sizes.sum()

    def require(self, names: Iterable[str]) -> None:
        """Raises UserError that lists the slices without a row."""
        names = list(names)
        missing = [name for name in names if stem(name) not in self.sizes]
        if not missing:
            return
        origin = self.comments.get("made from")
        raise UserError(
            f"{self.path} has no row for {len(missing)} of {len(names)} slices: {listing(missing)}. It has "
            f"{len(self.sizes)} rows, such as {listing(list(self.sizes)[:3])}"
            f"{f', made from {origin}' if origin else ''}. Give the csv that belongs to these slices, or make one "
            f"with {HOW_TO_MAKE}."
        )


# ------------------------------------------------------------------------------------------------ reading


def read_size_table(path: str | Path, column: str, n_class: int | None = None) -> SizeTable:
    """Reads one column.

    Raises UserError for: a missing, empty or corrupt file; no such column; a cell that is no list of numbers;
    negative or infinite sizes; lists that do not hold `n_class` numbers (None: all the same count); one slice twice
    with different sizes.
    """
    path = Path(path)
    comments, (_, header), lines = _read_lines(path)
    separator = _separator(header)
    columns = [_bare(field) for field in header.split(separator)]
    places = _find_column(path, columns, ID_COLUMN), _find_column(path, columns, column)
    rows = _split_rows(path, lines, separator, columns)
    names = [stem(row[places[0]]) for row in rows]
    numbers = [number for number, _ in lines]
    sizes = _read_lists(f"{path}, column '{column}'", names, numbers, [row[places[1]] for row in rows], n_class)
    return SizeTable(
        path,
        column,
        _by_name(f"{path}, column '{column}'", names, numbers, sizes),
        frozenset(name for name, empty in zip(names, ~sizes.any(axis=1), strict=True) if empty),
        comments,
        _supervision(column, comments),
    )


def names_of_columns(path: str | Path) -> list[str]:
    """The names in the header. Raises UserError for a missing, empty or corrupt file."""
    (_, header) = _read_lines(Path(path))[1]
    return [_bare(field) for field in header.split(_separator(header))]


def _separator(header: str) -> str:
    return max(";,\t", key=re.sub(r'"[^"]*"', "", header).count)


def _read_lines(path: Path) -> tuple[dict[str, str], Line, list[Line]]:
    """Comments, header and rows, blank lines dropped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"There is no size csv {path}. Make it with {HOW_TO_MAKE}, or mend 'sizefile'.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is corrupt: it is not text ({error}). A spreadsheet is saved as csv, UTF-8."
        ) from error
    every = [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), 1) if line.strip('\t ,;"')]
    n_comment = next((i for i, (_, line) in enumerate(every) if not line.startswith("#")), len(every))
    pairs = (line[1:].partition(":") for _, line in every[:n_comment])
    comments = {key.strip(): value.strip() for key, _, value in pairs}
    if len(every) - n_comment < 2:
        raise UserError(
            f"{path} is empty: expected a header with '{ID_COLUMN}' and one row a slice, found "
            f"{len(every) - n_comment} lines. Delete it and make it again with {HOW_TO_MAKE}."
        )
    return comments, every[n_comment], every[n_comment + 1 :]


def _bare(field: str) -> str:
    return field.strip("\"' \t")


def _find_column(path: Path, columns: Sequence[str], column: str) -> int:
    """The place of the column in a row. Raises UserError unless the table has it once."""
    places = [place for place, name in enumerate(columns) if name == column]
    if len(places) == 1:
        return places[0]
    if places:
        raise UserError(f"{path} has {len(places)} columns called '{column}': rename or remove all but one.")
    named = [name for name in columns if name and not name.startswith("Unnamed:")]
    role = "which names the slices" if column == ID_COLUMN else "asked for as 'predcol'"
    raise UserError(f"{path} has no column '{column}', {role}.{nearest(column, named)}")


def _split_rows(path: Path, lines: list[Line], separator: str, columns: Sequence[str]) -> list[list[str]]:
    """The fields of each row, cut at separators outside brackets."""
    cut = re.compile(re.escape(separator) + r"(?![^\[\]]*\])").split
    rows, faulty = [], []
    for number, line in lines:
        row = [_bare(field) for field in cut(line)]
        while len(row) > len(columns) and not row[-1]:
            row.pop()
        rows.append(row)
        if len(row) != len(columns):
            faulty.append(f"line {number} ({len(row)} fields): '{line[:60]}'")
    if faulty:
        raise UserError(
            f"{path} is corrupt: {len(faulty)} of its {len(rows)} rows do not hold the {len(columns)} fields that the "
            f"header names ({listing(columns)}): {listing(faulty, 3)}. Take a fresh copy, or make the csv again with "
            f"{HOW_TO_MAKE}."
        )
    return rows


def _read_lists(where: str, names: list[str], numbers: list[int], cells: list[str], n_class: int | None) -> np.ndarray:
    """(N,K) float64 pixels."""
    lists, unreadable = [], []
    for number, cell in zip(numbers, cells, strict=True):
        try:
            lists.append(_read_list(cell))
        except ValueError:
            unreadable.append(f"line {number}: '{cell[:60]}'")
    if unreadable:
        raise UserError(
            f"{where}: {len(unreadable)} cells are no list of numbers such as [57536, 8000]: {listing(unreadable, 5)}."
        )
    n_class = n_class or Counter(map(len, lists)).most_common(1)[0][0]
    wrong = [name for name, sizes in zip(names, lists, strict=True) if len(sizes) != n_class]
    if wrong:
        held = sorted({len(sizes) for sizes in lists} - {n_class})
        raise UserError(
            f"{where}: expected {n_class} numbers a slice, one a class with the background first (--n_class), found "
            f"{listing(held)} in {len(wrong)} of {len(names)} slices: {listing(wrong, 5)}."
        )
    sizes = np.array(lists, dtype=np.float64)
    possible = (sizes == 0) | ((sizes >= LEAST) & (sizes <= MOST))  # NaN is neither
    if len(impossible := np.flatnonzero(~possible.all(axis=1))):
        shown = [f"line {numbers[row]}: {cells[row][:60]}" for row in impossible]
        raise UserError(
            f"{where}: {len(shown)} lists hold negative, NaN, infinite or impossible sizes: {listing(shown, 5)}."
        )
    sizes.flags.writeable = False
    return sizes


def _read_list(cell: str) -> list[float]:
    if not (cell.startswith("[") and cell.endswith("]")):
        raise ValueError(cell)
    return [float(number) for number in cell[1:-1].split(",")]


def _by_name(where: str, names: list[str], numbers: list[int], sizes: np.ndarray) -> dict[str, np.ndarray]:
    table = dict(zip(names, sizes, strict=True))
    if len(table) < len(names):
        clashes = [
            f"{name or 'a slice without name'} (line {number})"
            for name, number, row in zip(names, numbers, sizes, strict=True)
            if not np.array_equal(row, table[name])
        ]
        if clashes:
            raise UserError(
                f"{where}: {len(clashes)} rows differ from a later row of the same slice: {listing(clashes, 5)}. "
                "Keep one row a slice (names are compared without .png, .nii, .nii.gz, .npy)."
            )
    return table


def _supervision(column: str, comments: Mapping[str, str]) -> str:
    stated = comments.get(f"supervision {column}", comments.get("supervision"))
    if column.startswith(TRUE_SIZES):
        return ORACLE
    return stated or next((words for part, words in BY_COLUMN_NAME.items() if part in column), "not stated in the csv")


# ------------------------------------------------------------------------------------------------ writing


def write_size_table(
    path: str | Path, columns: Mapping[str, Mapping[str, Sequence[float]]], comments: Mapping[str, str]
) -> None:
    """Writes column name -> slice -> K pixels, atomically, below the comments.

    `comments`: 'made from', 'estimator <column>', 'supervision <column>', …. Raises UserError for a slice name that
    the format cannot hold, ValueError where the columns do not hold the same slices.
    """
    path = Path(path)
    names = list(next(iter(columns.values())))
    if any(set(column) != set(names) for column in columns.values()):
        raise ValueError(f"the columns {list(columns)} hold different slices")
    must_fit(path, names)
    lines = [f"# {key}: {for_comment(' '.join(value.split()))}" for key, value in comments.items()]
    lines.append(",".join([ID_COLUMN, *columns]))
    lines += [",".join([for_cell(name), *(_cell(column[name]) for column in columns.values())]) for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")


def must_fit(path: str | Path, names: Sequence[str]) -> None:
    """Raises UserError that lists the slices whose names the format cannot hold."""
    if unfit := [name for name in names if re.search(r"""[,;\[\]"'\t\r\n#]""", name)]:
        raise UserError(f"{path}: a csv cannot name slices with , ; [ ] # quotes or tabs in them: {listing(unfit)}.")


def _cell(sizes: Sequence[float]) -> str:
    whole = (int(size) if float(size).is_integer() else float(size) for size in sizes)
    return f'"[{", ".join(map(str, whole))}]"'
