# The rules of the makefiles that adapt from a source site to a target site. Beside what rules.mk asks for, they say
#   SCRATCH  the runs that start from random weights; the others start from those of cesource
# A run whose name is cesource…, or ends in _onsource, trains on the source; adapt… reads both sites.
#
# FROM=best (the default): the others start from the epoch of cesource that scores best on the validation images of the
# source, whose labels are there; the last epoch of a training may be a bad one. FROM=last: from its last epoch, as published.
# That is the default with PARITY=1, and where source and target are one set of the same patients: there the labels that
# would choose are those that the target is scored with.

include venv.mk

# -- phrases of OPT lines ---------------------------------------------------------------------------------------------
# what a loss may know of the sizes: a column of a csv, exactly or within a margin
prior_from   = 'PredictionBounds', {'margin':0,'dir':'high','mode':'percentage','predcol':'$(2)','sizefile':'$(1)'}
prior_within = 'PredictionBounds', {'margin':$(1),'dir':'both','mode':'percentage','predcol':'$(2)','sizefile':'sizes/$(SET).csv'}
prior        = $(call prior_from,sizes/$(SET).csv,$(1))

PRIOR =
WEIGHTS =
PANEL ?= noadap sfda fs
PRIORS ?= sizes/$(SET).csv
PLOTS ?= $(addprefix $(RD)/,val_dice_3d.png boxes.png panel.png sizes.png losses.png sfda.gif)
include rules.mk

# -- what a run depends on: the slices it reads, its prior, and the file of weights it starts from -----------------------
AS_PUBLISHED := $(if $(filter command,$(origin PARITY)),$(PARITY))
FROM := $(if $(or $(filter 1,$(words $(DATA))),$(AS_PUBLISHED)),last,best)
$(if $(filter 1,$(words $(filter best last,$(FROM)))),,$(error FROM is best or last, not '$(FROM)'))
CHOSEN := $(if $(filter last,$(FROM)),last.pkl,best_3d.pkl)
M_WEIGHTS_ul := $(RD)/cesource/$(CHOSEN)
# the learning rate falls an epoch later, as published
LATE := $(if $(AS_PUBLISHED),--lr_rule late)
ON_SOURCE := $(filter $(RD)/cesource $(RD)/cesource_% %_onsource,$(RUNS))
$(ON_SOURCE) $(filter $(RD)/adapt%,$(RUNS)): $(firstword $(DATA))
$(filter-out $(ON_SOURCE) $(addprefix $(RD)/,$(PRE) $(FEW)),$(RUNS)): $(lastword $(DATA)) $(PRIORS)
$(RD)/sfda_onsource: sizes/$(SET)_source.csv
FROM_CESOURCE := $(filter-out $(addprefix $(RD)/,$(SCRATCH) $(PRE) $(FEW)),$(RUNS))
$(FROM_CESOURCE): $(M_WEIGHTS_ul)
$(FROM_CESOURCE): private WEIGHTS = --model_weights $(M_WEIGHTS_ul)

# A csv that is there is never overwritten; a missing one is made from the target's slices.
sizes/$(SET).csv: | $(lastword $(DATA)) $(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors make --data $(lastword $(DATA)) --out $@ $(PRIOR)
sizes/$(SET)_source.csv: | $(firstword $(DATA)) $(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors make --data $(firstword $(DATA)) --out $@ $(PRIOR)

# -- pictures ---------------------------------------------------------------------------------------------------------
$(RD)/panel.png: $(DONE)
	$(RENEW) $(CC) plot.py panel --runs $(addprefix $(RD)/,$(PANEL)) --out $@
$(RD)/sizes.png: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py sizes --run $(<D) --out $@
$(RD)/losses.png: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py losses --run $(<D) --out $@
$(RD)/sfda.gif: $(RD)/sfda/last.pkl
	$(RENEW) $(CC) plot.py gif --run $(<D) --out $@
