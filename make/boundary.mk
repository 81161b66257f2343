# The makefiles of the boundary loss include this file: each of their runs trains from random weights on one set. Such a
# makefile first says what it is about (see begin.mk), then includes this file, then states its facts:
#   B_DATA      the folders of every run: the image, and the ground truth that the metrics look at
#   G_RGX       how a slice's name is read
#   N_CLASS     the number of classes, with the background
#   MODALITIES  the channels of an image, where there are several
#   MOVING      weights.png, where a scheduler moves the weights of the losses: a picture of them
# A makefile changes a setting by writing one of the same name after including this file.
# lesions.mk has read begin.mk before
ifneq ($(origin BEGUN),file)
include make/begin.mk
endif

# PARITY=1 trains as published, faults included. Distance maps have their zero off the border and are cut to whole numbers. The
# Dice and the generalised Dice have no gradient on slices that lack a class. The Hausdorff loss sees only distances inside the
# shapes. The learning rate halves at every multiple of (best epoch + 20), epoch 0 first of all. ENet is the published one.
PARITY ?=
ABSENT  = $(if $(PARITY),'legacy': True$(comma))
INNER   = $(if $(PARITY),'inner': True$(comma))

# -- settings: those of the small phantom, and as published ---------------------------------------------------------------
ifeq ($(PHANTOM),small)
LEARN ?= --n_epoch 25 --l_rate 2e-3 --lr_decay 0.5 --lr_decay_epoch 10
else
LEARN ?= --l_rate 5e-4
endif
SCHEDULE ?= --schedule
MODALITIES ?=
COMMON ?= --target_dataset $(DATA) --grp_regex '$(G_RGX)' --network $(NET) --n_class $(N_CLASS) --metric_axis $(FOREGROUND) \
          $(addprefix --modalities ,$(MODALITIES)) --batch_size 8 --n_epoch 100 --betas 0.9 0.99 $(LEARN) $(if $(PARITY),$(SCHEDULE)) \
          --saveim 1 --csv metrics.csv

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
# the folders of a run: those of every run, then one a loss
folders = --folders "$(B_DATA)+[$(strip $(1))]"

# -- pictures: each is a target of its own ----------------------------------------------------------------------------
MOVING ?=
PLOTS  ?= $(addprefix $(RD)/,val_dice.png val_3d_dsc.png val_3d_hd95.png tra_loss.png $(MOVING) \
            val_3d_dsc_boxplot.png val_3d_hd95_boxplot.png val_3d_dsc_hist.png)
$(RD)/val_3d_dsc.png: $$(DONE)
	$(RENEW) $(CC) plot.py curves --runs $(MAIN) --column val_dice_3d --out $@
$(RD)/tra_loss.png: $$(DONE)
	$(RENEW) $(CC) plot.py curves --runs $(MAIN) --column tra_loss_tot --out $@
$(RD)/weights.png: $$(DONE)
	$(RENEW) $(CC) plot.py weights --runs $(MAIN) --out $@
$(RD)/val_3d_dsc_boxplot.png: $$(DONE)
	$(RENEW) $(CC) plot.py boxes --runs $(MAIN) --score dice --out $@
$(RD)/val_3d_hd95_boxplot.png: $$(DONE)
	$(RENEW) $(CC) plot.py boxes --runs $(MAIN) --score hd95 --out $@
$(RD)/val_3d_dsc_hist.png: $$(DONE)
	$(RENEW) $(CC) plot.py histogram --runs $(MAIN) --score dice --out $@

# A score over time, out of the masks that the runs saved, without training: val_3d_nsd.png and the like.
OVER_TIME := $(addprefix $(RD)/val_3d_,hd95.png assd.png masd.png nsd.png)
$(OVER_TIME): $$(addsuffix /$$(basename $$(@F)).npy,$$(MAIN))
	$(RENEW) $(CC) plot.py curves --runs $(MAIN) --array $(basename $(@F)).npy --out $@
$(RD)/%.npy: $$(@D)/last.pkl
	$(RENEW) $(CC) score_masks.py --run $(@D) --score $(patsubst val_3d_%.npy,%,$(@F)) --jobs $(JOBS) --out $@
