"""The text of an experiment makefile for one's own data: its facts, its settings, an example of one's own run."""

from collections.abc import Sequence
from string import Template

from datasets.size_table import WITHOUT_TAGS
from preprocess.slicing.spec import IGNORED
from preprocess.survey.plan import Plan
from preprocess.survey.sites import IMAGE, LABEL, Site
from preprocess.survey.wishes import Wishes
from processes.quoting import for_comment, for_recipe

BATCH, LARGE = 8, 384  # slices; pixels of a side

HEAD = Template("""\
# $name: $source_n $things of the source, $target_n of the target$blind.
# Written by preprocess.new_dataset; edit at will.
#
#   make -f $name.make data-report          what lies in the slices, and what is wrong with it: first of all
#   make -f $name.make                      the main runs, plots, report, archive; the network to use is `chosen`
#   make -f $name.make sfda                 one run, and what it needs: results/$name/sfda
#   make -f $name.make show RUN=sfda        what that run is told, and by which line
#   make -f $name.make NET=Dimwit EPC=1 DEBUG=--debug     does it run at all?
#
# The lines of the runs are those of make/adaptation.mk. What was proposed for the facts, and why:
$reasons
SET     := $name
VOLUMES :=
DATA    := data/${name}_source data/${name}_target
include make/adaptation.mk
$lists
# -- facts ------------------------------------------------------------------------------------------------------------
N_CLASS = $n_class
$ignored# the weight of each class in the entropy
NU      = [$nu]
G_RGX   = (.+)_(\\d+)
S_DATA  = [('IMG', $read, False), ('GT', $read_gt, False), ('GT', $read_gt, False)]
TT_DATA = $target_data
# how slices are cut: delete data/${name}_source and data/${name}_target after a change
${program}SLICE   = $patient--n_class $n_class --normalise percentile $how \
          $cut
data/${name}_source: private SLICE += --site source $source
data/${name}_target: private SLICE += --site target $target
# how large each class is in a slice: $prior_words
PRIOR   = --n_class $n_class $prior
$untagged$prior_needs
# -- settings: SIZE=full as published, the default where there is a GPU; SIZE=small a small network, few epochs: a look
SMALLER = $$(filter small,$$(SIZE))
NET    ?= $$(if $$(SMALLER),UNet:nG=8,UNet)
BATCH   = $batch
TRAINED =
LEARN   = --n_epoch $$(if $$(SMALLER),30,100) --l_rate 5e-4 --lr_decay 0.9
ADAPT   = --n_epoch $$(if $$(SMALLER),20,50) --l_rate 1e-6 --lr_decay 0.9
# no learning rate has to be guessed: short adaptations at these rates stand beside sfda, and `chosen` is the best
# network of all, or the source's where none is better. No label is looked at for that
RATES   = 1e-5 1e-4
CHOICES = sfda $$(AT_RATES)
# a second source network, which learns from $also too. `chosen` and the other
# adaptations start from the better one for the target. No label is looked at for that either; ALSO= leaves it out
ALSO    = $way

# -- an experiment of your own: a name and a line. Without the #, `make -f $name.make wide` trains it -----
# ABL += wide
# $$(RD)/wide: private OPT = $$(WEIGHTS) --method sfda $$(ADAPT) --batch_size 16 $$(call sfda_loss,$$(COLUMN))

include make/rules.mk
""")
BLIND_LISTS = """\
# nobody knows the truth of the target: no run that learns from it, no scores to draw
TRN     = cesource $(ALSO:%=cesource_%) noadap $(STARTS) sfda_lr0 sfda $(AT_RATES) chosen
ABL     = tent shot
PLOTS   = $(RD)/losses.png $(SELECTION)
"""
LABELLED_LISTS = """\
TRN     = cesource $(ALSO:%=cesource_%) noadap $(STARTS) sfda_lr0 sfda $(AT_RATES) chosen SFDA_TrueSize fs
ABL     = entropy klprop sfda_notags sfda_mean adaent cda tent bnrefresh shot
"""
UNTAGGED = f"""\
# nothing tells which slices show an organ: one prior for every slice
COLUMN  = {WITHOUT_TAGS}
"""


# what stands in the text for each kind of set
VOLUMES = {
    "things": "volumes",
    "program": "",
    "how": "--format nii",
    "read": "nii_transform",
    "read_gt": "nii_gt_transform",
}
PICTURES = {
    "things": "pictures",
    "program": "CUT     = -m preprocess.picture_set\n",
    # a few nuclei on a dark ground are less than the hundredth of a picture that the usual percentiles clip
    "how": "--percentiles 0.1 99.9",
    "read": "png_transform",
    "read_gt": "gt_transform",
}

# what the second source network learns from, by the name that make/transfer.mk has for it
SCANNERS = ("transfer", "random curves of grey levels, of whole images and of classes, and worse scanners")
SCALES = ("sizes", "pictures of 0.4 to 2.5 times their size, as nobody wrote down their scale")

IGNORING = f"""\
# voxels whose class nobody knows count nowhere
COMMON += --ignore {IGNORED}
"""


