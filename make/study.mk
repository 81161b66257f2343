# A study: rows of the comparison over several source seeds, and tables with intervals over patients and seeds. rules.mk
# includes this file. Every seed has a source network of its own, which all of its rows start from, in a folder of its own:
# $(RD)/study/seed0/sfda is what $(RD)/sfda is, with SEED=0. A seed is this same makefile once more, with another RD and SEED, so
# -j, -n, -B, LAUNCH and whatever else is typed reach its runs. Slices and tables of sizes are shared by all seeds.
#   SEEDS    seeds of source networks, and of all that starts from them
#   ROWS     runs to compare, by name; TRN, ABL and BAS stand for all runs of these lists
#   AGAINST  rows that the others are tested against
# `sensitivity` trains the runs of sensitivity.mk for the same seeds in the same folders, and draws curves over what they change.
ROWS    ?= $(or $(strip $(TRN)),$(FEW))
AGAINST ?= noadap sfda

STUDY      := $(RD)/study
STUDY_ROWS := $(strip $(foreach row,$(ROWS),$(if $(filter TRN ABL BAS,$(row)),$($(row)),$(row))))

# -- what was typed -------------------------------------------------------------------------------------------------------
ifneq ($(filter study study-plan study-pack study-facts study-data study-report sensitivity,$(MAKECMDGOALS)),)
CAN_BE_ROWS := $(TRN) $(ABL) $(BAS) $(FEW)
$(foreach row,$(filter-out $(CAN_BE_ROWS),$(STUDY_ROWS)),$(error ROWS names runs, and '$(row)' is none; they are: $(CAN_BE_ROWS)))
$(if $(STUDY_ROWS),,$(error ROWS names no run; they are: $(CAN_BE_ROWS)))
ifeq ($(origin AGAINST),command line)
$(foreach row,$(filter-out $(STUDY_ROWS),$(AGAINST)),$(error AGAINST names rows of the study, and '$(row)' is none; they are: $(STUDY_ROWS)))
endif
$(if $(filter sensitivity,$(MAKECMDGOALS)),$(if $(SENSITIVE),,$(error sensitivity is of the run sfda, which this makefile has not)))
$(if $(filter command line,$(origin SEED)),$(error A study has several seeds: SEEDS='$(SEED)' in place of SEED=$(SEED)))
endif

# -- recipes --------------------------------------------------------------------------------------------------------------
# one seed: $(call of_seed,0) study-rows
of_seed = $(MAKE) --no-print-directory -f $(firstword $(MAKEFILE_LIST)) RD=$(STUDY)/seed$(1) SEED=$(1)
study-rows: $(addprefix $(RD)/,$(STUDY_ROWS)) $(STUDY_ROWS:%=$(RD)/evaluated/%/calibration.csv) ; $(empty)
SENSITIVE_ROWS := noadap sfda $(SENSITIVE)
sensitive-rows: $(addprefix $(RD)/,$(SENSITIVE_ROWS)) ; $(empty)

# What there is to do is read off what `make -n` prints for every seed.
facts = --folder $(STUDY) --name $(SET) --seeds $(SEEDS)
plan  = $(CC) -m study plan $(facts) --make '$(call of_seed,{seed}) $(1)' $(2)
DRY  := $(findstring n,$(LETTERS))
NONE := $(if $(and $(DRY),$(VENV)),$(if $(wildcard $(CC)),,none))
tell_plan = $(if $(NONE),@echo 'The plan is told once $(CC) is there.',+@$(plan))
study-plan: | $(VENV)                                           ## what the study would train, and how long that takes
	$(call tell_plan,study-rows,--rows $(STUDY_ROWS) --against $(AGAINST) --dry)
study-begin: | $(VENV)
	$(call tell_plan,study-rows,--rows $(STUDY_ROWS) --against $(AGAINST) $(DRY:n=--dry))
sensitivity-begin: | $(VENV)
	$(call tell_plan,sensitive-rows,--rows $(SENSITIVE_ROWS) $(if $(DRY),--dry,--beside))

# A run that fails stops no other: what is missing stands above every table, and is the end of `study`.
SEEDED     := $(SEEDS:%=study-seed-%)
SENSITIZED := $(SEEDS:%=sensitivity-seed-%)
$(SEEDED): study-seed-%: study-begin | $(DATA) $(PRIORS)
	+@$(call of_seed,$*) study-rows -k || true
$(SENSITIZED): sensitivity-seed-%: sensitivity-begin | $(DATA) $(PRIORS)
	+@$(call of_seed,$*) sensitive-rows -k || true
# as jobs of their own: make/slurm/study.sbatch
study-facts:
	@printf 'fact: %s\n' '$(STUDY)' '$(SEEDS)' '$(STUDY_ROWS)' '$(or $(filter $(SOURCE_RUN),$(notdir $(RUNS))),-)'
study-data: study-begin | $(DATA) $(PRIORS)
study-report: | $(VENV)
	$(CC) -m study report --folder $(STUDY)
study: $(SEEDED)                                                ## rows x seeds, and tables over both: SEEDS='0 1 2' ROWS='noadap sfda fs'
	$(CC) -m study report --folder $(STUDY)
sensitivity: $(SENSITIZED)                                      ## sfda with a wrong prior, wrong tags, other learning rates: curves over seeds
	$(CC) -m study sensitivity $(facts) --rows $(SENSITIVE_ROWS)
.PHONY: $(SEEDED) $(SENSITIZED) study-facts study-data study-report study-begin sensitivity-begin study-rows sensitive-rows

# Its tables and page can be made again from the archive alone: python -m study report --folder results/<set>/study
STUDY_PACK := $(lastword $(ARCHIVE)-study.tar.gz $(sort $(wildcard $(ARCHIVE)-study-NO=??.tar.gz)))
study-pack: $(STUDY_PACK)                                       ## the study in one read-only archive, which makes its tables and page again
$(STUDY_PACK): $(STUDY)/report.html
	$(RENEW) make/pack.sh $(ARCHIVE)-study $(STUDY) '' $(PRIORS) $(sort $(wildcard $(MAKEFILE_LIST) make/*.mk))
$(STUDY)/report.html: | study ;

# how far it is, told when a run of it is done
OF_STUDY := $(filter study-rows sensitive-rows,$(MAKECMDGOALS))
PROGRESS  = $(if $(OF_STUDY),&& { $(CC) -m study progress --folder $(patsubst %/,%,$(dir $(RD))) || true; })
