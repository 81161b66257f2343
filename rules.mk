# The rules of every experiment makefile; adaptation.mk and boundary.mk include it and add those of their kind. Before
# the include a makefile says
#   SET      the name: results/$(SET)
#   VOLUMES  the folder of volumes that the slices are cut from; a phantom is made there when nothing is
#   LINEAGE  the list of archives, with their checksums, that VOLUMES is unpacked from where they are (or not set)
#   DATA     the folders of slices, source first, target last (one folder, if it holds both)
#   TRN      the main runs, ABL the ablations, BAS the baselines, INF the inference runs, by name
#   LABELLED the runs with few labels, by the number of labelled volumes (see few_labels.mk); main runs where TRN is empty
# and after it one line a run: $(RD)/<run>: private OPT = flags of main.py

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all ablations baselines inference few_labels runs plot report data-report pack help clean-tmp

ifeq ($(filter venv.mk,$(MAKEFILE_LIST)),)  # adaptation.mk and boundary.mk have read it
include venv.mk
endif

# A target is a folder as often as a file: `make -t` would put an empty file in its place.
LETTERS := $(filter-out -%,$(firstword $(MAKEFLAGS)))
ifneq ($(findstring t,$(LETTERS)),)
$(error make -t makes empty files where folders of slices and runs belong; leave it out (-o FILE says that one is up to date))
endif

# -- what can be set on the command line, and there alone: the environment is none of our business --------------------
DEBUG :=
EPC :=
NET := UNet
SEED := 0
RD := results/$(SET)
override RD := $(RD:/=)
# what make, a shell or a pattern takes for something else than a letter
SPECIAL := ' " ` \ | & ; < > ( ) [ ] { } $$ \# % * ? ! ~ = :
special_in = $(strip $(foreach each,$(SPECIAL),$(findstring $(each),$(1))))
ifneq ($(words $(filter-out -%,$(RD)))$(call special_in,$(RD)),1)
$(error RD names one folder, as results/$(SET)-seed1, without blanks, - in front and $(SPECIAL); it is '$(RD)')
endif
ifneq ($(words $(SEED))$(call special_in,$(SEED)),1)
$(error SEED is a whole number; it is '$(SEED)')
endif
SIZE := $(if $(wildcard /dev/nvidia0),full,small)
# threads of a training: one is fastest for a network of a few thousand pixels; empty is as many as there are cores
THREADS = $(if $(SMALL),1)
JOBS := $(shell nproc 2>/dev/null || echo 1)
# what starts a training, on a cluster for example (see slurm/README.md): LAUNCH="srun --gres=gpu:1"
LAUNCH :=
# processes that share one training, one a GPU, with one thread each unless THREADS says more: NPROC=4
NPROC :=
OPT =
WEIGHTS =
SLICE =
COMMON =
CUT ?= -m preprocess.slice_volumes
LINEAGE ?=
PRIORS ?=
UNPACK ?=
TRN ?=
ABL ?=
BAS ?=
INF ?=
LABELLED ?=
KINDS ?= random contrast mixup
DRAWS ?= $(if $(DEBUG),0,0 1 2)
FEW_DATA ?=
# how the patient and the number of a slice are read off its name (see --grp_regex)
G_RGX ?=
# pre-trainings, whose weights others start from; no scores
PRE ?= $(if $(LABELLED),global local)
# the smallest network for a smoke test: a run may name another for Dimwit, which has no encoder and knows no volumes
DIMWIT = Dimwit
# what was typed on the command line wins over a run's own line
TYPED = $(if $(filter command line,$(origin NET)),--network $(if $(filter Dimwit,$(NET)),$(DIMWIT),$(NET))) $(if $(EPC),--n_epoch $(EPC)) $(DEBUG)

# -- phantom or real ------------------------------------------------------------------------------------------------
# the archives of LINEAGE, if one of them is there
ARCHIVES := $(wildcard $(if $(LINEAGE),$(shell sed -n 's/^\([0-9a-f]\{32\}\|-\) *//p' $(LINEAGE))))
# small, full or empty: read from what is there, or what will be made when nothing is.
read_phantom = $(shell sed -n 's/.*"phantom": "\([a-z]*\)".*/\1/p' $(1) 2>/dev/null | head -n 1)
PHANTOM := $(strip $(if $(wildcard $(lastword $(DATA))),$(call read_phantom,$(lastword $(DATA))/dataset.json),\
             $(if $(wildcard $(VOLUMES)),$(call read_phantom,$(VOLUMES)/phantom.json),$(if $(ARCHIVES),,$(if $(VOLUMES),$(SIZE))))))

