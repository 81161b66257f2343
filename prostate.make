# Prostate, MR to MR (Bateson et al. 2022): BMC, endorectal coil at 1.5 T, is the source; RUNMC, surface coil at 3 T,
# the target. To add an experiment: its name in TRN (or ABL), and one OPT line below.
#
#   make -f prostate.make                        all of TRN, plots, report, archive
#   make -f prostate.make ablations              ABL too
#   make -f prostate.make results/prostate/fs    one run
#   make -f prostate.make help
#
# Data: data/prostate_source and data/prostate_target if they are there; else cut from data/prostate_volumes (the
# multi-site release, folders BMC and RUNMC); else from a phantom, which is made there.
SET     := prostate
VOLUMES := data/prostate_volumes
DATA    := data/prostate_source data/prostate_target
TRN     := cesource noadap sfda_lr0 sfda SFDA_TrueSize fs
ABL     := entropy klprop sfda_notags adaent cda tent bnrefresh shot sfda_onsource
INF     := cesourceim
SCRATCH := cesource fs
include rules.mk

# -- settings: published, and for the small phantom its own ------------------------------------------------------------
ifeq ($(PHANTOM),small)
NET        = UNet:nG=8
BATCH      = 8
E_SOURCE   = --n_epoch 25 --l_rate 2e-3
E_ADAPT    = --n_epoch 20 --l_rate 1e-4
E_REFRESH  = --n_epoch 20 --l_rate 0
CROP       =
PRIOR_SIZE = --constant_mm2 1000
else
NET        = UNet
BATCH      = 24
E_SOURCE   = --n_epoch 100 --l_rate 5e-4
E_ADAPT    = --n_epoch 100 --l_rate 1e-6 --lr_decay 0.9
E_REFRESH  = --n_epoch 100 --l_rate 0
CROP       = --size 384 384
PRIOR_SIZE = --constant 8000
endif

G_RGX   = (Case\d+)_(\d+)
TT_DATA = [('IMG', nii_transform2, False), ('GT', nii_gt_transform2, False), ('GT', nii_gt_transform2, False)]
L_OR    = [('CrossEntropy', {'idc': [0,1], 'weights':[1,1]}, None, None, None, 1)]
# what a loss knows of the sizes: one constant where the slice holds the gland; the same everywhere; the truth
TAGS    = 'PredictionBounds', {'margin':0,'dir':'high','idc':[0,1],'predcol':'dumbpredwtags','mode':'percentage','sizefile':'sizes/prostate.csv'}
NO_TAGS = 'PredictionBounds', {'margin':0,'dir':'high','idc':[0,1],'predcol':'dumbprednotags','mode':'percentage','sizefile':'sizes/prostate.csv'}
TRUE    = 'PredictionBounds', {'margin':0,'dir':'high','idc':[0,1],'predcol':'val_gt_size','mode':'percentage','sizefile':'sizes/prostate.csv'}
TAGS_10 = 'PredictionBounds', {'margin':0.1,'dir':'both','idc':[0,1],'predcol':'dumbpredwtags','mode':'percentage','sizefile':'sizes/prostate.csv'}
ENTKL   = 'EntKLProp', {'lamb_se':1,'lamb_consprior':1,'ivd':True,'weights_se':[0.1,0.9],'idc_c':[1],'curi':True,'power':1}

COMMON  = --target_dataset data/prostate_target --target_folders "$(TT_DATA)" --val_target_folders "$(TT_DATA)" \
          --grp_regex '$(G_RGX)' --network $(NET) --n_class 2 --metric_axis 1 --batch_size $(BATCH) --weight_decay 1e-4 \
          --target_losses "$(L_OR)"
