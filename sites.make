# Prostate, MR to MR, between any two of the six sites of the multi-site release, or between all of them in one table.
#
#   make -f sites.make matrix              every site as source and as target: results/sites/matrix/matrix.txt, matrix.png
#   make -f sites.make matrix SITES='BMC UCL HK' ROWS='noadap sfda tent' SEEDS='0 1 2'
#   make -f sites.make                     one pair, BMC to RUNMC: the main runs, plots, report, archive
#   make -f sites.make SOURCE_SITE=UCL TARGET_SITE=HK sfda           another pair: results/sites/UCL-HK/sfda
#   make -f sites.make help
#
# Data: data/sites/<site>; cut from data/prostate_volumes where that is the release, with the folder HK; else unpacked from
# data/prostate.zip (see data/prostate.lineage); else a phantom with six unlike sites.
SITES       := RUNMC BMC I2CVB UCL BIDMC HK
SOURCE_SITE := BMC
TARGET_SITE := RUNMC
SET     := sites
# of this pair; of another one, results/sites/UCL-HK
RD      := results/$(SET)$(filter-out /BMC-RUNMC,/$(SOURCE_SITE)-$(TARGET_SITE))
VOLUMES := $(if $(wildcard data/prostate_volumes/HK),data/prostate_volumes,data/sites_volumes)
LINEAGE := data/prostate.lineage
DATA    := data/sites/$(SOURCE_SITE) data/sites/$(TARGET_SITE)
SIZES   := sizes/$(SET)_$(TARGET_SITE)
include make/adaptation.mk

# -- facts ------------------------------------------------------------------------------------------------------------
N_CLASS = 2
LABELS  = prostate
G_RGX   = (Case\d+)_(\d+)
TT_DATA = [('IMG', nii_transform2, False), ('GT', nii_gt_transform2, False), ('GT', nii_gt_transform2, False)]
CUT     = -m preprocess.archives.saml --volumes $(VOLUMES)
SLICE   = --normalise percentile --format nii --val $(N_VAL) $(CROP) --site $(@F)
PRIOR   = --n_class $(N_CLASS) $(ORGAN)
TRAINED = --n_epoch 100 --l_rate 5e-4 --lr_decay 0.9 $(LATE)

# -- settings: on the small phantom, and as prostate.make has them --------------------------------------------------------
ifeq ($(PHANTOM),small)
N_VAL = 4
CROP  =
ORGAN = --constant_mm2 1300
else
N_VAL = 4
CROP  = --size 384 384
ORGAN = --constant 8000
BATCH = 24
endif

include make/matrix.mk
include make/rules.mk