SMALL ?= $(filter small,$(PHANTOM))
# the same of the volumes, when they are cut: those of a phantom may have been made just now, beside slices of one's own
OF_PHANTOM = $(if $(VOLUMES),$(call read_phantom,$(VOLUMES)/phantom.json))

# -- recipes --------------------------------------------------------------------------------------------------------
# Two makes may be typed at once: the second waits for the first, then makes what is not there, or is not yet renewed.
ONCE  = $(CC) folder_lock.py once $@ --
RENEW = $(CC) folder_lock.py renew $@ --
# torchrun starts each of several processes with the same words as a single one (--no_python: it adds none), so that
# CFLAGS reach them all
TRAIN = $(LAUNCH) $(if $(NPROC),$(CC) -m torch.distributed.run --standalone --no_python --nproc_per_node=$(NPROC)) \
          $(CC) $(CFLAGS) main.py

# -- runs -----------------------------------------------------------------------------------------------------------
FEW  := $(strip $(foreach n,$(LABELLED),$(foreach kind,$(KINDS),$(foreach d,$(DRAWS),$(kind)_$(n)_$(d)))) \
          $(if $(LABELLED),all_labels))
RUNS := $(addprefix $(RD)/,$(TRN) $(ABL) $(BAS) $(INF) $(PRE) $(FEW))
MAIN := $(addprefix $(RD)/,$(or $(strip $(TRN)),$(FEW)))
$(if $(call special_in,$(RUNS) $(DATA)),$(error Names of runs and of data hold no $(SPECIAL); they are: $(RUNS) $(DATA)))
REPORT ?= $(RD)/report.txt
REPORT_WITH ?=

all: pack
runs: $(MAIN)                                                   ## train the main runs
ablations: $(if $(ABL),$(RD)/ablations.txt)                     ## train the ablations too, and one table of them all
baselines: $(if $(BAS),$(RD)/baselines.txt)                     ## train the baselines too, and one table of them all
inference: $(addprefix $(RD)/,$(INF))                           ## masks of a trained network
few_labels: $(if $(FEW),$(RD)/few_labels.txt)                   ## train with few labels, and one table over their draws
plot: $(PLOTS)                                                  ## pictures of the main runs
report: $(REPORT)                                               ## the table of the main runs

# A run is made in <run>_tmp and moved into place (by RENEW) when it is whole; started again after a kill, it goes on.
$(RUNS): | $(VENV)
	$(if $(call is_kept,$@),@echo '$@ is there and is kept.',$(train))
train = $(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) $(RENEW) $(TRAIN) $(COMMON) --seed $(SEED) --jobs $(JOBS) --workdir $@_tmp --resume $(OPT) $(TYPED)

# `make -B results/<set>/<run>` makes what is named anew, and keeps the runs that it is made of; -B of all makes all anew.
NAMED := $(if $(findstring B,$(LETTERS)),$(if $(filter-out $(RD)/%,$(MAKECMDGOALS)),,$(MAKECMDGOALS)))
is_kept = $(and $(NAMED),$(filter-out $(NAMED),$(1)),$(wildcard $(1)/last.pkl))

# Make looks at times alone: a finished run that is asked for with another seed, network or number of epochs is kept, and told.
ASKED := $(if $(filter command line,$(origin SEED)),seed $(SEED)) $(if $(DEBUG),debug 1,debug 0) \
  $(if $(filter command line,$(origin NET)),$(if $(filter-out Dimwit,$(NET)),network $(NET))) $(if $(EPC),n_epoch $(EPC))
FINISHED := $(wildcard $(addsuffix /params.txt,$(or $(filter $(RUNS),$(MAKECMDGOALS)),$(MAIN))))
ifeq ($(findstring B,$(LETTERS))$(filter help clean-tmp data-report,$(MAKECMDGOALS)),)
OTHER := $(if $(FINISHED),$(shell awk -F': ' 'BEGIN { split("$(ASKED)", asked, " "); for (i = 1; i in asked; i += 2) \
  value[asked[i]] = asked[i + 1] } $$1 in value && $$2 != value[$$1] && !($$1 == "n_epoch" && $$2 == 1) \
  { sub("/params.txt", "", FILENAME); print FILENAME " (" $$1 " " $$2 ")" }' $(FINISHED)))
