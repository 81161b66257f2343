# Few labels on the prostate (Chaitanya et al. 2020): the Medical Segmentation Decathlon's Task05, T2 channel; peripheral and
# transition zone. Contrastive pre-training on every training image without labels, then training on the labels of 1, 2
# or 8 volumes, against random weights, over several draws of them; with mixup; with all labels.
#
#   make -f msd_prostate.make                    all of it, one table, one picture, one archive
#   make -f msd_prostate.make contrast_2_0       the labels of 2 volumes, draw 0
#   make -f msd_prostate.make native             Dice of every run's last masks at the resolution of the volumes
#   make -f msd_prostate.make LABELLED='1 4' DRAWS='0 1 2 3 4' RD=results/msd_prostate-5    other numbers, more draws
#   make -f msd_prostate.make help
#
# Data: data/msd_prostate if it is there; else cut from data/msd_prostate_volumes; else that is unpacked from
# data/Task05_Prostate.tar, checked against data/msd_prostate.lineage; else it is a phantom.
SET      := msd_prostate
VOLUMES  := data/msd_prostate_volumes
LINEAGE  := data/msd_prostate.lineage
DATA     := data/msd_prostate
FEW_DATA := $(DATA)
include make/begin.mk
include make/few_labels.mk
LABELLED  = 1 2 8
REPORT    = $(RD)/few_labels.txt
PLOTS     = $(RD)/few_labels.png

# -- facts ------------------------------------------------------------------------------------------------------------
CUT       = -m preprocess.archives.msd --volumes $(VOLUMES) --task Task05_Prostate --image_channel T2
FEW_SLICE = --modality MR $(N4) --normalise percentile --no_clip --format nii $(CROP)
FEW_FACTS = --target_folders "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]" --grp_regex '(\d+)_(\d+)' \
            --n_class 3

# -- settings: on the small phantom, and as published -------------------------------------------------------------------
ifeq ($(PHANTOM),small)
CROP      = --val 6
else
# the last fifteen volumes are for testing
CROP      = --spacing 0.625 0.625 --size 192 192 --val_list 29,31,32,34,35,37,38,39,40,41,42,43,44,46,47
endif

# -- an experiment of your own: its name in a list and its line; without the #, `make -f msd_prostate.make long` trains it ------
# ABL += long
# $(RD)/long: private COMMON = $(few_common)
# $(RD)/long: private OPT = $(few) $(FROM_LOCAL) --n_labelled 2 --draw 0 --n_epoch 40

include make/rules.mk
