# Prostate, MR to MR (Bateson et al. 2022): BMC, endorectal coil at 1.5 T, is the source; RUNMC, surface coil at 3 T,
# the target.
#
#   make -f prostate.make                        the runs of TRN, plots, report, archive
#   make -f prostate.make ablations              those of ABL too, and one table of all
#   make -f prostate.make results/prostate/fs    one run
#   make -f prostate.make help
#
# Data: data/prostate_source and data/prostate_target if they are there; else cut from data/prostate_volumes (the
# multi-site release: folders BMC and RUNMC); else that is unpacked from data/prostate.zip (see data/prostate.lineage);
# else it is a phantom.
#
# To add an experiment: its name in TRN or ABL, and a line `$(RD)/<name>: private OPT = …` below.
SET     := prostate
VOLUMES := data/prostate_volumes
LINEAGE := data/prostate.lineage
DATA    := data/prostate_source data/prostate_target
TRN     := cesource noadap sfda_lr0 sfda SFDA_TrueSize fs
ABL     := entropy klprop sfda_notags sfda_mean adaent cda tent bnrefresh shot noadap_onsource sfda_onsource
BAS     := adapt adapt_multi cesource_boundary fs_gdl fs_boundary selftrain selftrain_vi cesource_contrast noadap_contrast
INF     := cesourceim
PRE     := global_onsource local_onsource
SCRATCH := cesource fs cesource_boundary fs_gdl fs_boundary cesource_contrast noadap_contrast
include adaptation.mk

# -- facts ------------------------------------------------------------------------------------------------------------
G_RGX   = (Case\d+)_(\d+)
TT_DATA = [('IMG', nii_transform2, False), ('GT', nii_gt_transform2, False), ('GT', nii_gt_transform2, False)]
S_DATA  = $(TT_DATA)
# distances in the volume, in mm: those in a slice are silent where the slice lacks the organ
MAPS    = ('3d_distmap', raw_npy_transform, False)
SOURCE  = --target_dataset data/prostate_source
COMMON  = --target_dataset data/prostate_target --target_folders "$(TT_DATA)" --val_target_folders "$(TT_DATA)" \
          --grp_regex '$(G_RGX)' --network $(NET) --n_class 2 --metric_axis 1 --batch_size $(BATCH) \
          --n_epoch 100 --l_rate 5e-4 --lr_decay 0.9 $(LATE) --weight_decay 1e-4 --target_losses "$(L_OR)"
# another archive of the same patients: CUT = -m preprocess.archives.nci_isbi
CUT     = -m preprocess.archives.saml --volumes $(VOLUMES)
SLICE   = --normalise percentile --format nii --val $(N_VAL) $(CROP) --distance_maps 3d_distmap
data/prostate_source: private SLICE += --site BMC
data/prostate_target: private SLICE += --site RUNMC
PRIOR   = --n_class 2 $(PRIOR_SIZE)

# -- settings: as published, and what shows the point on the small phantom --------------------------------------------
ifneq ($(PHANTOM),small)
BATCH      = 24
N_VAL      = 10
CROP       = --size 384 384
PRIOR_SIZE = --constant 8000
LEARN      = --lr_decay 1
ADAPT      = --l_rate 1e-6
ADVERSARY  = --l_rate 1e-4 --lr_rule poly
LAMBDAS    = 1e-3 2e-4
PRE_LEARN  = --n_epoch 200 --steps 50
else
NET        = UNet:nG=8
BATCH      = 8
N_VAL      = 4
CROP       =
PRIOR_SIZE = --constant_mm2 1300
LEARN      = --n_epoch 25 --l_rate 2e-3 --lr_decay 0.5 --lr_decay_epoch 10
ADAPT      = --n_epoch 20 --l_rate 2e-4 --lr_decay 0.7 --lr_decay_epoch 5
ADVERSARY  = --n_epoch 20 --l_rate 5e-4 --lr_rule poly --d_width 16 --d_l_rate 1e-3
LAMBDAS    = 1e-2 2e-3
PRE_LEARN  = --n_epoch 10 --steps 50
endif

# -- losses -----------------------------------------------------------------------------------------------------------
L_OR  = [('CrossEntropy', {'idc': [0,1], 'weights':[1,1]}, None, None, None, 1)]
NU    = [0.1,0.9]
FORE  = [1]
ENTKL = 'EntKLProp', {'lamb_se':1, 'lamb_consprior':1, 'weights_se':$(NU), 'power':1}

# -- runs -------------------------------------------------------------------------------------------------------------
# the source network: cross-entropy on the labelled source
$(RD)/cesource: private OPT = $(SOURCE) --model_weights="" $(LEARN)
# lower bound: the source network on the target as it is
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap --saveim True --entmap
# source-free adaptation: one prior size, switched by image-level tags. --saveim False, and no --entmap, to speed it up
$(RD)/sfda: private OPT = $(WEIGHTS) --method sfda $(ADAPT) --saveim True --entmap \
   --target_losses "[($(ENTKL), $(call prior,dumbpredwtags), 'norm_soft_size', 1)]"
# its control, the same at learning rate 0: what re-estimating the batch-norm statistics does on its own
$(RD)/sfda_lr0: private OPT = $(WEIGHTS) --method sfda $(ADAPT) --l_rate 0 \
   --target_losses "[($(ENTKL), $(call prior,dumbpredwtags), 'norm_soft_size', 1)]"
# upper bounds: the true sizes as prior; full supervision on the target
$(RD)/SFDA_TrueSize: private OPT = $(WEIGHTS) --method sfda $(ADAPT) \
   --target_losses "[($(ENTKL), $(call prior,val_gt_size), 'norm_soft_size', 1)]"
$(RD)/fs: private OPT = --model_weights="" $(LEARN) --saveim True
# inference: the masks of a trained network
$(RD)/cesourceim: private OPT = $(WEIGHTS) --mode makeim --entmap
include ablations.mk
include baselines.mk

# pseudo labels of the source network on the target, no source image: at a threshold of 0.5 (SegPL), and at one drawn from
# its posterior (SegPL-VI, Xu et al. 2022)
$(RD)/selftrain: private OPT = $(WEIGHTS) --method self_training $(ADAPT) --threshold fixed
$(RD)/selftrain_vi: private OPT = $(WEIGHTS) --method self_training $(ADAPT) --threshold learnt --prior_mu 0.5 --prior_sd 0.1
# contrastive pre-training on the source images without their labels (Chaitanya et al. 2020), as a start of the source
# network; and that network on the target as it is
CONTRAST = $(SOURCE) --n_parts 4 --l_rate 1e-3 $(PRE_LEARN)
$(addprefix $(RD)/,global_onsource local_onsource cesource_contrast noadap_contrast): private DIMWIT = PooledUNet:nG=2
$(RD)/global_onsource: private OPT = $(CONTRAST) --method contrastive_global --strategy GD --batch_size 24
$(RD)/local_onsource: $(RD)/global_onsource/last.pkl
$(RD)/local_onsource: private OPT = $(CONTRAST) --method contrastive_local --strategy LR --local_blocks 2 --batch_size 12 \
   --model_weights $(RD)/global_onsource/last.pkl --load_blocks 0
$(RD)/cesource_contrast: $(RD)/local_onsource/last.pkl
$(RD)/cesource_contrast: private OPT = $(SOURCE) $(LEARN) --model_weights $(RD)/local_onsource/last.pkl --load_blocks 2
$(RD)/noadap_contrast: $(RD)/cesource_contrast/$(CHOSEN)
$(RD)/noadap_contrast: private OPT = --method noadap --model_weights $(RD)/cesource_contrast/$(CHOSEN)
