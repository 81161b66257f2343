# Intervertebral discs, Water to In-phase Dixon MR (Bateson et al. 2022). Both images are of the same scans, one folder
# each in one set, so DATA is one folder.
#
#   make -f ivd.make                       the main runs, plots, report, archive
#   make -f ivd.make ablations             what can be taken out of the method, and one table of all
#   make -f ivd.make sfda                  one run, and what it needs
#   make -f ivd.make help
#
# Data: data/ivd_transverse if it is there; else cut from data/ivd_volumes (IVDM3Seg: NN_wat.nii, NN_inn.nii,
# NN_Labels.nii); else that is unpacked from data/ivd.zip (see data/ivd.lineage); else it is a phantom.
SET     := ivd
VOLUMES := data/ivd_volumes
LINEAGE := data/ivd.lineage
DATA    := data/ivd_transverse
include make/adaptation.mk

# -- facts ------------------------------------------------------------------------------------------------------------
N_CLASS = 2
LABELS  = disc
G_RGX   = (\d+)_(\d+)
TT_DATA = [('Inn', png_transform, False), ('GT', gtpng_transform, False), ('GT', gtpng_transform, False)]
S_DATA  = [('Wat', png_transform, False), ('GT', gtpng_transform, False), ('GT', gtpng_transform, False)]
MAPS    = ('GT', dist_map_transform, False)
CUT     = -m preprocess.archives.ivdm3seg --volumes $(VOLUMES)
SLICE   = --images wat inn --normalise percentile --format png --val 4 $(CROP)
PRIOR   = --n_class $(N_CLASS) $(DISC)
# upl keeps all pieces: seven discs are one class
AGREE  += --pieces all

# -- settings: on the small phantom, and as published -------------------------------------------------------------------
ifeq ($(PHANTOM),small)
CROP    = --axis 0
DISC    = --constant_mm2 1600
else
CROP    = --axis 1 --size 256 256
DISC    = --constant 579
ADAPT   = --l_rate 3e-5 --lr_decay 0.2 --lr_decay_epoch 50
endif

# -- an experiment of your own: a name and a line; without the #, `make -f ivd.make slow` trains it ---------------------------
# ABL += slow
# $(RD)/slow: private OPT = $(START) --method sfda $(ADAPT) --l_rate 1e-5 $(call sfda_loss,$(COLUMN))

include make/rules.mk
