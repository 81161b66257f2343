# How everything is made. The last line of every experiment makefile includes this file. What the makefile says of itself, its
# facts, its lists and the lines of its runs stand above, in any order (see begin.mk).

# -- what the makefile did not say --------------------------------------------------------------------------------------
NET ?= $(if $(filter small,$(PHANTOM)),UNet:nG=8,UNet)
# flags that all runs share; of one run
COMMON ?=
OPT ?=
TRN ?=
ABL ?=
BAS ?=
INF ?=
PRETRAIN ?=
SENSITIVE ?=
# the run that others start from, where they do
SOURCE_RUN ?=
# few labels: see few_labels.mk
LABELLED ?=
KINDS ?= random contrast mixup
DRAWS ?= $(if $(DEBUG),0,0 1 2)
FEW_DATA ?=
# the program that cuts slices, and its flags; flags of preprocess.unpack
CUT ?= -m preprocess.slice_volumes
SLICE ?=
UNPACK ?=
# how the patient and the number of a slice are read off its name (see --grp_regex)
G_RGX ?=
# the tables of sizes that losses read
PRIORS ?=
PLOTS ?= $(addprefix $(RD)/,val_dice_3d.png boxes.png)
REPORT ?= $(RD)/report.txt
REPORT_WITH ?=
# the smallest network for a smoke test: a run may name another for Dimwit, which has no encoder and knows no volumes
DIMWIT ?= Dimwit

GOALS := all runs ablations baselines inference few_labels plot report data-report stress evaluate pack show help clean-tmp \
         bundle study study-plan study-pack sensitivity
.PHONY: $(GOALS)

# -- the runs ---------------------------------------------------------------------------------------------------------
FEW  := $(strip $(foreach n,$(LABELLED),$(foreach kind,$(KINDS),$(foreach d,$(DRAWS),$(kind)_$(n)_$(d)))) \
          $(if $(LABELLED),all_labels))
RUNS := $(addprefix $(RD)/,$(TRN) $(ABL) $(BAS) $(INF) $(PRETRAIN) $(FEW) $(SENSITIVE))
MAIN := $(addprefix $(RD)/,$(or $(strip $(TRN)),$(FEW)))
DONE := $(addsuffix /last.pkl,$(MAIN))
$(if $(call special_in,$(RUNS) $(DATA)),$(error Names of runs and of data hold no $(SPECIAL); they are: $(RUNS) $(DATA)))
include make/checks.mk

all: pack
runs: $(MAIN)                                                   ## train the main runs
ablations: $(if $(ABL),$(RD)/ablations.txt)                     ## train the ablations too, and one table of them all
baselines: $(if $(BAS),$(RD)/baselines.txt)                     ## train the baselines too, and one table of them all
inference: $(addprefix $(RD)/,$(INF))                           ## masks of a trained network
few_labels: $(if $(FEW),$(RD)/few_labels.txt)                   ## train with few labels, and one table over their draws
plot: $(PLOTS)                                                  ## pictures of the main runs
report: $(REPORT)                                               ## the table of the main runs
# `make -f … sfda` is short for `make -f … results/<set>/sfda`
.PHONY: $(notdir $(RUNS))
$(notdir $(RUNS)): %: $(RD)/%

# -- recipes ----------------------------------------------------------------------------------------------------------
# Two makes may be typed at once: the second waits for the first, then makes what is not there, or is not yet renewed.
ONCE  = $(CC) -m processes.lock once $@ --
RENEW = $(CC) -m processes.lock renew $@ --
# torchrun starts each of several processes with the same words as a single one (--no_python: it adds none), so that
# CFLAGS reach them all
TRAIN = $(LAUNCH) $(if $(NPROC),$(CC) -m torch.distributed.run --standalone --no_python --nproc_per_node=$(NPROC)) \
          $(CC) $(CFLAGS) main.py
# what was typed on the command line wins over a run's own line (`origin` calls that `command line`: to filter, two words)
TYPED = $(if $(filter command line,$(origin NET)),--network $(if $(filter Dimwit,$(NET)),$(DIMWIT),$(NET))) $(if $(EPC),--n_epoch $(EPC)) \
        $(if $(findstring --keep_every,$(COMMON) $(OPT)),$(SELECTED)) $(if $(LOG),--log '$(LOG)') $(DEBUG)
SELECTED = $(if $(SELECT),--select_with '$(strip $(SELECT))')

# as published runs compute on any device; COMMON and a run's own line win over it
PARITY ?=
EXACT = $(if $(PARITY),$(space)--precision fp32)

# `show` prints a run in place of training it.
SHOWN := $(if $(filter show,$(MAKECMDGOALS)),$(if $(filter $(RD)/$(RUN),$(RUNS)),$(RD)/$(RUN),\
           $(error show prints one run: RUN=sfda, or another of $(notdir $(RUNS)))))