SLICE   = --label_map '1-2:1' --axis 2 --patient '(Case\d+)' --normalise percentile --format nii --modality MR --val 10 $(CROP)
PRIOR   = --n_class 2 $(PRIOR_SIZE)
data/prostate_source: private SLICE += --site BMC --image IMG='$(VOLUMES)/BMC/Case??.nii.gz' --label '$(VOLUMES)/BMC/Case??_*egmentation.nii.gz'
data/prostate_target: private SLICE += --site RUNMC --image IMG='$(VOLUMES)/RUNMC/Case??.nii.gz' --label '$(VOLUMES)/RUNMC/Case??_*egmentation.nii.gz'

# -- main runs -------------------------------------------------------------------------------------------------------
# source training, labelled source slices alone
$(RD)/cesource: private OPT = --target_dataset data/prostate_source --model_weights="" $(E_SOURCE)
# lower bound: the source network on the target, no step
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap
# source-free adaptation, one prior size a class, with image-level tags
$(RD)/sfda: private OPT = $(WEIGHTS) --method sfda --target_losses "[($(ENTKL), $(TAGS), 'norm_soft_size', 1)]" \
   $(E_ADAPT) --saveim True --entmap
# its control: the same run at learning rate 0, in which only the batch-norm statistics move
$(RD)/sfda_lr0: private OPT = $(WEIGHTS) --method sfda --target_losses "[($(ENTKL), $(TAGS), 'norm_soft_size', 1)]" $(E_REFRESH)
# upper bounds: true sizes as prior; full supervision on the target
$(RD)/SFDA_TrueSize: private OPT = $(WEIGHTS) --method sfda --target_losses "[($(ENTKL), $(TRUE), 'norm_soft_size', 1)]" $(E_ADAPT)
$(RD)/fs: private OPT = --model_weights="" $(E_SOURCE)

# -- ablations -------------------------------------------------------------------------------------------------------
# one of the two terms alone
$(RD)/entropy: private OPT = $(WEIGHTS) --method sfda --target_losses "[('SelfEntropy', {'weights':[0.1,0.9]}, 1)]" $(E_ADAPT)
$(RD)/klprop: private OPT = $(WEIGHTS) --method sfda --target_losses "[('EntKLProp', {'lamb_se':0}, $(TAGS), 'norm_soft_size', 1)]" $(E_ADAPT)
# the same prior for every slice
$(RD)/sfda_notags: private OPT = $(WEIGHTS) --method sfda --target_losses "[($(ENTKL), $(NO_TAGS), 'norm_soft_size', 1)]" $(E_ADAPT)
# KL(prior | predicted), the direction of AdaEnt (Bateson et al. 2020)
$(RD)/adaent: private OPT = $(WEIGHTS) --method sfda $(E_ADAPT) \
   --target_losses "[('SelfEntropy', {'weights':[0.1,0.9]}, 1), ('KLPropInv', {}, $(TAGS), 'norm_soft_size', 1)]"
# a quadratic penalty outside 10 % of the prior instead of the KL (constrained domain adaptation)
$(RD)/cda: private OPT = $(WEIGHTS) --method sfda $(E_ADAPT) \
   --target_losses "[('SelfEntropy', {'weights':[0.1,0.9]}, 1), ('NaivePenalty', {'idc':[1]}, $(TAGS_10), 'soft_size', 2.5)]"
# entropy over batch-norm scale and shift alone (TENT); batch-norm statistics alone; entropy and a uniform prior (SHOT-IM)
$(RD)/tent: private OPT = $(WEIGHTS) --method sfda --trainable bn --target_losses "[('SelfEntropy', {}, 1)]" $(E_ADAPT)
$(RD)/bnrefresh: private OPT = $(WEIGHTS) --method sfda --trainable none --bn_stats refresh --target_losses "[('SelfEntropy', {}, 1)]" --n_epoch 1
$(RD)/shot: private OPT = $(WEIGHTS) --method sfda --trainable features $(E_ADAPT) \
   --target_losses "[('EntKLProp', {}, 'ConstantBounds', {'values':'uniform'}, 'soft_size', 1)]"
