# Boundary loss on the ventricles (Kervadec et al. 2021): cine MR of 100 patients, end-diastole and end-systole; right
# ventricle, myocardium, left ventricle. Four classes, so the boundary loss stands alone. And contrastive pre-training for
# few labels (Chaitanya et al. 2020), on slices of its own.
#
#   make -f acdc.make                            the main runs, pictures, report, archive
#   make -f acdc.make ablations                  other losses, and one table of all
#   make -f acdc.make few_labels                 the labels of 1, 2 and 8 scans: random weights against pre-trained ones
#   make -f acdc.make results/acdc/val_3d_nsd.png    another metric over the epochs, from the saved masks: no training
#   make -f acdc.make PARITY=1 RD=results/acdc-parity    as published, faults included
#   make -f acdc.make help
#
# Data: data/acdc if it is there; else cut from data/acdc_volumes; else that is unpacked from data/acdc.zip, checked
# against data/acdc.lineage; else it is a phantom.
SET      := acdc
VOLUMES  := data/acdc_volumes
LINEAGE  := data/acdc.lineage
DATA     := data/acdc
FEW_DATA := data/acdc_few
include make/boundary.mk
include make/few_labels.mk
TRN      = ce diceloss boundary
ABL      = gdl ce_boundary gdl_boundary hausdorff
LABELLED = 1 2 8

# -- facts ------------------------------------------------------------------------------------------------------------
N_CLASS = 4
LABELS  = right_ventricle myocardium left_ventricle
G_RGX   = (patient\d+_frame\d+)_(\d+)
B_DATA  = [('img', png_transform, False), ('gt', gt_transform, True)]
UNPACK  = --skip '*_4d.nii.gz'
CUT     = -m preprocess.archives.acdc --volumes $(VOLUMES)
SLICE   = --normalise minmax --format png $(CROP)
# pre-training and few labels: bias field taken out, slices resampled to one spacing. Both frames of a patient; as
# published end-diastole alone (--frames ED), with 52 volumes to pre-train on and 20 to test.
FEW_SLICE = $(N4) --normalise percentile --no_clip --format nii $(FEW_CROP)
FEW_FACTS = --folders "[('img', nii_transform, False), ('gt', nii_gt_transform, False)]" --grp_regex '$(G_RGX)' --n_class 4

# -- settings: on the small phantom, and as published -------------------------------------------------------------------
ifeq ($(PHANTOM),small)
CROP     = --val 8 --resize 64 64
FEW_CROP = --val 8 --spacing 2.5 2.5 --size 64 64
else
NET      = $(if $(PARITY),PublishedENet,ENet)
CROP     = --val 50 --resize 256 256
FEW_CROP = --val 50 --spacing 1.36719 1.36719 --size 192 192
endif

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
MAP    = $(if $(PARITY),dist_map_legacy_transform,dist_map_transform)
IDC    = 'idc': [0, 1, 2, 3]
GT     = ('gt', gt_transform, True)
PHI    = ('gt', $(MAP), False)
GT_PHI = $(GT), $(PHI)
GT_GT  = $(GT), $(GT)

# -- runs -------------------------------------------------------------------------------------------------------------
$(RD)/ce: private OPT = $(call folders,$(GT)) --losses "[('CrossEntropy', {$(IDC)}, 1)]"
$(RD)/diceloss: private OPT = $(call folders,$(GT)) --losses "[('DiceLoss', {$(ABSENT) $(IDC)}, 1)]"
$(RD)/boundary: private OPT = $(call folders,$(PHI)) --losses "[('BoundaryLoss', {$(IDC)}, 1)]"
# generalised Dice, and regional losses with the boundary loss or with the loss it is compared with
$(RD)/gdl: private OPT = $(call folders,$(GT)) --losses "[('GeneralizedDice', {$(ABSENT) $(IDC)}, 1)]"
$(RD)/ce_boundary: private OPT = $(call folders,$(GT_PHI)) \
   --losses "[('CrossEntropy', {$(IDC)}, 1), ('BoundaryLoss', {$(IDC)}, 0.1)]"
$(RD)/gdl_boundary: private OPT = $(call folders,$(GT_PHI)) \
   --losses "[('GeneralizedDice', {$(ABSENT) $(IDC)}, 1), ('BoundaryLoss', {$(IDC)}, 0.1)]"
$(RD)/hausdorff: private OPT = $(call folders,$(GT_GT)) \
   --losses "[('GeneralizedDice', {$(ABSENT) $(IDC)}, 1), ('HausdorffDTLoss', {$(INNER) 'idc': [1, 2, 3]}, 0.1)]"

# -- an experiment of your own: its name in a list and its line; without the #, `make -f acdc.make focal` trains it -------------
# ABL += focal
# $(RD)/focal: private OPT = $(call folders,$(GT)) --losses "[('FocalLoss', {$(IDC), 'gamma': 2}, 1)]"

include make/rules.mk
