# Few labels on the prostate (Chaitanya et al. 2020): the Medical Segmentation Decathlon's Task05, T2 channel; peripheral and
# transition zone. Contrastive pre-training on every training image without labels, then training on the labels of 1, 2
# or 8 volumes, against random weights, over several draws of them; with mixup; with all labels.
#
#   make -f msd_prostate.make                    all of it, one table, one picture, one archive
#   make -f msd_prostate.make results/msd_prostate/contrast_2_0    the labels of 2 volumes, draw 0
#   make -f msd_prostate.make native             Dice of every run's last masks at the resolution of the volumes
#   make -f msd_prostate.make LABELLED='1 4' DRAWS='0 1 2 3 4' RD=results/msd_prostate-5 | make -f msd_prostate.make help
#
# Data: data/msd_prostate if it is there; else cut from data/msd_prostate_volumes; else that is unpacked from
# data/Task05_Prostate.tar, checked against data/msd_prostate.lineage; else it is a phantom.
SET      := msd_prostate
VOLUMES  := data/msd_prostate_volumes
LINEAGE  := data/msd_prostate.lineage
DATA     := data/msd_prostate
LABELLED := 1 2 8
FEW_DATA := $(DATA)
REPORT    = $(RD)/few_labels.txt
PLOTS     = $(RD)/few_labels.png
include rules.mk
include few_labels.mk

# -- facts ------------------------------------------------------------------------------------------------------------
CUT       = -m preprocess.archives.msd --volumes $(VOLUMES) --task Task05_Prostate --image_channel T2
FEW_SLICE = --modality MR $(N4) --normalise percentile --no_clip --format nii $(CROP)
FEW_FACTS = --target_folders "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]" --grp_regex '(\d+)_(\d+)' \
            --n_class 3

# -- settings: as published, and what shows the point on the small phantom --------------------------------------------
ifneq ($(PHANTOM),small)
# the last fifteen volumes are for testing
CROP      = --spacing 0.625 0.625 --size 192 192 --val_list 29,31,32,34,35,37,38,39,40,41,42,43,44,46,47
else
CROP      = --val 6
endif
