# Prostate, MR to MR (Bateson et al. 2022): BMC, endorectal coil at 1.5 T, is the source; RUNMC, surface coil at 3 T,
# the target.
#
#   make -f prostate.make                  the main runs, plots, report, archive
#   make -f prostate.make ablations        what can be taken out of the method, and one table of all
#   make -f prostate.make chosen           the network that is best for the target, chosen among runs without its labels
#   make -f prostate.make stress           what the source network stands: its images as other scanners would show them
#   make -f prostate.make sfda             one run, and what it needs: results/prostate/sfda
#   make -f prostate.make show RUN=sfda    what that run is told, and by which line
#   make -f prostate.make help
#
# Data: data/prostate_source and data/prostate_target if they are there; else cut from data/prostate_volumes (the
# multi-site release: folders BMC and RUNMC); else that is unpacked from data/prostate.zip (see data/prostate.lineage);
# else it is a phantom.
SET     := prostate
VOLUMES := data/prostate_volumes
LINEAGE := data/prostate.lineage
DATA    := data/prostate_source data/prostate_target
include make/adaptation.mk
BAS     += selftrain selftrain_vi cesource_contrast noadap_contrast
PRETRAIN = global_onsource local_onsource

# -- facts ------------------------------------------------------------------------------------------------------------
N_CLASS = 2
LABELS  = prostate
G_RGX   = (Case\d+)_(\d+)
TT_DATA = [('IMG', nii_transform2, False), ('GT', nii_gt_transform2, False), ('GT', nii_gt_transform2, False)]
# distances in the volume, in mm: those in a slice are silent where the slice lacks the organ
MAPS    = ('3d_distmap', raw_npy_transform, False)
# another archive of the same patients: CUT = -m preprocess.archives.nci_isbi
CUT     = -m preprocess.archives.saml --volumes $(VOLUMES)
SLICE   = --normalise percentile --format nii --val $(N_VAL) $(CROP) --distance_maps 3d_distmap
data/prostate_source: private SLICE += --site BMC
data/prostate_target: private SLICE += --site RUNMC
PRIOR   = --n_class $(N_CLASS) $(ORGAN)
TRAINED = --n_epoch 100 --l_rate 5e-4 --lr_decay 0.9 $(LATE)

# -- settings: on the small phantom, and as published -------------------------------------------------------------------
ifeq ($(PHANTOM),small)
N_VAL     = 4
CROP      =
ORGAN     = --constant_mm2 1300
PRE_LEARN = --n_epoch 10 --steps 50
else
N_VAL     = 10
CROP      = --size 384 384
ORGAN     = --constant 8000
BATCH     = 24
PRE_LEARN = --n_epoch 200 --steps 50
endif

# -- runs of this makefile alone ----------------------------------------------------------------------------------------
# pseudo labels of the source network on the target, no source image: at a threshold of 0.5 (SegPL), and at one drawn from
# its posterior (SegPL-VI, Xu et al. 2022)
$(RD)/selftrain: private OPT = $(START) --method self_training $(ADAPT) $(KEEP) --threshold fixed
$(RD)/selftrain_vi: private OPT = $(START) --method self_training $(ADAPT) $(KEEP) --threshold learnt --prior_mu 0.5 --prior_sd 0.1
# contrastive pre-training on the source images without their labels (Chaitanya et al. 2020), as a start of the source
# network; and that network on the target as it is
CONTRAST = $(SOURCE) --n_parts 4 --l_rate 1e-3 $(PRE_LEARN)
# NET=Dimwit tries a run out on the smallest network; that one has no encoder to pre-train, so these runs take another
$(addprefix $(RD)/,global_onsource local_onsource cesource_contrast noadap_contrast): private DIMWIT = PooledUNet:nG=2
$(RD)/global_onsource: private OPT = $(CONTRAST) --method contrastive_global --strategy GD --batch_size 24
$(RD)/local_onsource: private OPT = $(CONTRAST) --method contrastive_local --strategy LR --local_blocks 2 --batch_size 12 \
   --model_weights $(RD)/global_onsource/last.pkl --load_blocks 0
$(RD)/cesource_contrast: private OPT = $(SOURCE) $(LEARN) --model_weights $(RD)/local_onsource/last.pkl --load_blocks 2
$(RD)/noadap_contrast: private OPT = --method noadap --model_weights $(RD)/cesource_contrast/$(CHOSEN)

# -- an experiment of your own ------------------------------------------------------------------------------------------
# It is two lines, its name and what it does: take the # away, and `make -f prostate.make sfda_half` trains sfda with half
# the weight of the prior; `make -f prostate.make ablations` puts it into the table.
# ABL += sfda_half
# $(RD)/sfda_half: private OPT = $(START) --method sfda $(ADAPT) \
#    --target_losses "[('EntKLProp', {'lamb_se':1, 'lamb_consprior':0.5, 'weights_se':$(NU)}, $(call prior,dumbpredwtags), $(SIZE_OF), 1)]"

include make/rules.mk
