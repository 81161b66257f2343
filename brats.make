# Bayesian pseudo labels, in 3D (Xu et al. 2022 and 2024): brain tumours, Task01 of the Medical Segmentation Decathlon, four MR
# sequences; the whole tumour. The first eight volumes are labelled; the official test set, which has no labels, is learnt
# from by the network's own; the other training volumes validate.
#
#   make -f brats.make                           the main runs, pictures, report, archive
#   make -f brats.make ablations                 other priors and posteriors of the threshold, and one table of all
#   make -f brats.make sweep                     IoU by the size of the window that evaluation slides, as published
#   make -f brats.make segpl_vi SEED=1 RD=results/brats-seed1        one run, with another seed
#   make -f brats.make PARITY=1 SEED=1024 RD=results/brats-parity    as published, faults included
#   make -f brats.make help
#
# Data: data/brats if it is there; else cut from data/brats_volumes; else that is unpacked from data/Task01_BrainTumour.tar,
# checked against data/brats.lineage; else it is a phantom.
SET     := brats
VOLUMES := data/brats_volumes
LINEAGE := data/brats.lineage
DATA    := data/brats
include make/begin.mk
TRN      = sup segpl segpl_vi
PRIOR_MEANS = 0.4 0.5 0.6 0.7 0.8 0.9
ABL      = $(addprefix prior_,$(PRIOR_MEANS)) confidence confidence_early confidence_late random_threshold from_start longer through
# the windows of the published table, a quarter of them on the small phantom
WINDOWS  = $(if $(filter small,$(PHANTOM)),8 16 24 32,32 64 96 128)
INF      = $(foreach run,sup segpl_vi,$(foreach n,$(WINDOWS),$(run)_window$(n)))
PLOTS    = $(addprefix $(RD)/,val_dice_3d.png boxes.png tra_loss_tot.png threshold.png)
REPORT_WITH = --iou --lower sup --upper none --reference sup

# -- facts ------------------------------------------------------------------------------------------------------------
CUT     = -m preprocess.volume_set
LABELS  = tumour
TASK    = $(VOLUMES)/Task01_BrainTumour
SLICE   = --image '$(TASK)/imagesTr/BRATS_*.nii.gz' --label '$(TASK)/labelsTr/BRATS_*.nii.gz' \
          --unlabelled '$(TASK)/imagesTs/BRATS_*.nii.gz' --patient '(BRATS_\d+)' --orient RAS --axes 2 1 0 --label_map 1-3:1 \
          --normalise foreground $(SPLIT)
COMMON  = --target_dataset $(DATA) --target_folders "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]" \
          --grp_regex '(BRATS_\d+)' --network $(NET) --n_class 2 --crop $(WINDOW) --overlap $(OVERLAP) --method pseudo_label \
          --batch_size 2 --target_losses "$(HALVES)" --optimiser adamw --l_rate 1e-3 --weight_decay 5e-4 \
          --lr_rule poly --poly_power 0.99 $(if $(PARITY),--skip_empty 0.005) --steps $(STEPS) --n_epoch $(EPOCHS) --eval_every $(EVERY)
# half soft Dice, half cross-entropy, of labels and pseudo labels alike
HALVES  = [('DiceLoss', {'idc': [1], 'smooth': 1}, 0.5), ('CrossEntropy', {}, 0.5)]

# -- settings: on the small phantom, and as published, 25,000 steps ------------------------------------------------------
# PARITY=1 trains as published, faults included: labels and pseudo labels with less than 0.5 % of tumour teach nothing; the
# gradient of the threshold goes into the network, which unlearns to segment before it comes back; the threshold is what was
# drawn, however far from its prior. (The published seed is 1024.)
PARITY  ?=
AS_PUBLISHED = --threshold_moves network --threshold_draw published
ifeq ($(PHANTOM),small)
# A coarse tumour is border in good part: a threshold above one half takes some of it at each step, until none is left.
NET     = UNet3D:width=6,depth=2,binary=True
SPLIT   = --train 2 --val 8
WINDOW  = 16 32 32
OVERLAP = 0.25
STEPS   = 50
EPOCHS  = 40
EVERY   = 20
BATCH_U = 2
MEAN    = 0.5
SD      = 0.1
else
NET     = UNet3D:width=10,depth=3,binary=True
SPLIT   = --train 8 --val $(if $(PHANTOM),16,476)
WINDOW  = 32 128 128
OVERLAP = 0.5
STEPS   = 250
EPOCHS  = 100
EVERY   = 20
BATCH_U = 1
MEAN    = 0.7
SD      = 0.15
endif
DIMWIT  = UNet3D:width=2,depth=1

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
# (exp1 to exp15: names of the published settings)
# labels of the network's own, where its probability is above a threshold, learnt from once it has learnt the others
unlabelled = --batch_u $(1) --warmup_start $(2) --warmup $(3)
# the threshold is drawn from a posterior, which is held to a prior: its mean, its standard deviation
learnt     = --threshold learnt --prior_mu $(1) --prior_sd $(2) $(if $(PARITY),$(AS_PUBLISHED))

