# What an experiment makefile starts from. Before it a makefile says what it is about:
#   SET      its name: runs lie in results/$(SET)
#   DATA     the folders of slices, source first, target last (one folder, if it holds both)
#   VOLUMES  the folder of volumes that the slices are cut from; a phantom is made there when nothing is
#   LINEAGE  the list of archives, with their checksums, that VOLUMES is unpacked from (or not set)
# After it stand, in any order, its facts, its lists of runs and one line a run:
#   TRN      main runs     ABL  ablations     BAS  baselines     INF  inference     PRETRAIN  pre-trainings
#   LABELLED runs with few labels, by the number of labelled volumes (see few_labels.mk); main runs where TRN is empty
#   $(RD)/<run>: private OPT = flags of main.py
# Its last line is `include make/rules.mk`.

BEGUN := yes
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDEXPANSION:

include make/venv.mk

empty :=
space := $(empty) $(empty)
comma := ,
# what make, a shell or a pattern takes for something else than a letter
SPECIAL := ' " ` \ | & ; < > ( ) [ ] { } $$ \# % * ? ! ~ = :
special_in = $(strip $(foreach each,$(SPECIAL),$(findstring $(each),$(1))))

# -- what can be set on the command line, too -------------------------------------------------------------
DEBUG ?=
EPC ?=
SEED ?= 0
RD ?= results/$(SET)
override RD := $(RD:/=)
ifneq ($(words $(filter-out -%,$(RD)))$(call special_in,$(RD)),1)
$(error RD names one folder, as results/$(SET)-seed1, without blanks, - in front and $(SPECIAL); it is '$(RD)')
endif
ifneq ($(words $(SEED))$(call special_in,$(SEED)),1)
$(error SEED is a whole number; it is '$(SEED)')
endif
# those of a study, or of other tables over several seeds
SEEDS ?= 0 1 2
ifneq ($(call special_in,$(SEEDS))$(if $(strip $(SEEDS)),,none)$(filter-out $(words $(SEEDS)),$(words $(sort $(SEEDS)))),)
$(error SEEDS are different whole numbers, as SEEDS='0 1 2'; they are '$(SEEDS)')
endif
ifneq ($(if $(filter command line,$(origin SEEDS)),$(shell printf '%s\n' $(SEEDS) | grep -vxE '0|[1-9][0-9]{0,8}')),)
$(error SEEDS are different whole numbers, as SEEDS='0 1 2'; they are '$(SEEDS)')
endif
# of a phantom, where one has to be made: small, or full where there is a GPU
SIZE ?= $(if $(wildcard /dev/nvidia0),full,small)
# threads of a training: one is fastest for a network of a few thousand pixels; empty is as many as there are cores
THREADS ?= $(if $(SMALL),1)
# processes of the programs that make data
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
JOBS := $(JOBS)
# what starts a training, on a cluster for example (see make/slurm/README.md): LAUNCH="srun --gres=gpu:1"
LAUNCH ?=
# processes that share one training, one a GPU, with one thread each unless THREADS says more: NPROC=4
NPROC ?=
# patients of the target's training images, 1 to 3, whose labels choose where a run keeps networks: SELECT=2; empty: no label
SELECT ?=
# other programs that show the log of a run: LOG=tensorboard,mlflow
LOG ?=
# the run that `show` prints, or whose network `stress` tries out or `bundle` hands out; the runs that `evaluate` is of
RUN ?=
# whose images `stress` shifts, where there are two sets: source or target
ON ?=

# -- phantom or real --------------------------------------------------------------------------------------------------
LINEAGE ?=
# the archives of LINEAGE, if one of them is there
ARCHIVES := $(wildcard $(if $(LINEAGE),$(shell sed -n 's/^\([0-9a-f]\{32\}\|-\) *//p' $(LINEAGE))))
# small, full or empty: read from what is there, or what will be made when nothing is
read_phantom = $(shell sed -n 's/.*"phantom": "\([a-z]*\)".*/\1/p' $(1) 2>/dev/null | head -n 1)
PHANTOM := $(strip $(if $(wildcard $(lastword $(DATA))),$(call read_phantom,$(lastword $(DATA))/dataset.json),\
             $(if $(wildcard $(VOLUMES)),$(call read_phantom,$(VOLUMES)/phantom.json),$(if $(ARCHIVES),,$(if $(VOLUMES),$(SIZE))))))
SMALL ?= $(filter small,$(PHANTOM))

# -- numbers of classes, and lists as python writes them ----------------------------------------------------------------
COUNT     := $(shell seq 64)
# those that are no background, of N_CLASS
FOREGROUND = $(wordlist 2,$(N_CLASS),0 $(COUNT))
commas     = [$(subst $(space),$(comma),$(strip $(1)))]
