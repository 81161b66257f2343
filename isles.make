# Boundary loss on stroke lesions (Kervadec et al. 2019 and 2021): 94 CT perfusion scans of ISLES 2018, five channels: CT,
# blood flow, blood volume, mean transit time, time to maximum.
#
#   make -f isles.make                          the main runs, pictures, report, archive
#   make -f isles.make ablations                other losses, and one table of all
#   make -f isles.make gdl_surface_steal        one run, and what it needs
#   make -f isles.make PARITY=1 RD=results/isles-parity    as published, faults included
#   make -f isles.make help
#
# Data: data/isles if it is there; else cut from data/isles_volumes; else that is unpacked from
# data/ISLES2018_Training.zip, checked against data/isles.lineage; else it is a phantom. Several scans are of one person,
# and the archive does not say which: a person may lie in both splits.
SET     := isles
VOLUMES := data/isles_volumes
LINEAGE := data/isles.lineage
DATA    := data/isles
include make/lesions.mk

# -- facts ------------------------------------------------------------------------------------------------------------
UNPACK     = --skip '*CT_4DPWI*'
CUT        = -m preprocess.archives.isles --volumes $(VOLUMES)
CROP       = --val $(if $(filter small,$(PHANTOM)),6,20)
G_RGX      = (case_\d+)_(\d+)
MODALITIES = 5

# -- an experiment of your own: take the # away from both lines, then `make -f isles.make stronger` -------------------
# ABL += stronger
# $(RD)/stronger: private OPT = $(call folders,$(GT_PHI)) --losses "[$(GDL), ('BoundaryLoss', {'idc': [1]}, 1)]"

include make/rules.mk