# -- runs -------------------------------------------------------------------------------------------------------------
# the labelled volumes alone (exp1)
$(RD)/sup: private OPT = --batch_u 0
# pseudo labels at a threshold of one half (SegPL); at a learnt one (SegPL-VI)
$(RD)/segpl: private OPT = $(call unlabelled,$(BATCH_U),0.4,0.1) --threshold fixed
$(RD)/segpl_vi: private OPT = $(call unlabelled,$(BATCH_U),0.4,0.1) $(call learnt,$(MEAN),$(SD))
# other means of the prior (exp2 to exp6, exp9)
$(RD)/prior_%: private OPT = $(call unlabelled,4,0.4,0.1) $(call learnt,$(subst prior_,,$(@F)),0.1)
# the network's confidence as prior, from the start, after 0.4 and after 0.7 of the training (exp11 to exp13)
$(RD)/confidence_early: private OPT = $(call unlabelled,4,0,0.1) $(call learnt,0.9,0.1) --pri_mu 1 --pri_sd 1
$(RD)/confidence: private OPT = $(call unlabelled,4,0.4,0.1) $(call learnt,0.9,0.1) --pri_mu 1 --pri_sd 1
$(RD)/confidence_late: private OPT = $(call unlabelled,4,0.7,0.1) $(call learnt,0.9,0.1) --pri_mu 1 --pri_sd 1
# a threshold drawn from the prior, without learning
$(RD)/random_threshold: private OPT = $(call unlabelled,4,0.4,0.1) $(call learnt,0.9,0.1) --post_mu 2 --post_sd 2
# from the start (exp10); twice as long (exp15)
$(RD)/from_start: private OPT = $(call unlabelled,4,0,0.1) $(call learnt,0.9,0.1)
$(RD)/longer: private OPT = $(call unlabelled,4,0.02,0.01) $(call learnt,0.9,0.1) --n_epoch $(shell expr 2 \* $(EPOCHS))
# the segmentation loss teaches the threshold too, straight through the comparison (not published)
$(RD)/through: private OPT = $(call unlabelled,$(BATCH_U),0.4,0.1) $(call learnt,$(MEAN),$(SD)) --straight_through

# -- the published table: the size of the window --------------------------------------------------------------------------
trained = $(RD)/$(firstword $(subst _window, ,$(@F)))/last.pkl
$(RD)/sup_window% $(RD)/segpl_vi_window%: private OPT = --batch_u 0 --mode makeim --model_weights $(trained) \
   --crop $(foreach axis,1 2 3,$(lastword $(subst _window, ,$(@F))))
.PHONY: sweep
sweep: $(RD)/sweep.txt                                          ## IoU by the size of the window that evaluation slides
$(RD)/sweep.txt: $$(addprefix $$(RD)/,$$(addsuffix /last.pkl,$$(INF)))
	$(RENEW) $(CC) report.py --runs $(addprefix $(RD)/,$(INF)) --iou --out $(basename $@)

# -- pictures -----------------------------------------------------------------------------------------------------------
$(RD)/threshold.png: $(RD)/segpl_vi/last.pkl
	$(RENEW) $(CC) plot.py threshold --runs $(<D) --out $@

# -- an experiment of your own: its name in a list and its line; without the #, `make -f brats.make segpl_strict` trains it -----
# ABL += segpl_strict
# $(RD)/segpl_strict: private OPT = $(call unlabelled,$(BATCH_U),0.4,0.1) --threshold fixed --threshold_value 0.8

include make/rules.mk
