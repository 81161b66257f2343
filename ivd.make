# Intervertebral discs, Water to In-phase Dixon MR (Bateson et al. 2022). Both images are of the same scans, one folder
# each in one set, so DATA is one folder.
#
#   make -f ivd.make | make -f ivd.make ablations | make -f ivd.make results/ivd/sfda | make -f ivd.make help
#
# Data: data/ivd_transverse if it is there; else cut from data/ivd_volumes (IVDM3Seg: NN_wat.nii, NN_inn.nii,
# NN_Labels.nii); else that is unpacked from data/ivd.zip (see data/ivd.lineage); else it is a phantom. To add an
# experiment: its name in TRN or ABL, and an OPT line.
SET     := ivd
VOLUMES := data/ivd_volumes
LINEAGE := data/ivd.lineage
DATA    := data/ivd_transverse
TRN     := cesource noadap sfda_lr0 sfda SFDA_TrueSize fs
ABL     := entropy klprop sfda_notags sfda_mean adaent cda tent bnrefresh shot noadap_onsource sfda_onsource
BAS     := adapt adapt_multi cesource_boundary fs_gdl fs_boundary
INF     := cesourceim
SCRATCH := cesource fs cesource_boundary fs_gdl fs_boundary
include adaptation.mk

# -- facts ------------------------------------------------------------------------------------------------------------
G_RGX   = (\d+)_(\d+)
S_DATA  = [('Wat', png_transform, False), ('GT', gtpng_transform, False), ('GT', gtpng_transform, False)]
MAPS    = ('GT', dist_map_transform, False)
TT_DATA = [('Inn', png_transform, False), ('GT', gtpng_transform, False), ('GT', gtpng_transform, False)]
SOURCE  = --target_folders "$(S_DATA)" --val_target_folders "$(S_DATA)"
COMMON  = --target_dataset data/ivd_transverse --target_folders "$(TT_DATA)" --val_target_folders "$(TT_DATA)" \
          --grp_regex '$(G_RGX)' --network $(NET) --n_class 2 --metric_axis 1 --batch_size $(BATCH) \
          --n_epoch 150 --l_rate 5e-4 --lr_decay 0.9 $(LATE) --weight_decay 1e-4 --target_losses "$(L_OR)"
# The scans are pairs of time points of one person: two pairs validate, so that no person is in both splits.
CUT     = -m preprocess.archives.ivdm3seg --volumes $(VOLUMES)
SLICE   = --images wat inn --normalise percentile --format png --val 4 $(CROP)
PRIOR   = --n_class 2 $(PRIOR_SIZE)

# -- settings: as published, and what shows the point on the small phantom --------------------------------------------
ifneq ($(PHANTOM),small)
BATCH      = 22
CROP       = --axis 1 --size 256 256
PRIOR_SIZE = --constant 579
LEARN      = --lr_decay 1
ADAPT      = --l_rate 3e-5 --lr_decay 0.2 --lr_decay_epoch 50
ADVERSARY  = --l_rate 1e-4 --lr_rule poly
LAMBDAS    = 1e-3 2e-4
else
NET        = UNet:nG=8
BATCH      = 8
CROP       = --axis 0
PRIOR_SIZE = --constant_mm2 1600
LEARN      = --n_epoch 25 --l_rate 2e-3 --lr_decay 0.5 --lr_decay_epoch 10
ADAPT      = --n_epoch 20 --l_rate 2e-4 --lr_decay 0.7 --lr_decay_epoch 5
ADVERSARY  = --n_epoch 20 --l_rate 5e-4 --lr_rule poly --d_width 16 --d_l_rate 1e-3
LAMBDAS    = 1e-2 2e-3
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
# source-free adaptation: one prior size, switched by image-level tags
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
