"""Where a figure of a study comes from, link by link, back to the files of the images.

    python -m lineage results/prostate/study --cell sfda,dice
    python -m lineage results/prostate/study --cell sfda,hd95,last          of the last network, not of the chosen one

study/lineage.py does the work.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

from study.lineage import main
from utils import run_program

if __name__ == "__main__":
    run_program(main)
