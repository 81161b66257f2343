# Boundary loss on white matter hyperintensities (Kervadec et al. 2019 and 2021): 60 MR scans from three scanners of the WMH
# challenge 2017, two channels: FLAIR, T1. Highly unbalanced: the boundary loss beside the generalised Dice.
#
#   make -f wmh.make | make -f wmh.make ablations | make -f wmh.make results/wmh/gdl_surface_steal
#   make -f wmh.make PARITY=1 RD=results/wmh-parity | make -f wmh.make help
#
# Data: data/wmh if it is there; else cut from data/wmh_volumes; else that is unpacked from the archives of
# data/wmh.lineage; else it is a phantom. Label 2, other pathology, is background. To add an experiment: its name and an
# OPT line below.
SET     := wmh
VOLUMES := data/wmh_volumes
LINEAGE := data/wmh.lineage
UNPACK  := --skip '*/orig/*' '*/3DT1.nii.gz' 'test/*'
DATA    := data/wmh
TRN     := gdl gdl_surface_w gdl_surface_add gdl_surface_steal
ABL     := gdl_surface_3d gdl_hausdorff_w focal
MOVING  := weights.png
include boundary.mk

# -- facts ------------------------------------------------------------------------------------------------------------
G_RGX   = ([A-Z]\w+?\d+)_(\d+)
B_DATA  = [('in_npy', tensor_transform, False), ('gt_npy', gt_transform, True)]
COMMON  = --target_dataset $(DATA) --grp_regex '$(G_RGX)' --network $(NET) --n_class 2 --metric_axis 1 --modalities 2 \
          --batch_size 8 --n_epoch 100 --betas 0.9 0.99 $(LEARN) $(if $(PARITY),--l_rate 1e-3 --schedule) --saveim 1 --csv metrics.csv
CUT     = -m preprocess.archives.wmh --volumes $(VOLUMES)
SLICE   = --normalise minmax --format npy --distance_maps 3d_distmap $(CROP)

# -- settings: as published (whose rate of 1e-3 halves after the first epoch: 5e-4), and those of the small phantom -------
ifneq ($(PHANTOM),small)
NET    = UNet:nG=64
LEARN  = --l_rate 5e-4
CROP   = --val 10 --resize 256 256
else
NET    = UNet:nG=8
LEARN  = --n_epoch 25 --l_rate 2e-3 --lr_decay 0.5 --lr_decay_epoch 10
CROP   = --val 6 --resize 64 64
endif
MAP = $(if $(PARITY),dist_map_legacy_mm_transform,dist_map_mm_transform)
GT  = ('gt_npy', gt_transform, True)
PHI = ('gt_npy', $(MAP), False)
GT_PHI = $(GT), $(PHI)
GT_GT  = $(GT), $(GT)
GT_3D  = $(GT), ('3d_distmap', raw_npy_transform, False)
GDL = ('GeneralizedDice', {$(if $(PARITY),$(ABSENT)) 'idc': [0, 1]}, None, None, None, 1)
ABSENT = 'legacy': True,
INNER  = 'inner': True,

# -- runs -------------------------------------------------------------------------------------------------------------
# the regional loss alone; with the boundary loss at a fixed weight, at one that grows, at one taken from the regional loss
$(RD)/gdl: private OPT = $(call folders,$(GT)) --losses "[$(GDL)]"
$(RD)/gdl_surface_w: private OPT = $(call folders,$(GT_PHI)) \
   --losses "[$(GDL), ('BoundaryLoss', {'idc': [1]}, None, None, None, 0.1)]"
$(RD)/gdl_surface_add: private OPT = $(call folders,$(GT_PHI)) \
   --losses "[$(GDL), ('BoundaryLoss', {'idc': [1]}, None, None, None, 0.01)]" \
   --scheduler AddWeightLoss --scheduler_params "{'to_add': [0, 0.01]}"
$(RD)/gdl_surface_steal: private OPT = $(call folders,$(GT_PHI)) \
   --losses "[$(GDL), ('BoundaryLoss', {'idc': [1]}, None, None, None, 0.01)]" \
   --scheduler StealWeight --scheduler_params "{'to_steal': 0.01}"
# the distances in the volume, in place of those in the slice
$(RD)/gdl_surface_3d: private OPT = $(call folders,$(GT_3D)) \
   --losses "[$(GDL), ('BoundaryLoss', {'idc': [1]}, None, None, None, 0.01)]" \
   --scheduler StealWeight --scheduler_params "{'to_steal': 0.01}"
# what it is compared with
$(RD)/gdl_hausdorff_w: private OPT = $(call folders,$(GT_GT)) \
   --losses "[$(GDL), ('HausdorffDTLoss', {$(if $(PARITY),$(INNER)) 'idc': [1]}, None, None, None, 0.1)]"
$(RD)/focal: private OPT = $(call folders,$(GT)) --losses "[('FocalLoss', {'idc': [0, 1], 'gamma': 2}, 1)]"
