# Boundary loss on white matter hyperintensities (Kervadec et al. 2019 and 2021): 60 MR scans from three scanners of the WMH
# challenge 2017, two channels: FLAIR, T1. Label 2, other pathology, is background.
#
#   make -f wmh.make                            the main runs, pictures, report, archive
#   make -f wmh.make ablations                  other losses, and one table of all
#   make -f wmh.make gdl_surface_add            one run, and what it needs
#   make -f wmh.make PARITY=1 RD=results/wmh-parity    as published, faults included
#   make -f wmh.make help
#
# Data: data/wmh if it is there; else cut from data/wmh_volumes; else that is unpacked from the archives of
# data/wmh.lineage; else it is a phantom.
SET     := wmh
VOLUMES := data/wmh_volumes
LINEAGE := data/wmh.lineage
DATA    := data/wmh
include make/lesions.mk

# -- facts ------------------------------------------------------------------------------------------------------------
UNPACK     = --skip '*/orig/*' '*/3DT1.nii.gz' 'test/*'
CUT        = -m preprocess.archives.wmh --volumes $(VOLUMES)
CROP       = $(if $(filter small,$(PHANTOM)),--val 6 --resize 64 64,--val 10 --resize 256 256)
G_RGX      = ([A-Z]\w+?\d+)_(\d+)
MODALITIES = 2

# -- an experiment of your own: without the # of the next two lines, `make -f wmh.make sharper` trains it ---------------
# ABL += sharper
# $(RD)/sharper: private OPT = $(call folders,$(GT)) --losses "[('FocalLoss', {'idc': [0, 1], 'gamma': 4}, 1)]"

include make/rules.mk