def makefile_text(sites: tuple[Site, Site], plan: Plan, wishes: Wishes) -> str:
    """The makefile. Raises UserError for a word that no command can be given."""
    source, target = sites
    labelled = target.files.label is not None
    patients, cuts = [_flag("--patient", site.files.patient) for site in sites], _cuts(sites, plan)
    (patient, *_), (cut, *_) = (each if len(set(each)) == 1 else [""] for each in (patients, cuts))
    own = [
        [word for each, shared in ((patients, patient), (cuts, cut)) if not shared for word in [each[n]] if word]
        for n in range(2)
    ]
    unscaled = source.files.pictures and not plan.spacing
    prior, words, needs = _prior(wishes, labelled, unscaled)
    way, also = SCALES if unscaled else SCANNERS
    numbers = range(plan.classes.n_class)
    share = 0.9 / (plan.classes.n_class - 1)
    kind = PICTURES if source.files.pictures else VOLUMES
    return HEAD.substitute(
        **kind,
        name=wishes.name,
        source_n=len(source.cases),
        target_n=len(target.cases),
        blind="" if labelled else ", whose truth nobody knows",
        reasons="\n".join(f"#   - {for_comment(reason)}" for reason in plan.reasons),
        lists=LABELLED_LISTS if labelled else BLIND_LISTS,
        target_data="$(S_DATA)" if labelled else f"[('IMG', {kind['read']}, False)]",
        n_class=plan.classes.n_class,
        batch=batch_of(plan.size),
        patient=patient and f"{patient} ",
        cut=_cut(plan, wishes, cut, source.files.pictures),
        source=_site_flags(source, plan.splits[0], own[0]),
        target=_site_flags(target, plan.splits[1], own[1]),
        ignored=IGNORING if any(each is not None for each in plan.classes.ignore) else "",
        prior=prior,
        prior_words=words,
        prior_needs=needs,
        way=way,
        also=also,
        nu=",".join(["0.1", *(f"{share:.4g}" for _ in numbers[1:])]),
        untagged="" if labelled or wishes.tags else UNTAGGED,
    )


def batch_of(size: tuple[int, int]) -> int:
    """Slices in a batch: 8, and of larger slices than LARGE squared so many that have no more pixels together."""
    return max(1, min(BATCH, BATCH * LARGE**2 // (size[0] * size[1])))


def _site_flags(site: Site, split: str, own: Sequence[str]) -> str:
    """The slicer's flags of one site, the label on a line of its own."""
    name = "" if site.files.pictures else f"{IMAGE}="
    images = [f"--image {name}{for_recipe(glob)}" for glob in site.files.images]
    lines = [" ".join([split, *own, *images]), *([_flag("--label", site.files.label)] if site.files.label else [])]
    return " \\\n   ".join(lines)


def _cuts(sites: Sequence[Site], plan: Plan) -> list[str]:
    """The slicer's flags of each site that depend on how its labels are numbered and its images are stored."""
    classes, cuts = plan.classes, []
    for site, label_map, ignore in zip(sites, classes.label_maps, classes.ignore, strict=True):
        flags = [f"--label_map {label_map}"] if label_map else []
        flags += [f"--others {classes.others}"] if classes.others is not None else []
        flags += [f"--ignore {ignore}"] if ignore is not None else []
        flags += [f"--channel {site.files.channel}"] if site.files.channel is not None else []
        flags += ["--place_labels"] if site.files.place_labels and site.files.label else []
        cuts.append(" ".join(flags))
    return cuts


def _cut(plan: Plan, wishes: Wishes, shared: str, pictures: bool) -> str:
    """The slicer's flags that both sites share."""
    flags = [
        *([] if pictures else [f"--plane {plan.plane}"]),
        f"{'--tile' if plan.tiles else '--size'} {plan.size[0]} {plan.size[1]}",
    ]
    flags += ["--spacing {:g} {:g}".format(*plan.spacing)] if plan.spacing else []
    flags += [shared] if shared else []
    names = [name.replace(",", ";") for name in plan.classes.names]  # of which a comma ends one
    flags += [_flag("--class_names", ",".join(names))] if names else []
    flags += [_flag("--group", plan.group)] if plan.group else []
    flags += [f"--phantom {wishes.phantom}"] if wishes.phantom else []
    flags += [_flag("--modality", wishes.modality)] if wishes.modality else []
    return " ".join([*flags, *([] if pictures else [f"--tolerance {wishes.tolerance:g}"])])


def _prior(wishes: Wishes, labelled: bool, in_pixels: bool) -> tuple[str, str, str]:
    """Flags of size_priors, what they mean, and a rule for what they need; target labels never make the size."""
    needs = ""
    if wishes.organ_mm3:
        flags, words = f"--constant_mm3 {_numbers(wishes.organ_mm3)}", "from its volume in mm3, as given"
    elif wishes.organ_mm2:
        flags, words = f"--constant_mm2 {_numbers(wishes.organ_mm2)}", "its area in mm2, as given"
    else:
        flags = f"--source_mean data/{wishes.name}_source --source_folder {LABEL}"
        words = "its mean area in the source's labels; better a number from anatomy, --constant_mm2"
        words = "its mean share of a slice in the source's masks; --constant takes pixels" if in_pixels else words
        needs = f"sizes/{wishes.name}.csv: | data/{wishes.name}_source\n"
    if not labelled:
        flags += f" --folder {IMAGE} --unlabelled"
    return flags + (f" {_flag('--tags', wishes.tags)}" if wishes.tags else ""), words, needs


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _flag(name: str, text: str) -> str:
    """A flag and its word; the word may begin as a flag does."""
    return f"{name}{'=' if text.startswith('-') else ' '}{for_recipe(text)}"