$(if $(OTHER),$(info Finished with other arguments than these, and kept: $(OTHER). Name another RD, or make a run anew: -B.))
endif

# The weights are made by their run: order-only, so that a plot dropped into the folder retrains nothing.
$(addsuffix /last.pkl,$(RUNS)): %/last.pkl: | % ;
$(addsuffix /best_3d.pkl,$(RUNS)): %/best_3d.pkl: | % ;

# -- data -----------------------------------------------------------------------------------------------------------
# Slices that are there are used as they are; the volumes are needed only to cut those that are not.
$(sort $(DATA) $(FEW_DATA)): | $(VENV)
	$(ONCE) $(CC) $(CUT) --dest $@ --jobs $(JOBS) $(addprefix --phantom ,$(or $(OF_PHANTOM),$(PHANTOM))) $(SLICE)
ifneq ($(VOLUMES),)
$(filter-out $(wildcard $(DATA) $(FEW_DATA)),$(DATA) $(FEW_DATA)): | $(VOLUMES)
endif

# What lies in the sets, and what is wrong with it: looked at anew each time.
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

# -- plots, report, archive -----------------------------------------------------------------------------------------
DONE = $(addsuffix /last.pkl,$(MAIN))

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

# what names hold beside letters of a computer, _ in its place; at most 40 letters of each
plain = $(shell printf '%.40s' "$(1)" | LC_ALL=C tr -c 'A-Za-z0-9._-' _)
REPO := $(call plain,$$(basename -- "$$PWD"))
DATE := $(shell date +%y%m%d)
HOST := $(call plain,$$(hostname 2>/dev/null || uname -n))
HASH := $(shell git rev-parse --short HEAD 2>/dev/null || echo nogit)
# the folder of the runs, with a checksum where its name was not plain, or was cut; and the seed, if it is not 0
FOLDER := $(subst /,_,$(RD:results/%=%))
FOLDER := $(call plain,$(FOLDER))$(if $(filter-out $(call plain,$(FOLDER)),$(FOLDER)),-$(firstword $(shell printf %s '$(FOLDER)' | cksum)))
ARCHIVE := archives/$(REPO)-$(DATE)-$(HASH)-$(HOST)-$(FOLDER)$(patsubst %,-SEED=%,$(filter-out 0,$(SEED)))
# An archive is never overwritten: the next one of the day, of other runs, has a number.
PACK := $(lastword $(ARCHIVE).tar.gz $(sort $(wildcard $(ARCHIVE)-NO=??.tar.gz)))

pack: report plot $(PACK)                                       ## runs, plots, report and prior in one read-only archive
# Whatever is finished in RD, but for the masks of single epochs.
$(PACK): $(DONE) $(REPORT) $(PLOTS)
	mkdir -p $(@D)
	part=$$(mktemp $(ARCHIVE).part.XXXX); \
	find $(RD) -mindepth 1 -maxdepth 1 ! -name '.*' ! -name '*.part' \( ! -name '*_tmp' $(patsubst %,-o -path %,$(filter %_tmp,$(RUNS))) \) \
	   -print0 | sort -z | tar cf - --anchored --no-wildcards-match-slash $(MASKS:%=--exclude='$(RD)/*/%/val') --null -T - -- $(PRIORS) $(MAKEFILES_READ) | \
	   $$(command -v pigz || echo gzip) > $$part; \
	chmod a=r $$part; \
	for number in '' -NO={02..99}; do [ -e $(ARCHIVE)$$number.tar.gz ] || break; done; \
	mv -n $$part $(ARCHIVE)$$number.tar.gz
MASKS := iter[0-9][0-9][0-9] iter[0-9][0-9][0-9][0-9]
MAKEFILES_READ := $(sort $(wildcard $(MAKEFILE_LIST) *.mk))

# -- help -----------------------------------------------------------------------------------------------------------
clean-tmp: | $(VENV)                                            ## remove unfinished runs
	$(CC) folder_lock.py clean $(RUNS)
help:                                                           ## this list
	@sed -nE 's/^([a-z_-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo "main runs:    $(notdir $(MAIN))"; echo "ablations:    $(ABL)"; echo "baselines:    $(BAS)"; echo "inference:    $(INF)"
	@echo "few labels:   $(PRE) $(filter-out $(notdir $(MAIN)),$(FEW))"
	@echo "one run:      make -f $(firstword $(MAKEFILE_LIST)) $(lastword $(MAIN))"
