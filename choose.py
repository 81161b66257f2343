"""Chooses one network for a target among those of several runs, without labels.

    python choose.py --runs results/prostate/sfda results/prostate/tent --out results/prostate/choice

Candidates are the source network, its batch-norm refresh, and what each run chose of its own epochs (--keep_every of
main.py); a run that kept none brings its last network. All are for the same images, and none of them looked at a label
of these. The source network is that of the first run. A run that starts from another one, which learnt in another way,
brings what it made of that, be it nothing (--method noadap). Of a single run the choice is what it chose itself. With
--select_with 2 the labels of two patients choose instead, and everything that is written says so.

With --start the choice is where adaptations begin, among several source networks and the refresh of each: before any of
them is adapted, since an adapted network is more consistent than another, right or wrong. The refresh of the first
run's then stands for that network itself.

Writes OUT/chosen.pkl, a checkpoint with the reason in it, OUT/selection.csv, the scores of every candidate, and
OUT/selection.txt, the reason. The target's training images are looked at in a process of its own, which opens no other
ground truth. For scores, make a run of what was chosen: main.py --method noadap --model_weights OUT/chosen.pkl.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bounds import Bounds
from dataloader import Reading, knows_truth
from datasets.grey_matching import SHARE
from datasets.transforms import parse_image_folder
from engine.arguments import args_of, is_source_free
from engine.published import as_published
from files.run_names import CHOSEN, SELECTION, candidate_name
from methods.settings import Settings
from methods.terms import build_term, check_sizes, parse_losses
from nets.checkpoint_files import OF_A_NETWORK, load_checkpoint, require
from nets.norm_mixing import mixes_norms, mixing
from nets.precision import PRECISIONS, device_of, set_up_machine
from processes.alone import run_alone
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin, refuse_taken
from processes.quoting import visible
from selection.candidates import REFRESH, SOURCE
from selection.choosing import Pool, choose_among
from selection.labelled import Selecting, patients_who_choose
from utils import ProgramParser, atomic_write, counted, listing, run_program, settings_of, sha256_of

PROGRAM = "choose.py"


def get_args(argv: Sequence[str] | None) -> Namespace:
    parser = ProgramParser(PROGRAM, description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="results/<set>/<run> …")
    parser.add_argument("--out", type=Path, required=True, help="folder of the choice")
    parser.add_argument("--overwrite", action="store_true", help="also choose anew what was chosen already")
    begin_there = "choose where adaptations begin: the source network in place of its refresh"
    parser.add_argument("--start", action="store_true", help=begin_there)
    few = "patients of the target's training images, 1 to 3, whose labels choose (0: none)"
    parser.add_argument("--select_with", type=int, default=0, metavar="N", help=few)
    parser.add_argument("--select_folders", help="where these labels are (default: as the first run says)")
    parser.add_argument("--draw", type=int, help="which N: the number of the draw (default: that of the first run)")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: that of the first run")
    args = parser.parse_args(argv)
    args.device = device_of(args.device)
    for name in ("select_with", "draw"):
        if (getattr(args, name) or 0) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 0.")
    return args


# --------------------------------------------------------------------------------------------- what a run brings


@dataclass(frozen=True)
class Adapted:
    """A run that brings a network: the checkpoint that is taken of it, what that holds but for weights, its flags."""

    folder: Path
    file: Path
    state: dict[str, Any]
    args: Namespace

    @property
    def epoch(self) -> int:
        """How many epochs the network has behind it."""
        return self.state["epoch"] + 1

    @property
    def is_start(self) -> bool:
        """Whether its network is the one that it started from, or that network's refresh."""
        return self.args.method == "noadap" or self.state.get("choice", {}).get("candidate") in (SOURCE, REFRESH)

    @property
    def share(self) -> float:
        """By how much its images were matched to the source's."""
        return float(self.state["preprocessing"].get(SHARE, 0.0))

    @property
    def mixes(self) -> bool:
        """Whether it mixes its batch-norm statistics with an image's."""
        return mixes_norms(self.state["network"])

    @property
    def labelled(self) -> tuple[str, ...]:
        """The patients whose labels chose its network; none where it was chosen without."""
        return tuple(self.state.get("choice", {}).get("labelled", ()))

    @cached_property
    def priors(self) -> list[Bounds | None]:
        """What its losses know of the sizes: one a loss, or None where that does not compare ratios."""
        specs = parse_losses(self.args.target_losses)
        terms = [build_term(as_published(spec, self.args.published), self.args.n_class) for spec in specs]
        check_sizes(terms, [])
        if told := [term.bound for term in terms if term.bound and knows_truth(term.bound)]:
            raise UserError(
                f"{self.folder} was told the truth about its target ({type(told[0]).__name__}: "
                f"{told[0].supervision}), and nothing that was is chosen without labels. Leave it out of --runs."
            )
        return [term.bound if term.loss.compares_ratios else None for term in terms]

    def facts(self) -> dict[str, Any]:
        """What all runs of one choice have in common."""
        image, args = parse_image_folder(self.args.target_folders), self.args
        flags = ("grp_regex", "crop", "trainval", "valonly", "debug")
        return {
            "--target_dataset": args.target_dataset.resolve(),
            "the folder of images": f"{image.folder} by {image.transform}",
            **{f"--{name}": getattr(args, name) for name in flags},
            "its network": mixing(self.state["network"], False),
            **{f"its {name}": self.state[name] for name in ("in_channels", "n_class")},
        }

    @property
    def started_from(self) -> Any:
        """The hash of the weights that it started from."""
        inputs = self.state["identity"].get("inputs")
        return inputs.get("model_weights") if isinstance(inputs, Mapping) else None