show: $(SHOWN)                                                  ## one run, flag by flag, and where each is said: show RUN=sfda
.PHONY: $(SHOWN)
show = python3 make/show.py $@ "$(call files_of,$(COMMON) $(OPT))" $(MAKEFILE_LIST) -- $(EXACT) $(COMMON) -- $(OPT) -- $(TYPED)

# A run needs the files that its line names: slices, table of sizes, weights of another run. It is made in <run>_tmp and
# moved into place (by RENEW) when it is whole; started again after a kill, it goes on.
$(RUNS): $$(check_line) $$(if $$(SHOWN),,$$(call files_of,$$(COMMON) $$(OPT))) | $(if $(SHOWN),,$(VENV))
	$(if $(SHOWN),@$(show),$(if $(call is_kept,$@),@echo '$@ is there and is kept.',$(train)))
train = $(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) $(RENEW) $(TRAIN)$(EXACT) $(COMMON) --seed $(SEED) --jobs $(JOBS) --workdir $@_tmp --resume $(OPT) $(TYPED)$(PROGRESS)

# The files that a line names: the last word after each of these flags, and every sizefile of a loss. A word counts only if it
# is a file of weights or sizes, or a folder of data.
flat     = $(strip $(subst ', ,$(subst ", ,$(subst =, ,$(subst '', none ,$(subst "", none ,$(1)))))))
after    = $(patsubst $(1)@%,%,$(filter $(1)@%,$(subst $(1) ,$(1)@,$(2))))
files_in = $(filter %.pkl %.csv data/% $(DATA) $(FEW_DATA),$(call after,sizefile:,$(subst sizefile :,sizefile:,$(1))) \
             $(foreach flag,--target_dataset --source_dataset --model_weights,$(lastword $(call after,$(flag),$(1)))))
files_of = $(sort $(call files_in,$(call flat,$(1))))

# The weights are made by their run: order-only, so that a plot dropped into the folder retrains nothing.
$(addsuffix /last.pkl,$(RUNS)): %/last.pkl: | % ;
$(addsuffix /best_3d.pkl,$(RUNS)): %/best_3d.pkl: | % ;
$(addsuffix /chosen.pkl,$(RUNS)): %/chosen.pkl: | % ;

# -- data -------------------------------------------------------------------------------------------------------------
# Slices that are there are used as they are. Volumes are needed only to cut those that are not. A phantom's volumes may
# have been made just now, while other slices here are real.
OF_PHANTOM = $(if $(VOLUMES),$(call read_phantom,$(VOLUMES)/phantom.json))
$(sort $(DATA) $(FEW_DATA)): | $(VENV)
	$(ONCE) $(CC) $(CUT) --dest $@ --jobs $(JOBS) $(addprefix --phantom ,$(or $(OF_PHANTOM),$(PHANTOM))) $(SLICE)
ifneq ($(VOLUMES),)
$(filter-out $(wildcard $(DATA) $(FEW_DATA)),$(DATA) $(FEW_DATA)): | $(VOLUMES)
endif

# What lies in the sets, and what is wrong with it. Make looks again each time.
data-report: | $(DATA) $(VENV)                                  ## problems, counts, pictures of the data, before any training
	$(CC) -m preprocess.data_report --data $(DATA) $(if $(G_RGX),--grp_regex '$(G_RGX)') \
	   $(addprefix --sizes ,$(firstword $(PRIORS))) --out $(RD)/data-report

$(VOLUMES): | $(VENV)
ifneq ($(ARCHIVES),)
	$(ONCE) $(CC) -m preprocess.unpack --lineage $(LINEAGE) --dest $@ $(UNPACK)
else
	@echo "$(VOLUMES) is not there: a PHANTOM is made instead. It shows that the pipeline runs and proves nothing else."
	$(ONCE) $(CC) -m preprocess.phantom $(SET) --dest $@ --size $(SIZE) --jobs $(JOBS)
endif

# -- plots, report, archive -------------------------------------------------------------------------------------------
# a curve a run: the picture has the name of the log's column
CURVES := $(addprefix $(RD)/,$(addsuffix .png,val_dice val_dice_3d val_miou tra_dice tra_loss_tot))
$(CURVES): $(RD)/%.png: $(DONE)
	$(RENEW) $(CC) plot.py curves --runs $(MAIN) --column $* --out $@
$(RD)/boxes.png: $(DONE)
	$(RENEW) $(CC) plot.py boxes --runs $(MAIN) --score dice --out $@
$(RD)/report.txt: $(DONE)
	$(RENEW) $(CC) report.py --runs $(MAIN) $(REPORT_WITH) --out $(basename $@)
$(RD)/ablations.txt: $(addsuffix /last.pkl,$(addprefix $(RD)/,$(TRN) $(ABL)))
	$(RENEW) $(CC) report.py --runs $(addprefix $(RD)/,$(TRN) $(ABL)) $(REPORT_WITH) --out $(basename $@)
$(RD)/baselines.txt: $(addsuffix /last.pkl,$(addprefix $(RD)/,$(TRN) $(BAS)))
	$(RENEW) $(CC) report.py --runs $(addprefix $(RD)/,$(TRN) $(BAS)) --out $(basename $@)

# An archive bears the checkout, day, commit and machine, the folder of its runs, and the seed if it is not 0. It is never
# overwritten: the next one of the day, of other runs, has a number.
# plain: letters of any computer, _ in place of others; at most 40
plain = $(shell printf '%.40s' "$(1)" | LC_ALL=C tr -c 'A-Za-z0-9._-' _)
REPO := $(call plain,$$(basename -- "$$PWD"))
DATE := $(shell date +%y%m%d)
HASH := $(shell git rev-parse --short HEAD 2>/dev/null || echo nogit)
HOST := $(call plain,$$(hostname 2>/dev/null || uname -n))
# the folder of the runs, with a checksum where its name was not plain, or was cut
FOLDER := $(subst /,_,$(RD:results/%=%))
FOLDER := $(call plain,$(FOLDER))$(if $(filter-out $(call plain,$(FOLDER)),$(FOLDER)),-$(firstword $(shell printf %s '$(FOLDER)' | cksum)))
ARCHIVE := archives/$(REPO)-$(DATE)-$(HASH)-$(HOST)-$(FOLDER)$(patsubst %,-SEED=%,$(filter-out 0,$(SEED)))
PACK := $(lastword $(ARCHIVE).tar.gz $(sort $(wildcard $(ARCHIVE)-NO=??.tar.gz)))

pack: report plot $(PACK)                                       ## runs, plots, report and prior in one read-only archive
$(PACK): $(DONE) $(REPORT) $(PLOTS)
	$(RENEW) make/pack.sh $(ARCHIVE) $(RD) '$(filter %_tmp,$(RUNS))' $(PRIORS) $(sort $(wildcard $(MAKEFILE_LIST) make/*.mk))

# -- stress test ------------------------------------------------------------------------------------------------------
# A trained network on the labelled validation images as other scanners would show them. What is there already is kept.
#   RUN         whose network: by default the first main run, which is the source network where there is one
#   ON          source or target: whose images, where a makefile has two sets (see adaptation.mk)
#   SHIFTS      which shifts, by default all      SEVERITIES  which of 1 to 5
SHIFTS ?=
SEVERITIES ?=
STRESSED := $(if $(filter stress,$(MAKECMDGOALS)),$(or $(RUN),$(notdir $(firstword $(MAIN)))))
$(if $(STRESSED),$(if $(filter $(RD)/$(STRESSED),$(RUNS)),,\
  $(error stress tries out the network of a run: RUN=$(notdir $(firstword $(MAIN))), or another of $(notdir $(RUNS)))))
$(if $(call special_in,$(SHIFTS) $(SEVERITIES)),$(error SHIFTS and SEVERITIES are words, as SHIFTS='gamma noise' SEVERITIES='1 3 5'))
# the checkpoint, flags of main.py that name the images, and what the results are called behind the name of the run
STRESS_NETWORK ?= $(RD)/$(STRESSED)/last.pkl
STRESS_SET     ?= $(if $(ON),$(error ON chooses between the source and the target, and this makefile has one set; leave it out))
STRESS_SUFFIX  ?=
stress: $(if $(STRESSED),$$(STRESS_NETWORK) $$(call files_of,$$(STRESS_SET))) | $(VENV)	## a network on images as other scanners would show them: RUN=sfda ON=target
	$(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) $(CC) -m prediction.stress --weights $(patsubst %/last.pkl,%,$<) \
	   --out $(RD)/stress/$(STRESSED)$(STRESS_SUFFIX) $(STRESS_SET) $(if $(SHIFTS),--shifts $(SHIFTS)) \
	   $(if $(SEVERITIES),--severities $(SEVERITIES)) --jobs $(JOBS) --overwrite $(DEBUG)

include make/evaluate.mk
include make/study.mk
include make/bundle.mk

# -- help -------------------------------------------------------------------------------------------------------------
clean-tmp: | $(VENV)                                            ## remove unfinished runs
	$(CC) -m processes.lock clean $(RUNS) $(foreach seed,$(wildcard $(STUDY)/seed*),$(addprefix $(seed)/,$(notdir $(RUNS))))
help:                                                           ## this list
	@sed -nE 's/^([a-z_-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo "main runs:    $(notdir $(MAIN))"; echo "ablations:    $(ABL)"; echo "baselines:    $(BAS)"; echo "inference:    $(INF)"
	@echo "few labels:   $(filter-out $(notdir $(MAIN)),$(FEW))"; echo "pre-training: $(PRETRAIN)"
	@echo "one run:      make -f $(firstword $(MAKEFILE_LIST)) $(notdir $(lastword $(MAIN)))"
