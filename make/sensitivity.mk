# How much sfda hangs on what nobody knows exactly: `make … sensitivity`. Every makefile that adapts has these runs. They are in no
# list, so that nothing else trains them; they lie beside those of a study, and start from its source networks (see study.mk).
#   FACTORS  of the prior size       WRONG  per cent of the image-level tags that are wrong, of each seed others
#   RATES_X  factors of the learning rate    PATIENTS  how many patients of the target there are to adapt to, of each seed others
FACTORS   ?= 0.5 0.75 1.5 2
WRONG     ?= 5 10 20
RATES_X   ?= 0.1 0.3 3 10
PATIENTS  ?= 1 2 4
ifneq ($(filter sensitivity,$(MAKECMDGOALS)),)
not_like = $(if $(call special_in,$(2)),$(2),$(shell printf '%s\n' $(2) | grep -vxE '$(1)'))
positive := ([1-9][0-9]*(\.[0-9]+)?|0?\.0*[1-9][0-9]*)(e-?[0-9]+)?
$(foreach name,FACTORS RATES_X,$(if $(call not_like,$(positive),$($(name))),$(error $(name) are numbers above 0, as '0.5 2'; they are '$($(name))')))
$(if $(call not_like,[1-9]?[0-9](\.[0-9]+)?|100,$(WRONG)),$(error WRONG are per cent, 0 to 100, as '5 20'; they are '$(WRONG)'))
$(if $(call not_like,[1-9][0-9]*,$(PATIENTS)),$(error PATIENTS are numbers of patients, 1 or more, as '1 4'; they are '$(PATIENTS)'))
endif
SENSITIVE ?= $(if $(filter sfda,$(TRN)),$(FACTORS:%=sfda_prior_x%) $(WRONG:%=sfda_wrong_%) $(RATES_X:%=sfda_rate_x%) \
               $(PATIENTS:%=sfda_patients_%))

# sfda with its prior out of this column of this table
knowing = $(START) --method sfda $(ADAPT) $(KEEP) --target_losses "[($(ENTKL), $(call prior_from,$(1),$(2)), $(SIZE_OF), 1)]"
times   = $(shell awk 'BEGIN { printf "%.6g", $(1) * $(2) }')
$(RD)/sfda_prior_x%: private OPT = $(call knowing,$(SIZES)_x$(patsubst sfda_prior_x%,%,$(@F)).csv,$(COLUMN)_x$(patsubst sfda_prior_x%,%,$(@F)))
$(RD)/sfda_wrong_%: private OPT = $(call knowing,$(RD)/wrong_$(patsubst sfda_wrong_%,%,$(@F)).csv,$(COLUMN)_wrong$(patsubst sfda_wrong_%,%,$(@F)))
$(RD)/sfda_rate_x%: private OPT = $(START) --method sfda $(ADAPT) $(KEEP) $(call sfda_loss,$(COLUMN)) \
   --l_rate $(call times,$(patsubst sfda_rate_x%,%,$(@F)),$(lastword $(call after,--l_rate,$(ADAPT))))
$(RD)/sfda_patients_%: private OPT = $(START) --method sfda $(ADAPT) $(KEEP) $(call sfda_loss,$(COLUMN)) \
   --n_target $(patsubst sfda_patients_%,%,$(@F)) --draw $(SEED)

$(FACTORS:%=$(SIZES)_x%.csv): $(SIZES)_x%.csv: | $(SIZES).csv $$(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors scale --sizes $(SIZES).csv --column $(COLUMN) --factors $* --out $@
$(WRONG:%=$(RD)/wrong_%.csv): $(RD)/wrong_%.csv: | $(SIZES).csv $$(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors spoil --sizes $(SIZES).csv --column $(COLUMN) \
	   --without $(subst wtags,notags,$(COLUMN)) --percent $* --draw $(SEED) --out $@
