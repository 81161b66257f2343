# What is wrong with a makefile, or with what was typed, is an error that says how to mend it. rules.mk includes this file.

# -- what was typed ---------------------------------------------------------------------------------------------------
# A target is a folder as often as a file: `make -t` would put an empty file in its place.
LETTERS := $(filter-out -%,$(firstword $(MAKEFLAGS)))
ifneq ($(findstring t,$(LETTERS)),)
$(error make -t makes empty files where folders of slices and runs belong; leave it out (-o FILE says that one is up to date))
endif

# the runs that were asked for by name, short or long
NAMED := $(filter $(RUNS),$(MAKECMDGOALS) $(addprefix $(RD)/,$(MAKECMDGOALS)))
# `make -B sfda` makes what is named again, and keeps the runs that it is made of; -B of all makes all again.
ONLY_NAMED := $(if $(findstring B,$(LETTERS)),$(if $(filter-out $(RD)/% $(notdir $(RUNS)),$(MAKECMDGOALS)),,$(NAMED)))
is_kept = $(and $(ONLY_NAMED),$(filter-out $(ONLY_NAMED),$(1)),$(wildcard $(1)/last.pkl))

# Make looks at times alone: a finished run that is asked for with another seed, network or number of epochs is kept, and told.
ASKED := $(if $(filter command line,$(origin SEED)),seed $(SEED)) $(if $(DEBUG),debug 1,debug 0) \
  $(if $(filter command line,$(origin NET)),$(if $(filter-out Dimwit,$(NET)),network $(NET))) $(if $(EPC),n_epoch $(EPC)) \
  $(if $(filter command line,$(origin SELECT)),select_with $(firstword $(SELECT) 0))
FINISHED := $(wildcard $(addsuffix /params.txt,$(or $(NAMED),$(MAIN))))
ifeq ($(findstring B,$(LETTERS))$(filter help show clean-tmp data-report,$(MAKECMDGOALS)),)
OTHER := $(if $(FINISHED),$(shell awk -F': ' 'BEGIN { split("$(ASKED)", asked, " "); for (i = 1; i in asked; i += 2) \
  value[asked[i]] = asked[i + 1] } $$1 == "keep_every" { keeps = $$2 } $$1 in value && $$2 != value[$$1] \
  && !($$1 == "n_epoch" && $$2 == 1) && !($$1 == "select_with" && !keeps) \
  { sub("/params.txt", "", FILENAME); print FILENAME " (" $$1 " " $$2 ")" }' $(FINISHED)))
$(if $(OTHER),$(info Finished with other arguments than these, and kept: $(OTHER). Name another RD, or make a run anew: -B.))
endif

# -- names and lines --------------------------------------------------------------------------------------------------
# the experiment makefile, and what it includes apart from the files of this folder
MINE := $(filter-out make/%,$(MAKEFILE_LIST))
# file:line of the last place in them that has this word, or their names
at = $(or $(shell grep -nHwF -- '$(1)' $(MINE) | tail -n 1 | cut -d: -f1,2),$(MINE))
# the runs that have a line in them; +file:line for one above the first include, where RD is not known yet
LINES := $(shell awk '/^-?include / { begun = 1 } /^(\$$\(RD\)|results\/$(SET))\/[A-Za-z0-9_.-]+ *:.*OPT *[:+?]?=/ \
  { sub(/ *:.*/, ""); sub(/.*\//, ""); print (begun ? $$0 : "+" FILENAME ":" FNR) }' $(MINE) /dev/null)
$(foreach place,$(filter +%,$(LINES)),$(error $(place:+%=%): this line stands above the first include, which says what $$(RD) is; move it below))
$(foreach name,$(filter $(GOALS) native sweep matrix cross,$(notdir $(RUNS))),$(error $(call at,$(name)): no run can be called $(name), which is a goal of make; name it otherwise))
# Lists that were typed name a part of the runs; the others' lines are all right.
LISTS := TRN ABL BAS INF PRETRAIN LABELLED KINDS DRAWS SENSITIVE
ifeq ($(filter command line,$(foreach list,$(LISTS),$(origin $(list)))),)
$(foreach name,$(filter-out $(notdir $(RUNS)),$(LINES)),$(error $(call at,$(name)): this is the line of $(name), which no list names. \
  Write `ABL += $(name)` above `include make/rules.mk`, or mend the name. The lists name $(notdir $(RUNS))))
endif

# Lists and folders count as they stand at `include make/rules.mk`: what is said below it comes too late.
LISTS += SET RD DATA FEW_DATA VOLUMES LINEAGE PRIORS
counted = $(foreach list,$(LISTS),$(list)=$(subst $(space),$(comma),$(strip $($(list)))))
COUNTED := $(counted)

# -- one line, looked at when its run is asked for --------------------------------------------------------------------
# the names in $(name) and $(call name,…) of a text that stands unexpanded
open  := (
close := )
FUNCTIONS := subst patsubst strip findstring filter filter-out sort word words wordlist firstword lastword dir notdir suffix \
  basename addsuffix addprefix join wildcard realpath abspath if or and foreach file value eval origin flavor error warning info shell
names_in = $(filter-out $(FUNCTIONS) @% <% ^% *% 0 1 2 3 4 5 6 7 8 9,$(patsubst @@%,%,$(filter @@%,$(subst :, ,$(subst $(comma), ,\
             $(subst $(close), ,$(subst $$$(open), @@,$(subst $$$(open)call ,$$$(open),$(1)))))))))
# those that nothing defines, in a text and in what it names
undefined_in = $(foreach name,$(sort $(call names_in,$(1))),$(if $(filter undefined,$(origin $(name))),$(name),\
                 $(if $(filter recursive,$(flavor $(name))),$(call undefined_in,$(value $(name))))))
check_line = $(foreach list,$(firstword $(filter-out $(COUNTED),$(counted))),$(error $(call at,$(firstword $(subst =, ,$(list)))): \
    $(firstword $(subst =, ,$(list))) is changed below `include make/rules.mk`, too late to count; move it above))\
  $(foreach name,$(firstword $(call undefined_in,$(value OPT) $(value COMMON))),$(error $(call at,$(name)): the line of $(@F) needs $$($(name)), which nothing defines))\
  $(if $(strip $(OPT)),,$(error $(call at,$(@F)): $(@F) has no line. Write `$$(RD)/$(@F): private OPT = …`, or mend the name in its list. \
    Lines stand here for $(sort $(LINES))))
