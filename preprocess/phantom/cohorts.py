"""The cohorts that can be made up: kind -> its sites."""

from preprocess.phantom import msd_prostate, tumour
from preprocess.phantom.brain import STROKE, WHITE_MATTER
from preprocess.phantom.heart import HEART
from preprocess.phantom.pelvis import PROSTATE, SITES
from preprocess.phantom.short_axis import CINE
from preprocess.phantom.spine import DISCS

# The place in this table seeds a cohort: a new one goes to the end, else the others' patients change.
COHORTS = {
    "ivd": DISCS,
    "prostate": PROSTATE,
    "whs": HEART,
    "acdc": CINE,
    "isles": STROKE,
    "wmh": WHITE_MATTER,
    "msd_prostate": msd_prostate.ZONES,
    "brats": tumour.GLIOMA,
    "sites": SITES,
}
DECATHLON = {"msd_prostate": msd_prostate.CONTENTS, "brats": tumour.CONTENTS}  # those with a dataset.json
