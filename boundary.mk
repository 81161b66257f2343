# The rules of the makefiles of the boundary loss: every run trains from random weights on one set.
# Where a scheduler moves the weights of the losses, MOVING := weights.png draws them too.
include venv.mk
PLOTS = $(addprefix $(RD)/,val_dice.png val_3d_dsc.png val_3d_hd95.png tra_loss.png $(MOVING) \
          val_3d_dsc_boxplot.png val_3d_hd95_boxplot.png val_3d_dsc_hist.png)
MOVING ?=
include rules.mk

# PARITY=1 trains as published, faults included: distance maps whose zero is off the border, cut to whole numbers; a Dice and
# a generalised Dice without a gradient on slices that lack a class; a Hausdorff loss of the distances inside of the shapes
# alone; a learning rate that halves at every multiple of (best epoch + 20), epoch 0 first of all; the published ENet
PARITY :=
$(RUNS): $(DATA)

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
# the folders of a run: image, the metrics' ground truth, then one a loss
folders = --folders "$(B_DATA)+[$(1)]"

# -- pictures: each is a target of its own -----------------------------------------------------------------------------
$(RD)/val_3d_dsc.png: $(DONE)
	$(RENEW) $(CC) plot.py curves --runs $(MAIN) --column val_dice_3d --out $@
$(RD)/tra_loss.png: $(DONE)
	$(RENEW) $(CC) plot.py curves --runs $(MAIN) --column tra_loss_tot --out $@
$(RD)/weights.png: $(DONE)
	$(RENEW) $(CC) plot.py weights --runs $(MAIN) --out $@
$(RD)/val_3d_dsc_boxplot.png: $(DONE)
	$(RENEW) $(CC) plot.py boxes --runs $(MAIN) --score dice --out $@
$(RD)/val_3d_hd95_boxplot.png: $(DONE)
	$(RENEW) $(CC) plot.py boxes --runs $(MAIN) --score hd95 --out $@
$(RD)/val_3d_dsc_hist.png: $(DONE)
	$(RENEW) $(CC) plot.py histogram --runs $(MAIN) --score dice --out $@

# A metric over time, out of the masks that the runs saved: another one is another pair of these rules, and no training.
OVER_TIME := hd95 assd masd nsd
define over_time
$(addsuffix /val_3d_$(1).npy,$(RUNS)): %/val_3d_$(1).npy: %/last.pkl
	$$(RENEW) $$(CC) score_masks.py --run $$* --score $(1) --jobs $$(JOBS) --out $$@
$(RD)/val_3d_$(1).png: $(addsuffix /val_3d_$(1).npy,$(MAIN))
	$$(RENEW) $$(CC) plot.py curves --runs $$(MAIN) --array val_3d_$(1).npy --out $$@
endef
$(foreach score,$(OVER_TIME),$(eval $(call over_time,$(score))))
