"""What a study has still to train, read off what `make -n` prints, and how long that takes, by runs that are there."""

import json
import math
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.cost import cost_of
from analysis.run import open_run
from files.foreign import read_json, reading
from processes.errors import UserError
from processes.ownership import MADE
from study.asking import AGAIN, Asked
from utils import atomic_write, counted

NAME = "plan.json"
LIKE = (
    "--method",
    "--network",
    "--target_dataset",
    "--batch_size",
    "--crop",
    "--debug",
)  # flags that tell kinds of runs
HOUR = 3600


@dataclass(frozen=True)
class Training:
    """A run and the flags of main.py that it is started with; of a flag that stands there twice, the last value."""

    folder: Path
    flags: Mapping[str, str]

    @property
    def row(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> tuple[str, ...]:
        """What runs that take about as long for an epoch have in common."""
        return tuple(self.flags.get(flag, "") for flag in LIKE)

    @property
    def length(self) -> float:
        """How many epochs it trains; 1 where it trains nothing, or the line does not say."""
        return 1 if self.flags.get("--method") == "noadap" else float(self.flags.get("--n_epoch", 1))


def read_flags(words: Iterable[str]) -> dict[str, str]:
    """Flag -> its values, in one line; '' for one without."""
    flags: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            values = flags[name] = [value] if sign else []
        else:
            values.append(word)
    return {name: " ".join(values) for name, values in flags.items()}


def ask_make(command: str, seeds: Iterable[int]) -> list[Training]:
    """What this make would train for each seed. Raises UserError with what make says where it refuses.

    command: with {seed} where the number of the seed belongs
    """
    trainings = []
    for seed in seeds:
        words = [*shlex.split(command.replace("{seed}", str(seed))), "-n"]
        done = subprocess.run(words, capture_output=True, text=True, close_fds=False)  # those of make -j
        if done.returncode:
            raise UserError(f"Nothing was started, as make refuses: {done.stderr.strip() or done.stdout.strip()}")
        trainings += read_trainings(done.stdout)
    return trainings


def read_trainings(commands: str) -> list[Training]:
    """The runs that these commands of make would train, each once, in this order."""
    found = {}
    for line in commands.replace("\\\n", " ").splitlines():
        if " main.py " not in line or " renew " not in line:
            continue
        words = shlex.split(line)
        folder = Path(words[words.index("renew") + 1])
        end = words.index("&&") if "&&" in words else None  # behind it the progress is told
        found[folder] = Training(folder, read_flags(words[words.index("main.py") + 1 : end]))
    return list(found.values())


# ------------------------------------------------------------------------------------------------ how long it takes


@dataclass(frozen=True)
class Lasted:
    """A finished training, and the seconds that it took."""

    training: Training
    seconds: float


def read_history(folder: Path) -> list[Lasted]:
    """The finished runs of a study, and those beside it in the folder of the experiment, that tell their time."""
    places = [*sorted(folder.glob("seed*/*/params.txt")), *sorted(folder.parent.glob("*/params.txt"))]
    found = [_lasted(place.parent) for place in places if place.with_name("last.pkl").is_file()]
    return [lasted for lasted in found if lasted and lasted.seconds > 0]


def _lasted(folder: Path) -> Lasted | None:
    """None of what is no run, or is broken, and so tells nothing."""
    try:
        run = open_run(folder)
        words = list(map(str, run.provenance.get("command", ())))
        return Lasted(Training(folder, read_flags(words)), cost_of(run)["seconds"])
    except (UserError, TypeError):
        return None


def estimate(training: Training, history: Sequence[Lasted]) -> float:
    """Seconds: as long an epoch as the runs of the same kind took on average, of the same row if there are any.

    NaN where nothing of this kind was trained yet.
    """
    alike = [lasted for lasted in history if lasted.training.kind == training.kind]
    alike = [lasted for lasted in alike if lasted.training.row == training.row] or alike
    if not alike:
        return math.nan
    per_epoch = [lasted.seconds / lasted.training.length for lasted in alike]
    return training.length * sum(per_epoch) / len(per_epoch)


def time_words(seconds: Sequence[float]) -> str:
    """'about 1.3 hours of training' of several trainings one after the other; it says how many are not counted."""
    known = [each for each in seconds if math.isfinite(each)]
    if not known:
        return "how long that takes is known when the first is done"
    unknown = len(seconds) - len(known)
    more = f", and {counted(unknown, 'run')} of a kind that was not trained here yet" if unknown else ""
    return f"about {_in_units(sum(known))} of training{more}, one run after the other"


def _in_units(seconds: float) -> str:
    return f"{seconds / HOUR:.1f} hours" if seconds >= HOUR else f"{max(1, round(seconds / 60))} min"


# ------------------------------------------------------------------------------------------------ plan, progress


def describe(folder: Path, asked: Asked, trainings: Sequence[Training]) -> str:
    """What the study is of, what is to be trained of it, and how long that takes."""
    rows, seeds = counted(len(asked.rows), "row"), counted(len(asked.seeds), "seed")
    what = f"{folder}: {rows} ({' '.join(asked.rows)}) x {seeds} ({' '.join(map(str, asked.seeds))})."
    if not trainings:
        return f"{what} Every run is there."
    wanted = {folder / f"seed{seed}" / row for seed in asked.seeds for row in asked.rows}
    before = sum(training.folder not in wanted for training in trainings)
    also = f", {before} of them to start from" if before else ""
    return f"{what} To be trained: {counted(len(trainings), 'run')}{also}; {time_left(folder, trainings)}."


def time_left(folder: Path, trainings: Sequence[Training]) -> str:
    history = read_history(folder)
    return time_words([estimate(training, history) for training in trainings])


def write_plan(folder: Path, trainings: Sequence[Training]) -> None:
    """Notes what is to be trained from now on, for the progress."""
    runs = [{"run": str(training.folder), "flags": training.flags} for training in trainings]
    with atomic_write(folder / NAME, "w") as file:
        file.write(json.dumps({"runs": runs}, indent=1) + "\n")


def describe_progress(folder: Path) -> str:
    """How many of the planned runs are done since they were planned, and how long the others take."""
    path = folder / NAME
    told = read_json(path, AGAIN)
    with reading(path, AGAIN):
        planned = [Training(Path(each["run"]), dict(each["flags"])) for each in told["runs"]]
    begun = path.stat().st_mtime
    left = [training for training in planned if not _is_made(training.folder / MADE, begun)]
    done = f"Study: {len(planned) - len(left)} of {counted(len(planned), 'run')} done"
    return f"{done}; left: {time_left(folder, left)}." if left else f"{done}."


def _is_made(note: Path, begun: float) -> bool:
    """Whether a run has ended since then; note: what it writes at its end, even where it had no epoch to train."""
    return note.is_file() and note.stat().st_mtime >= begun