def read_run(folder: Path, here: dict[str, Any]) -> Adapted:
    """What a finished run brings. here: flags that say where this program computes.

    Raises UserError for a folder without a network, for a run that is not finished, and for one that looked at labels.
    """
    file = next((folder / name for name in (CHOSEN, "last.pkl") if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} holds no {CHOSEN} and no last.pkl: name the folders of finished runs with --runs.")
    state = load_checkpoint(file)
    require(file, state, OF_A_NETWORK)
    flags = {name: value for name, value in state["identity"].items() if name != "inputs"}
    try:
        args = args_of(flags | {"workdir": folder} | here)
    except UserError as error:
        raise UserError(f"{file} tells of a run that cannot be read: {error}") from error
    adapted = Adapted(folder, file, {name: value for name, value in state.items() if name != "net"}, args)
    if not is_source_free(args) and args.method != "noadap":
        raise UserError(
            f"{folder} (--method {args.method}) adapts no whole network without labels, and what is chosen here was "
            "made without any. Leave it out of --runs."
        )
    if file.name != CHOSEN and (args.keep_every or adapted.epoch < args.n_epoch):
        raise UserError(f"{folder} is not finished: the command that began it goes on with it.")
    return adapted


def must_be_alike(runs: Sequence[Adapted]) -> None:
    """Raises UserError for runs that adapt other images, or another network, than the first one."""
    first, *others = [run.facts() for run in runs]
    for run, facts in zip(runs[1:], others, strict=True):
        if other := [f"{name}: {first[name]}, and {facts[name]}" for name in first if first[name] != facts[name]]:
            raise UserError(
                f"{runs[0].folder} and {run.folder} are not of one kind of network on the same images: "
                f"{'; '.join(other)}. A choice among them would compare what cannot be compared. Leave one out."
            )


def must_not_have_learnt_here(runs: Sequence[Adapted], here: dict[str, Any]) -> None:
    """Raises UserError for a run whose own source network learnt from labels of the images that it is for.

    Who taught the first run's is that run's own affair: it is what all others are measured by.
    """
    for run in [run for run in runs if run.started_from != runs[0].started_from]:
        taught = taught_by(run, here)
        has_learnt = taught and taught.method != "noadap" and not is_source_free(taught)
        if has_learnt and images_of(taught) == images_of(run.args):
            raise UserError(
                f"{run.folder} starts from {run.args.model_weights}, which learnt from labels of "
                f"{taught.target_dataset}, and what is chosen here was made without any. Leave it out of --runs."
            )


def taught_by(run: Adapted, here: dict[str, Any]) -> Namespace | None:
    """The flags of the run that made what this one started from, if its file tells them. Raises as `origin_of`."""
    path = origin_of(run, ", so nobody can tell what it learnt from: put it back, or leave the run out of --runs.")
    flags = {name: value for name, value in load_checkpoint(path).get("identity", {}).items() if name != "inputs"}
    return args_of(flags | {"workdir": path.parent} | here) if flags else None


def origin_of(run: Adapted, what_to_do: str) -> Path:
    """The file that a run started from. Raises UserError, which ends so, where it is gone, or has changed since."""
    path = Path(run.args.model_weights)
    if not path.is_file() or sha256_of(path) != run.started_from:
        fault = "another one now" if path.is_file() else "gone"
        raise UserError(f"{path}, from which {run.folder} started, is {fault}{what_to_do}")
    return path


def images_of(args: Namespace) -> tuple[Path, str]:
    """The data set that a run is for, and its folder of images there; one set may hold both source and target."""
    return args.target_dataset.resolve(), parse_image_folder(args.target_folders).folder


def must_be_told(runs: Sequence[Adapted], patients: Sequence[str]) -> None:
    """Raises UserError for runs that chose with labels of others than these patients: nothing would tell of those."""
    for run in runs:
        if hidden := set(run.labelled) - set(patients):
            raise UserError(
                f"{run.folder} chose its network with {counted(len(run.labelled), 'labelled patient')} "
                f"({listing(run.labelled)}), and this choice would not tell of {listing(sorted(hidden))}. Give "
                f"--select_with {len(run.labelled)} --draw {run.args.draw}, or leave it out of --runs."
            )


def names_of(runs: Sequence[Adapted]) -> list[str]:
    """What each run is called as a candidate: by its folder's name, where that is no other candidate's."""
    names = [visible(run.folder.resolve().name) for run in runs]
    return [
        visible(run.folder) if names.count(name) > 1 or name in (SOURCE, REFRESH) else name
        for run, name in zip(runs, names, strict=True)
    ]


def source_of(runs: Sequence[Adapted]) -> Path:
    """The file of the network that these runs started from. Raises UserError where it is gone, or has changed since."""
    for run in runs:
        if (kept := run.folder / candidate_name(0)).is_file():
            return kept
    kept = f"adapt with --keep_every, which keeps it in the run ({candidate_name(0)})"
    return origin_of(runs[0], f": put it back, or {kept}.")


def pool_of(runs: Sequence[Adapted], is_start: bool = False) -> Pool:
    """What is chosen from; a run that kept what all start from adds nothing, unless it sees other images.

    The source network and its refresh see images as they are, or, where no run does, as in that of the least share.
    """
    own = [run for run in runs if run.started_from == runs[0].started_from]
    share, mixes = min((run.share for run in own), key=abs), all(run.mixes for run in own)
    others = {
        name: (run.epoch, run.file)
        for name, run in zip(names_of(runs), runs, strict=True)
        if run.started_from != own[0].started_from or not run.is_start or run.share != share or run.mixes > mixes
    }
    return Pool(source_of(own), runs[0].file, others, share, is_start)


# ----------------------------------------------------------------------------------------------------- the story


def choose(out: Path, pool: Pool, args: Namespace, priors: Sequence[Bounds | None]) -> str:
    """Chooses, and says why; in a process of its own. args: of the first run, with the machine of this program."""
    set_up_machine(args.precision, args.deterministic)
    reading, settings = settings_of(Reading, vars(args)), settings_of(Settings, vars(args))
    return choose_among(out, pool, reading, settings, args.network, priors, settings_of(Selecting, vars(args)))


def who_choose(args: Namespace) -> tuple[str, ...]:
    """The patients whose labels choose. args: of the first run, with the flags of this program"""
    return patients_who_choose(settings_of(Reading, vars(args)), settings_of(Selecting, vars(args)))


def what_it_keeps(run: Adapted) -> str:
    """What a run that adds nothing is, as a line to the user says it."""
    if run.args.method == "noadap":
        return "the source network as it is"
    return f"an adaptation that chose its {run.state['choice']['candidate']}"


def take_over(run: Adapted, out: Path) -> str:
    """Copies the choice that a single run made itself; returns its reason."""
    for name in (f"{SELECTION}.csv", f"{SELECTION}.txt", CHOSEN):
        with atomic_write(out / name) as file:
            file.write((run.folder / name).read_bytes())
    return str(run.state["choice"].get("why"))


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    refuse_taken(args.out, PROGRAM, "--out")
    if (args.out / CHOSEN).exists() and not args.overwrite:
        raise UserError(f"{args.out} holds a choice already; give --overwrite, or name another --out.")
    here = {"device": args.device} | ({"precision": args.precision} if args.precision else {})
    runs = [read_run(folder, here) for folder in args.runs]
    must_be_alike(runs)
    must_not_have_learnt_here(runs, here)
    priors = [prior for run in runs for prior in run.priors]
    first = runs[0].args
    first.network = mixing(first.network, all(run.mixes for run in runs))  # that of the source network
    first.select_with = args.select_with
    first.select_folders = args.select_folders or first.select_folders
    first.draw = first.draw if args.draw is None else args.draw
    patients = who_choose(first) if args.select_with else ()
    has_chosen = len(runs) == 1 and "choice" in runs[0].state and not args.start
    is_own = has_chosen and (not patients or runs[0].labelled == patients)
    if not is_own:
        must_be_told(runs, patients)
    begin(args.out, PROGRAM)
    with locked(args.out):
        (args.out / CHOSEN).unlink(missing_ok=True)  # it is there when all is there
        if is_own:
            print(take_over(runs[0], args.out))
            return
        pool = pool_of(runs, args.start)
        for name, run in zip(names_of(runs), runs, strict=True):
            if name not in pool.others:
                print(f"{run.folder} is {what_it_keeps(run)}, which is a candidate anyway.")
            elif run.file.name != CHOSEN and run.args.method != "noadap":
                print(f"{run.folder} kept no epochs to choose from (--keep_every): it brings its last network.")
        print(run_alone(choose, args.out, pool, runs[0].args, priors))


if __name__ == "__main__":
    run_program(main)
