# Heart, MR to CT (Bateson et al. 2022): myocardium, left atrium, left ventricle, ascending aorta on 256 x 256 coronal slices.
#
#   make -f whs.make | make -f whs.make ablations | make -f whs.make results/whs/sfda | make -f whs.make help
#   make -f whs.make few_labels                  MR alone, seven structures: the labels of 1, 2 and 8 volumes, random weights
#                                                against pre-trained ones (Chaitanya et al. 2020)
#
# Data: data/mr and data/ct if they are there; else cut from data/whs_volumes (MM-WHS: mr_train, ct_train); else that is
# unpacked from data/whs.zip (see data/whs.lineage); else it is a phantom. To add an experiment: its name in TRN or ABL, and
# an OPT line below.
SET     := whs
VOLUMES := data/whs_volumes
LINEAGE := data/whs.lineage
DATA    := data/mr data/ct
TRN     := cesource noadap sfda_lr0 sfda SFDA_TrueSize fs
ABL     := entropy klprop sfda_notags sfda_mean adaent cda tent bnrefresh shot noadap_onsource sfda_onsource
BAS     := adapt adapt_multi cesource_boundary fs_gdl fs_boundary
INF     := cesourceim
SCRATCH := cesource fs cesource_boundary fs_gdl fs_boundary
LABELLED := 1 2 8
FEW_DATA := data/mr_few
include adaptation.mk
include few_labels.mk

# -- facts ------------------------------------------------------------------------------------------------------------
G_RGX   = (\d+)_(\d+)
TT_DATA = [('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]
S_DATA  = $(TT_DATA)
MAPS    = ('GT', dist_map_transform, False)
SOURCE  = --target_dataset data/mr
COMMON  = --target_dataset data/ct --target_folders "$(TT_DATA)" --val_target_folders "$(TT_DATA)" \
          --grp_regex '$(G_RGX)' --network $(NET) --n_class 5 --metric_axis 1 2 3 4 --batch_size $(BATCH) \
          --n_epoch 150 --l_rate 5e-4 --lr_decay 0.9 $(LATE) --weight_decay 1e-4 --target_losses "$(L_OR)"
CUT     = -m preprocess.archives.mmwhs --volumes $(VOLUMES)
SLICE   = --normalise percentile --format nii --val $(N_VAL) $(CROP)
data/mr: private SLICE += --modality MR
data/ct: private SLICE += --modality CT
PRIOR   = --n_class 5 $(PRIOR_SIZE)
# few labels: myocardium, left atrium and ventricle, right atrium and ventricle, ascending aorta, pulmonary artery; the bias
# field fitted to every fourth voxel along each axis, which on a whole heart saves hours
FEW_SLICE = --modality MR --structures 7 --format nii --n4 --n4_shrink 4 --normalise percentile --no_clip $(FEW_CROP)
FEW_FACTS = --target_folders "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]" --grp_regex '$(G_RGX)' \
            --n_class 8

# -- settings: as published, and what shows the point on the small phantom --------------------------------------------
ifneq ($(PHANTOM),small)
BATCH      = 22
N_VAL      = 4
# (the published crop is centred on the heart, by its labels: --centre labels)
CROP       = --plane coronal --size 256 256
PRIOR_SIZE = --constant 4428 4996 4487 3706
LEARN      = --lr_decay 1
ADAPT      = --l_rate 1e-6 --lr_decay 0.7 --weight_decay 1e-3
ADVERSARY  = --l_rate 1e-4 --lr_rule poly
LAMBDAS    = 1e-3 2e-4
FEW_CROP   = --orient LAS --val 10 --spacing 1.5 1.5 --size 160 160
else
NET        = UNet:nG=8
BATCH      = 8
N_VAL      = 3
CROP       = --orient LAS
PRIOR_SIZE = --constant_mm2 1600 1300 1200 1000
LEARN      = --n_epoch 40 --l_rate 3e-3 --lr_decay 0.5 --lr_decay_epoch 15
ADAPT      = --n_epoch 20 --l_rate 2e-4 --lr_decay 0.7 --lr_decay_epoch 5
ADVERSARY  = --n_epoch 20 --l_rate 5e-4 --lr_rule poly --d_width 16 --d_l_rate 1e-3
LAMBDAS    = 1e-2 2e-3
FEW_CROP   = --orient LAS --val 2
endif

# -- losses -----------------------------------------------------------------------------------------------------------
L_OR  = [('CrossEntropy', {'idc': [0,1,2,3,4], 'weights':[1,1,1,1,1]}, None, None, None, 1)]
NU    = [0.02,0.27,0.18,0.21,0.32]
FORE  = [1,2,3,4]
ENTKL = 'EntKLProp', {'lamb_se':1, 'lamb_consprior':1, 'weights_se':$(NU), 'power':1}

# -- runs -------------------------------------------------------------------------------------------------------------
# the source network: cross-entropy on the labelled source
$(RD)/cesource: private OPT = $(SOURCE) --model_weights="" $(LEARN)
# lower bound: the source network on the target as it is
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap --saveim True --entmap
# source-free adaptation: one prior size a class, switched by image-level tags
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
