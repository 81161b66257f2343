# Boundary loss on stroke lesions (Kervadec et al. 2019 and 2021): 94 CT perfusion scans of ISLES 2018, five channels: CT,
# blood flow, blood volume, mean transit time, time to maximum. Highly unbalanced: the boundary loss beside the
# generalised Dice.
#
#   make -f isles.make | make -f isles.make ablations | make -f isles.make results/isles/gdl_surface_steal
#   make -f isles.make PARITY=1 RD=results/isles-parity | make -f isles.make help
#
# Data: data/isles if it is there; else cut from data/isles_volumes; else that is unpacked from
# data/ISLES2018_Training.zip, checked against data/isles.lineage; else it is a phantom. Several scans are of one person,
# and the archive does not say which: a person may lie in both splits. To add an experiment: its name and an OPT line.
SET     := isles
VOLUMES := data/isles_volumes
LINEAGE := data/isles.lineage
UNPACK  := --skip '*CT_4DPWI*'
DATA    := data/isles
TRN     := gdl gdl_surface_w gdl_surface_add gdl_surface_steal
ABL     := gdl_surface_3d gdl_hausdorff_w focal
MOVING  := weights.png
include boundary.mk

# -- facts ------------------------------------------------------------------------------------------------------------
G_RGX   = (case_\d+)_(\d+)
B_DATA  = [('in_npy', tensor_transform, False), ('gt_npy', gt_transform, True)]
COMMON  = --target_dataset $(DATA) --grp_regex '$(G_RGX)' --network $(NET) --n_class 2 --metric_axis 1 --modalities 5 \
          --batch_size 8 --n_epoch 100 --betas 0.9 0.99 $(LEARN) $(if $(PARITY),--l_rate 1e-3 --schedule) --saveim 1 --csv metrics.csv
CUT     = -m preprocess.archives.isles --volumes $(VOLUMES)
SLICE   = --normalise minmax --format npy --distance_maps 3d_distmap $(CROP)

# -- settings: as published (whose rate of 1e-3 halves after the first epoch: 5e-4), and those of the small phantom -------
ifneq ($(PHANTOM),small)
NET    = UNet:nG=64
LEARN  = --l_rate 5e-4
CROP   = --val 20
else
NET    = UNet:nG=8
LEARN  = --n_epoch 25 --l_rate 2e-3 --lr_decay 0.5 --lr_decay_epoch 10
CROP   = --val 6
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
