# The runs of every makefile that adapts from a source site to a target site, their settings and their pictures. Such a
# makefile includes this file after it said what it is about (see begin.mk), and then states its facts:
#   TT_DATA  S_DATA   the folders of the target, and of the source where they are others
#   G_RGX    N_CLASS  how a slice's name is read; the number of classes, with the background
#   NU                the weights of the classes in the entropy, where they are more than two
#   MAPS              the folder of the boundary loss's distance maps, where the baselines are wanted
#   PRIOR             how large an organ is, as flags of preprocess.size_priors
# A makefile changes a setting or a line by writing one of the same name after including this file.
include make/begin.mk

TRN ?= cesource noadap sfda_lr0 sfda SFDA_TrueSize fs
ABL ?= entropy klprop sfda_notags sfda_mean sfda_margin sfda_reestimate sfda_em sfda_anchor sfda_wavg adaent cda \
       tent ttas sar eata deyo cotta rotta bnrefresh bnmix shot srcmatch proto consist mean_teacher upl denoised cpr \
       $(AT_RATES) noadap_dice noadap_onsource sfda_onsource sfda_back chosen
BAS ?= $(if $(MAPS),adapt adapt_multi cesource_boundary fs_gdl fs_boundary)
INF ?= cesourceim

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
# what a loss may know of the sizes: a column of a csv, exactly or within a margin
prior_from   = 'PredictionBounds', {'margin':0,'dir':'high','mode':'percentage','predcol':'$(strip $(2))','sizefile':'$(strip $(1))'}
prior_within = 'PredictionBounds', {'margin':$(strip $(1)),'dir':'both','mode':'percentage','predcol':'$(strip $(2))','sizefile':'$(SIZES).csv'}
prior        = $(call prior_from,$(SIZES).csv,$(1))
# the tables of sizes of the target and, behind `_source`, of the source
SIZES     ?= sizes/$(SET)
FORE      ?= $(call commas,$(FOREGROUND))
L_OR      ?= [('CrossEntropy', {'idc': $(call commas,0 $(FOREGROUND)), 'weights':$(call commas,1 $(FOREGROUND:%=1))}, None, None, None, 1)]
# the column of $(SIZES).csv that sfda reads, and how it measures a predicted size
COLUMN    ?= dumbpredwtags
SIZE_OF   ?= 'norm_soft_size'
NU        ?= [0.1,0.9]
ENTKL     ?= 'EntKLProp', {'lamb_se':1, 'lamb_consprior':1, 'weights_se':$(NU), 'power':1}
sfda_loss  = --target_losses "[($(ENTKL), $(call prior,$(1)), $(SIZE_OF), 1)]"

# -- what all runs share ------------------------------------------------------------------------------------------------
S_DATA ?= $(TT_DATA)
MAPS   ?=
TARGET ?= --target_dataset $(lastword $(DATA)) --target_folders "$(TT_DATA)" --val_target_folders "$(TT_DATA)"
SOURCE ?= --target_dataset $(firstword $(DATA)) --target_folders "$(S_DATA)" --val_target_folders "$(S_DATA)"
COMMON ?= $(TARGET) --grp_regex '$(G_RGX)' --network $(NET) --n_class $(N_CLASS) --metric_axis $(FOREGROUND) \
          --batch_size $(BATCH) $(TRAINED) --weight_decay 1e-4 --target_losses "$(L_OR)"

# -- settings: those that show the point on the small phantom, and as published -------------------------------------------
ifeq ($(PHANTOM),small)
BATCH     ?= 8
LEARN     ?= --n_epoch 25 --l_rate 2e-3 --lr_decay 0.5 --lr_decay_epoch 10
ADAPT     ?= --n_epoch 20 --l_rate 2e-4 --lr_decay 0.7 --lr_decay_epoch 5
ADVERSARY ?= --n_epoch 20 --l_rate 5e-4 --lr_rule poly --d_width 16 --d_l_rate 1e-3
LAMBDAS   ?= 1e-2 2e-3
else
BATCH     ?= 22
LEARN     ?= --lr_decay 1
ADAPT     ?= --l_rate 1e-6
ADVERSARY ?= --l_rate 1e-4 --lr_rule poly
LAMBDAS   ?= 1e-3 2e-4
endif
TRAINED   ?= --n_epoch 150 --l_rate 5e-4 --lr_decay 0.9 $(LATE)
# PARITY=1: as published where we do otherwise; the learning rate falls an epoch later
PARITY    ?=
LATE      ?= $(if $(PARITY),--lr_rule late)

# how often an adaptation keeps its network, of which it chooses one at the end without labels; as published it does not: KEEP=
KEEP      ?= $(if $(PARITY),,--keep_every 5)

# Nobody has to guess a learning rate: RATES='1e-5 1e-4' are those of short adaptations beside sfda, the runs sfda_at_1e-5 and
# sfda_at_1e-4 of so many epochs as PROBE says. Each chooses an epoch, and `chosen` takes the best network of all.
RATES    ?=
PROBE    ?= --n_epoch $(if $(SMALL),10,20)
AT_RATES  = $(RATES:%=sfda_at_%)

