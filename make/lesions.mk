# The boundary loss on lesions (Kervadec et al. 2019 and 2021). There is one class, highly unbalanced, so the boundary loss
# stands next to the generalised Dice. isles.make and wmh.make differ only in their facts: those of boundary.mk, and
#   CUT     the program that cuts the slices of this archive
#   UNPACK  what of the archive stays in it
#   CROP    which scans validate, and the size of a slice
include make/begin.mk

TRN      ?= gdl gdl_surface_w gdl_surface_add gdl_surface_steal
ABL      ?= gdl_surface_3d gdl_hausdorff_w focal
MOVING   ?= weights.png
N_CLASS  ?= 2
LABELS   ?= lesion
B_DATA   ?= [('in_npy', tensor_transform, False), ('gt_npy', gt_transform, True)]
SLICE    ?= --normalise minmax --format npy --distance_maps 3d_distmap $(CROP)
# the published rate of 1e-3 halves after the first epoch: 5e-4
SCHEDULE ?= --l_rate 1e-3 --schedule
ifneq ($(PHANTOM),small)
NET      ?= UNet:nG=64
endif
include make/boundary.mk

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
MAP    = $(if $(PARITY),dist_map_legacy_mm_transform,dist_map_mm_transform)
GT     = ('gt_npy', gt_transform, True)
PHI    = ('gt_npy', $(MAP), False)
GT_PHI = $(GT), $(PHI)
GT_GT  = $(GT), $(GT)
GT_3D  = $(GT), ('3d_distmap', raw_npy_transform, False)
GDL    = ('GeneralizedDice', {$(ABSENT) 'idc': [0, 1]}, None, None, None, 1)

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
   --losses "[$(GDL), ('HausdorffDTLoss', {$(INNER) 'idc': [1]}, None, None, None, 0.1)]"
$(RD)/focal: private OPT = $(call folders,$(GT)) --losses "[('FocalLoss', {'idc': [0, 1], 'gamma': 2}, 1)]"
