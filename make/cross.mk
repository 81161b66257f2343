# Every way to train the source network, and every way to adapt it, in one table: which two go together here. The source networks
# of a seed are trained once, in $(CROSS)/sources/seed<seed>; what starts from one of them is this same makefile once more, in
# $(CROSS)/<source>/seed<seed>.
#   SOURCES   source networks, the usual one first (see transfer.mk)
#   ROWS      runs that start from each, the first of them the source network as it came; `chosen` chooses among the others
#   SEEDS     as in study.mk, by default SEED
SOURCES ?= cesource cesource_gin cesource_slaug cesource_bigaug cesource_transfer
CROSS       := $(RD)/cross
CROSS_ROWS  := $(if $(filter command line,$(origin ROWS)),$(ROWS),noadap sfda tent shot mean_teacher chosen)
CROSS_SEEDS := $(if $(filter command line,$(origin SEEDS)),$(SEEDS),$(SEED))
AMONG       := $(filter $(CHOICES),$(CROSS_ROWS))

ifneq ($(filter cross,$(MAKECMDGOALS)),)
$(foreach row,$(filter-out $(TRN) $(ABL) $(BAS),$(CROSS_ROWS)),$(error ROWS names runs, and '$(row)' is none; they are: $(TRN) $(ABL) $(BAS)))
$(foreach run,$(filter-out cesource $(TRANSFER),$(SOURCES)),$(error SOURCES names source networks, and '$(run)' is none; they are: \
  cesource $(filter cesource_%,$(TRANSFER))))
$(if $(filter chosen,$(CROSS_ROWS)),$(if $(AMONG),,$(error chosen chooses among rows that keep networks; ROWS names none of: $(CHOICES))))
endif

# 0/cesource_gin: a seed, a source
CROSSED    := $(foreach seed,$(CROSS_SEEDS),$(foreach source,$(SOURCES),$(seed)/$(source)))
seed_of     = $(patsubst %/,%,$(dir $(1)))
make_seed   = $(MAKE) --no-print-directory -f $(firstword $(MAKEFILE_LIST)) SEED=$(1) RD=$(CROSS)/$(2)/seed$(1)
make_crossed = $(call make_seed,$(call seed_of,$(1)),$(notdir $(1))) SOURCE_RUN=$(notdir $(1)) \
                 SOURCE_RD=$(CROSS)/sources/seed$(call seed_of,$(1)) CHOICES='$(AMONG)' ALSO=

cross: $(CROSSED:%=cross-%)                                     ## every source network x every adaptation, one table: SOURCES= ROWS= SEEDS=
	$(CC) -m study cross --folder $(CROSS) --name $(SET) --sources $(SOURCES) --rows $(CROSS_ROWS) --seeds $(CROSS_SEEDS) \
	   --start $(CHOSEN:.pkl=)
# A run that fails stops no other: what is missing stands above the table, and is the end of `cross`.
$(CROSS_SEEDS:%=cross-sources-%): cross-sources-%: | $(VENV)
	+@$(call make_seed,$*,sources) -k $(SOURCES) fs || true
$(CROSSED:%=cross-%): cross-%: | cross-sources-$$(call seed_of,$$*)
	+@$(call make_crossed,$*) -k $(CROSS_ROWS) || true
.PHONY: cross $(CROSSED:%=cross-%) $(CROSS_SEEDS:%=cross-sources-%)
