# Every site as source, every site as target. A makefile of several sites includes this file after its facts and before rules.mk.
# A pair of sites is that makefile once more, with another SOURCE_SITE and TARGET_SITE, in the folder
# $(MATRIX)/<source>/<target>/seed<seed>; the source network of a site is trained once, in the folder of the site and itself.
#   SITES   the sites                       SOURCE_SITE  TARGET_SITE   those of one pair, of which DATA and SIZES are made
#   ROWS    runs of each pair, the first of them the source network as it came     SEEDS   as in study.mk, by default SEED
MATRIX := $(if $(filter command line,$(origin RD)),$(RD),results/$(SET))/matrix
MATRIX_ROWS  := $(if $(filter command line,$(origin ROWS)),$(ROWS),noadap sfda)
MATRIX_SEEDS := $(if $(filter command line,$(origin SEEDS)),$(SEEDS),$(SEED))
# those of the rows that learn, back on their source
BACK := $(addsuffix _back,$(wordlist 2,$(words $(MATRIX_ROWS)),$(MATRIX_ROWS)))
UNLISTED := $(filter-out $(ABL),$(BACK))
ABL += $(UNLISTED)

ifneq ($(filter matrix,$(MAKECMDGOALS)),)
$(foreach row,$(filter-out $(TRN) $(ABL) $(BAS),$(MATRIX_ROWS)),$(error ROWS names runs, and '$(row)' is none; they are: $(TRN) $(ABL) $(BAS)))
$(if $(filter noadap,$(firstword $(MATRIX_ROWS))),,$(error ROWS of a matrix begin with noadap, the source network as it came; they are '$(MATRIX_ROWS)'))
$(if $(call special_in,$(SITES))$(filter-out $(words $(SITES)),$(words $(sort $(SITES))))$(if $(word 2,$(SITES)),,one),\
  $(error SITES are two different folders or more, as SITES='BMC UCL HK'; they are '$(SITES)'))
endif

# 0/BMC/HK: a seed, a source, a target
part     = $(word $(1),$(subst /, ,$(2)))
PAIRS   := $(foreach seed,$(MATRIX_SEEDS),$(foreach source,$(sort $(SITES)),$(foreach target,$(sort $(SITES)),$(seed)/$(source)/$(target))))
ITSELF  := $(foreach seed,$(MATRIX_SEEDS),$(foreach site,$(sort $(SITES)),$(seed)/$(site)/$(site)))
ACROSS  := $(filter-out $(ITSELF),$(PAIRS))
folder_of = $(MATRIX)/$(call part,2,$(1))/$(2)/seed$(call part,1,$(1))
of_pair = $(MAKE) --no-print-directory -f $(firstword $(MAKEFILE_LIST)) SEED=$(call part,1,$(1)) SOURCE_SITE=$(call part,2,$(1)) \
            TARGET_SITE=$(call part,3,$(1)) RD=$(call folder_of,$(1),$(call part,3,$(1))) SOURCE_RD=$(call folder_of,$(1),$(call part,2,$(1)))

matrix: $(PAIRS:%=matrix-%)                                     ## every site as source and as target, in one table: SITES= ROWS= SEEDS=
	$(CC) -m study matrix --folder $(MATRIX) --name $(SET) --sites $(SITES) --rows $(MATRIX_ROWS) --seeds $(MATRIX_SEEDS)
# A run that fails stops no other: what is missing stands above the table, and is the end of `matrix`.
$(ITSELF:%=matrix-%): matrix-%: | $(VENV)
	+@$(call of_pair,$*) -k cesource $(firstword $(MATRIX_ROWS)) || true
$(ACROSS:%=matrix-%): matrix-%: | matrix-$$(call part,1,$$*)/$$(call part,2,$$*)/$$(call part,2,$$*)
	+@$(call of_pair,$*) -k $(MATRIX_ROWS) $(BACK) || true
.PHONY: matrix $(PAIRS:%=matrix-%)