# -- the source network -----------------------------------------------------------------------------------------------
# FROM=best (the default): the other runs start from the epoch of cesource that scores best on the validation images of the
# source, whose labels are there; the last epoch of a training may be a bad one. FROM=last: from its last epoch, as published.
# That is the default with PARITY=1, and where source and target are one set of the same patients: there the labels that
# would choose are those that the target is scored with.
FROM   ?= $(if $(or $(filter 1,$(words $(DATA))),$(PARITY)),last,best)
CHOSEN  = $(if $(filter last,$(FROM)),last.pkl,$(if $(filter best,$(FROM)),best_3d.pkl,$(error FROM is best or last, not '$(FROM)')))
# SOURCE_RUN: which run they start from, such as cesource_slaug (see transfer.mk); it lies in the folder SOURCE_RD
SOURCE_RUN ?= cesource
SOURCE_RD  ?= $(RD)
M_WEIGHTS_ul = $(SOURCE_RD)/$(if $(filter $(SOURCE_RUN),cesource $(notdir $(RUNS) $(wildcard $(RD)/$(SOURCE_RUN)))),$(SOURCE_RUN),\
  $(error SOURCE_RUN is the name of a run to start from, as cesource_slaug; it is '$(SOURCE_RUN)'))/$(CHOSEN)
WEIGHTS = --model_weights $(M_WEIGHTS_ul)
# Source-free adaptation starts from it too, on grey levels that may be brought to the source's. MATCH=auto (the default) decides
# by the source network and without a label whether they are, and whether bright and dark change places (see srcmatch); 1, -1
# and 0 say so. As published they stay as they are.
MATCH  ?= $(if $(PARITY),,auto)
START   = --model_weights $(START_FROM) $(MATCH:%=--match_source %)
# with ALSO, from the best of several source networks, as far as no label tells (see transfer.mk)
START_FROM = $(if $(ALSO),$(RD)/start/chosen.pkl,$(M_WEIGHTS_ul))
# one that lies in another folder was trained by another make
ifneq ($(SOURCE_RD),$(RD))
$(addprefix $(SOURCE_RD)/$(SOURCE_RUN)/,last.pkl best_3d.pkl): ;
endif

# -- the main runs ------------------------------------------------------------------------------------------------------
# the source network: cross-entropy on the labelled source
$(RD)/cesource: private OPT = $(SOURCE) --model_weights="" $(LEARN)
# lower bound: the source network on the target as it is
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap --saveim True --entmap
# source-free adaptation: one prior size, by default switched by image-level tags. --saveim False, and no --entmap, to speed it up
$(RD)/sfda: private OPT = $(START) --method sfda $(ADAPT) $(KEEP) --saveim True --entmap $(call sfda_loss,$(COLUMN))
# its control, the same at learning rate 0: what re-estimating the batch-norm statistics does on its own
$(RD)/sfda_lr0: private OPT = $(START) --method sfda $(ADAPT) --l_rate 0 $(call sfda_loss,$(COLUMN))
# upper bounds: the true sizes as prior; full supervision on the target
$(RD)/SFDA_TrueSize: private OPT = $(START) --method sfda $(ADAPT) $(call sfda_loss,val_gt_size)
$(RD)/fs: private OPT = --model_weights="" $(LEARN) --saveim True
# inference: the masks of a trained network
$(RD)/cesourceim: private OPT = $(WEIGHTS) --mode makeim --entmap
include make/ablations.mk
include make/transfer.mk
include make/baselines.mk
include make/sensitivity.mk
include make/cross.mk

# -- sizes: a csv that is there is never overwritten; a missing one is made from the slices --------------------------------
PRIORS ?= $(SIZES).csv
$(SIZES).csv: | $$(lastword $$(DATA)) $$(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors make --data $(lastword $(DATA)) --out $@ $(PRIOR)
$(SIZES)_source.csv: | $$(firstword $$(DATA)) $$(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors make --data $(firstword $(DATA)) --out $@ $(PRIOR)

# -- stress test: on the images of the source, or of the target (ON=target); the source network is that which others start from
STRESS_NETWORK ?= $(RD)/$(STRESSED)/$(if $(filter cesource $(filter cesource_%,$(TRANSFER)),$(STRESSED)),$(CHOSEN),last.pkl)
STRESS_SET     ?= $(if $(filter-out source target,$(ON)),$(error ON is source or target, not '$(ON)'))$(if $(filter target,$(ON)),$(TARGET),$(SOURCE))
STRESS_SUFFIX  ?= $(if $(filter target,$(ON)),_ontarget)

# -- pictures ---------------------------------------------------------------------------------------------------------
# that of sfda's choice without labels, where sfda is or will be made by the line above, and not by an older one without KEEP
chooses    = $(if $(filter sfda,$(LINES)),,$(if $(wildcard $(RD)/sfda/last.pkl),$(wildcard $(RD)/sfda/selection.csv),$(KEEP)))
SELECTION ?= $(if $(chooses),$(RD)/selection.png)
PLOTS ?= $(addprefix $(RD)/,val_dice_3d.png boxes.png panel.png sizes.png losses.png risk.png sfda.gif) $(SELECTION)
PANEL ?= noadap sfda fs
# whose masks it shows: of the chosen networks, or --which last
PANEL_OF ?=
$(RD)/panel.png: $$(DONE)
	$(RENEW) $(CC) plot.py panel --runs $(addprefix $(RD)/,$(PANEL)) $(PANEL_OF) --out $@
$(RD)/sizes.png: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py sizes --run $(<D) --out $@
$(RD)/losses.png: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py losses --run $(<D) --out $@
$(RD)/risk.png: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py risk --run $(<D) --out $@
$(RD)/selection.png: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py selection --run $(<D) --out $@
$(RD)/sfda.gif: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py gif --run $(<D) --out $@
