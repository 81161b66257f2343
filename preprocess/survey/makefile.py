"""The text of an experiment makefile for one's own data: its facts, its settings, an example of one's own run."""

from dataclasses import dataclass
from string import Template

from datasets.size_table import WITHOUT_TAGS
from preprocess.survey.plan import Plan
from preprocess.survey.sites import IMAGE, LABEL, Site
from processes.quoting import for_comment, for_recipe


@dataclass(frozen=True)
class Wishes:
    """What the user typed in addition to the volumes."""

    name: str
    patient: str
    channel: int | None
    tolerance: float
    modality: str
    organ_mm2: tuple[float, ...]
    organ_mm3: tuple[float, ...]
    tags: str | None
    phantom: str | None  # small or full, where the volumes are a phantom's


HEAD = Template("""\
# $name: $source_n volumes of the source, $target_n of the target$blind.
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
# the weight of each class in the entropy
NU      = [$nu]
G_RGX   = (.+)_(\\d+)
S_DATA  = [('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]
TT_DATA = $target_data
# how slices are cut: delete data/${name}_source and data/${name}_target after a change
SLICE   = $patient --n_class $n_class --normalise percentile --format nii \
          $cut
data/${name}_source: private SLICE += --site source --val $val_source --image IMG=$source \\
   $source_label
data/${name}_target: private SLICE += --site target --val $val_target --image IMG=$target$target_label
# how large each class is in a slice: $prior_words
PRIOR   = --n_class $n_class $prior
$untagged$prior_needs
# -- settings: the published ones; fewer epochs do for a first look -------------------------------------------------
BATCH   = 8
TRAINED =
LEARN   = --n_epoch 100 --l_rate 5e-4 --lr_decay 0.9
ADAPT   = --n_epoch 50 --l_rate 1e-6 --lr_decay 0.9
# no learning rate has to be guessed: short adaptations at these rates stand beside sfda, and `chosen` is the best
# network of all, or the source's where none is better. No label is looked at for that
RATES   = 1e-5 1e-4
CHOICES = sfda $$(AT_RATES)

# -- an experiment of your own: a name and a line. Without the #, `make -f $name.make wide` trains it -----
# ABL += wide
# $$(RD)/wide: private OPT = $$(WEIGHTS) --method sfda $$(ADAPT) --batch_size 16 $$(call sfda_loss,$$(COLUMN))

include make/rules.mk
""")
BLIND_LISTS = """\
# nobody knows the truth of the target: no run that learns from it, no scores to draw
TRN     = cesource noadap sfda_lr0 sfda $(AT_RATES) chosen
ABL     = tent shot
PLOTS   = $(RD)/losses.png $(SELECTION)
"""
LABELLED_LISTS = """\
TRN     = cesource noadap sfda_lr0 sfda $(AT_RATES) chosen SFDA_TrueSize fs
ABL     = entropy klprop sfda_notags sfda_mean adaent cda tent bnrefresh shot
"""
UNTAGGED = f"""\
# nothing tells which slices show an organ: one prior for every slice
COLUMN  = {WITHOUT_TAGS}
"""


def makefile_text(sites: tuple[Site, Site], plan: Plan, wishes: Wishes) -> str:
    """The makefile. Raises UserError for a word that no command can be given."""
    source, target = sites
    labelled = target.label is not None
    prior, words, needs = _prior(wishes, labelled)
    numbers = range(plan.n_class)
    share = 0.9 / (plan.n_class - 1)
    return HEAD.substitute(
        name=wishes.name,
        source_n=len(source.cases),
        target_n=len(target.cases),
        blind="" if labelled else ", whose truth nobody knows",
        reasons="\n".join(f"#   - {for_comment(reason)}" for reason in plan.reasons),
        lists=LABELLED_LISTS if labelled else BLIND_LISTS,
        target_data="$(S_DATA)" if labelled else "[('IMG', nii_transform, False)]",
        n_class=plan.n_class,
        patient=_flag("--patient", wishes.patient),
        cut=_cut(plan, wishes),
        val_source=plan.val[0],
        val_target=plan.val[1],
        source=for_recipe(source.image),
        source_label=_flag("--label", str(source.label)),
        target=for_recipe(target.image),
        target_label=" \\\n   " + _flag("--label", target.label) if target.label else "",
        prior=prior,
        prior_words=words,
        prior_needs=needs,
        nu=",".join(["0.1", *(f"{share:.4g}" for _ in numbers[1:])]),
        untagged="" if labelled or wishes.tags else UNTAGGED,
    )


def _cut(plan: Plan, wishes: Wishes) -> str:
    """The slicer's flags that both sites share."""
    flags = [f"--plane {plan.plane}", f"--size {plan.size[0]} {plan.size[1]}"]
    flags += ["--spacing {:g} {:g}".format(*plan.spacing)] if plan.spacing else []
    flags += [f"--label_map {plan.label_map}"] if plan.label_map else []
    flags += [f"--others {plan.others}"] if plan.others is not None else []
    flags += [_flag("--group", plan.group)] if plan.group else []
    flags += [f"--channel {wishes.channel}"] if wishes.channel is not None else []
    flags += [f"--phantom {wishes.phantom}"] if wishes.phantom else []
    flags += [_flag("--modality", wishes.modality)] if wishes.modality else []
    return " ".join([*flags, f"--tolerance {wishes.tolerance:g}"])


def _prior(wishes: Wishes, labelled: bool) -> tuple[str, str, str]:
    """Flags of size_priors, what they mean, and a rule for what they need; target labels never make the size."""
    needs = ""
    if wishes.organ_mm3:
        flags, words = f"--constant_mm3 {_numbers(wishes.organ_mm3)}", "from its volume in mm3, as given"
    elif wishes.organ_mm2:
        flags, words = f"--constant_mm2 {_numbers(wishes.organ_mm2)}", "its area in mm2, as given"
    else:
        flags = f"--source_mean data/{wishes.name}_source --source_folder {LABEL}"
        words = "its mean area in the source's labels; better a number from anatomy, --constant_mm2"
        needs = f"sizes/{wishes.name}.csv: | data/{wishes.name}_source\n"
    if not labelled:
        flags += f" --folder {IMAGE} --unlabelled"
    return flags + (f" {_flag('--tags', wishes.tags)}" if wishes.tags else ""), words, needs


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _flag(name: str, text: str) -> str:
    """A flag and its word; the word may begin as a flag does."""
    return f"{name}{'=' if text.startswith('-') else ' '}{for_recipe(text)}"
