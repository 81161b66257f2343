# The demo: a network trained on CT finds vertebrae on MR, after adapting without a single CT image. Real images, two small
# volumes out of a pinned Python package (tptbox, Apache-2.0): one patient a modality, so it shows a method at work and
# proves no accuracy.
#
#   make                               this file, after making the virtual environment
#   make -f spine.make results/spine/sfda
#   make -f spine.make ablations
SET     := spine
VOLUMES :=
DATA    := data/spine_ct data/spine_mr
TRN     := cesource noadap sfda_lr0 sfda SFDA_TrueSize fs
ABL     := entropy klprop sfda_notags sfda_mean adaent cda tent bnrefresh shot noadap_onsource sfda_onsource
BAS     :=
INF     := cesourceim
SCRATCH := cesource fs
SMALL   := yes
CUT      = -m preprocess.spine --downloads data/downloads
include adaptation.mk

# -- facts and settings -----------------------------------------------------------------------------------------------
NET      = UNet:nG=4
G_RGX    = ([a-z]+\d+)_(\d+)
TT_DATA  = [('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]
SOURCE   = --target_dataset data/spine_ct
COMMON   = --target_dataset data/spine_mr --target_folders "$(TT_DATA)" --val_target_folders "$(TT_DATA)" \
           --grp_regex '$(G_RGX)' --network $(NET) --n_class 2 --metric_axis 1 --batch_size 4 \
           --weight_decay 1e-4 --target_losses "$(L_OR)"
data/spine_ct: private SLICE = ct
data/spine_mr: private SLICE = mr
# anatomical knowledge, one number: bone in a slice that shows vertebrae, some 20 cm^2 in this field of view
PRIOR    = --n_class 2 --constant_mm2 2000
LEARN    = --n_epoch 60 --l_rate 4e-3 --lr_decay 0.5 --lr_decay_epoch 20
ADAPT    = --n_epoch 30 --l_rate 5e-4 --lr_decay 0.7 --lr_decay_epoch 10 --batch_size 8

# -- losses -----------------------------------------------------------------------------------------------------------
L_OR  = [('CrossEntropy', {'idc': [0,1], 'weights':[1,1]}, None, None, None, 1)]
NU    = [0.1,0.9]
FORE  = [1]
ENTKL = 'EntKLProp', {'lamb_se':1, 'lamb_consprior':1, 'weights_se':$(NU), 'power':1}

# -- runs -------------------------------------------------------------------------------------------------------------
# the source network: cross-entropy on the labelled source; bone is bone whichever way it is turned
$(RD)/cesource: private OPT = $(SOURCE) --model_weights="" $(LEARN) --augment \
   --augmentation "{'flip': True, 'rotate': 45}"
# lower bound: the source network on the target as it is
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap --saveim True --entmap
# source-free adaptation: one prior size, switched by image-level tags
$(RD)/sfda: private OPT = $(WEIGHTS) --method sfda $(ADAPT) --saveim True --entmap \
   --target_losses "[($(ENTKL), $(call prior,dumbpredwtags), 'soft_size', 1)]"
# its control, the same at learning rate 0: what re-estimating the batch-norm statistics does on its own
$(RD)/sfda_lr0: private OPT = $(WEIGHTS) --method sfda $(ADAPT) --l_rate 0 \
   --target_losses "[($(ENTKL), $(call prior,dumbpredwtags), 'soft_size', 1)]"
# upper bounds: the true sizes as prior; full supervision on the target
$(RD)/SFDA_TrueSize: private OPT = $(WEIGHTS) --method sfda $(ADAPT) \
   --target_losses "[($(ENTKL), $(call prior,val_gt_size), 'soft_size', 1)]"
$(RD)/fs: private OPT = --model_weights="" $(LEARN) --saveim True
# inference: the masks of a trained network
$(RD)/cesourceim: private OPT = $(WEIGHTS) --mode makeim --entmap
include ablations.mk
