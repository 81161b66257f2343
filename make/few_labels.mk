# Few labels (Chaitanya et al., NeurIPS 2020): contrastive pre-training on every image of a set, without labels; then training
# on the labels of LABELLED of its volumes, DRAWS times. The runs are chained by their weights: global -> local -> contrast_*.
# A makefile includes this file after that of its kind (adaptation.mk, boundary.mk or begin.mk), and says
#   LABELLED   the numbers of labelled volumes        KINDS, DRAWS    which runs, and how often
#   FEW_DATA   the folder of slices, in which every training image may be looked at
#   FEW_SLICE  how they are cut
#   FEW_FACTS  what every run has in common: folders, regular expression, classes
# A run <kind>_<n>_<d> sees the labels of n volumes, the d-th draw of them. KINDS says what it starts from: random weights, the
# weights of both pre-trainings (contrast, or mixup with mixed images), or those of the first pre-training (encoder).
PRETRAIN += global local

# -- settings: those that show the point on the small phantom, and as published ---------------------------------------------
ifeq ($(PHANTOM),small)
FEW_NET     ?= PooledUNet:nG=8,bn_decay=0.9
PRE_LEARN   ?= --n_epoch 20 --steps 50
LOCAL_LEARN ?= --n_epoch 8 --steps 25
FEW_LEARN   ?= --n_epoch 12 --steps 25 --eval_every 4
N4          ?= --n4 --n4_shrink 4
else
FEW_NET     ?= PooledUNet
PRE_LEARN   ?= --n_epoch 200 --steps 50
LOCAL_LEARN ?= $(PRE_LEARN)
FEW_LEARN   ?= $(PRE_LEARN)
N4          ?= --n4
endif
# what is matched with what: GR, GD- or GD; LR or LD (see contrastive_losses.py)
GLOBAL    ?= GD
LOCAL     ?= LR
# as published: an image is rotated, scaled, flipped, turned or left as it is; half of them are bent; contrast or brightness changes
FEW_AUG   ?= {'flip': True, 'rotate': 15, 'scale': 0.05, 'turn': 45, 'one_of': True, 'elastic': 5, 'elastic_points': 3, \
              'elastic_share': 0.5, 'contrast': 0, 'gamma': 0, 'spread': 0.2, 'offset': 0.1, 'either': True}
N_PARTS   ?= 4
# G^D pairs two volumes' slices, so that its published batch of 12 is one of 24 here
GD_BATCH  ?= 24
PRE_BATCH ?= 12
FEW_BATCH ?= 20

few_runs  = $(addprefix $(RD)/,$(FEW))
few_kinds = $(addprefix $(RD)/,random_% contrast_% mixup_% encoder_%)
few_named = $(addprefix $(RD)/,all_labels global local)
few_common = --target_dataset $(FEW_DATA) $(FEW_FACTS) --network $(FEW_NET) --l_rate 1e-3 \
   --target_losses "[('DiceLoss', {'legacy': True}, 1)]" --saveim 1000
$(few_kinds): private COMMON = $(few_common)
$(few_named): private COMMON = $(few_common)
$(few_kinds): private DIMWIT = PooledUNet:nG=2
$(few_named): private DIMWIT = PooledUNet:nG=2
$(FEW_DATA): private SLICE = $(FEW_SLICE)

# -- pre-training: no label is read -----------------------------------------------------------------------------------------
$(RD)/global: private OPT = --method contrastive_global --strategy $(GLOBAL) --n_parts $(N_PARTS) \
   --batch_size $(if $(filter GD,$(GLOBAL)),$(GD_BATCH),$(PRE_BATCH)) $(PRE_LEARN)
$(RD)/local: private OPT = --method contrastive_local --strategy $(LOCAL) --local_blocks 3 --n_parts $(N_PARTS) \
   --batch_size $(PRE_BATCH) $(LOCAL_LEARN) --model_weights $(RD)/global/last.pkl --load_blocks 0

# -- training on the labels of n volumes, from random weights, from the pre-trained, and those with mixup ----------------------
few  = --augment --augmentation "$(FEW_AUG)" --batch_size $(FEW_BATCH) $(FEW_LEARN)
n_of = --n_labelled $(word 2,$(subst _, ,$(@F))) --draw $(word 3,$(subst _, ,$(@F)))
FROM_LOCAL = --model_weights $(RD)/local/last.pkl --load_blocks 3
$(RD)/random_%: private OPT = $(few) $(n_of)
$(RD)/contrast_%: private OPT = $(few) $(n_of) $(FROM_LOCAL)
$(RD)/mixup_%: private OPT = $(few) $(n_of) $(FROM_LOCAL) --method mixup
$(RD)/encoder_%: private OPT = $(few) $(n_of) --model_weights $(RD)/global/last.pkl --load_blocks 0
# the benchmark: every label
$(RD)/all_labels: private OPT = $(few)

# -- one table over the draws, one picture ----------------------------------------------------------------------------------
$(RD)/few_labels.txt: $$(addsuffix /last.pkl,$$(few_runs))
	$(RENEW) $(CC) report.py --runs $(few_runs) --draws '_\d+$$' --out $(basename $@)
$(RD)/few_labels.png: $$(addsuffix /last.pkl,$$(few_runs))
	$(RENEW) $(CC) plot.py draws --runs $(few_runs) --draws '_\d+$$' --out $@
few_labels: $(RD)/few_labels.png

# Dice at the resolution of the volumes, which the slices were resampled from: out of the saved masks
$(RD)/%/val_3d_native_dice.npy: $(RD)/%/last.pkl
	$(RENEW) $(CC) score_masks.py --run $(@D) --score dice --native --jobs $(JOBS) --out $@
.PHONY: native
native: $$(addsuffix /val_3d_native_dice.npy,$$(few_runs))      ## Dice of the last masks at the resolution of the volumes
