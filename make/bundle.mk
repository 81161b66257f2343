# The network of a finished run as a folder for others, $(RD)/bundle/<run>, made anew each time. rules.mk includes this file.
#   RUN      whose: by default `chosen` where a list has it, else sfda, else the last main run
#   LABELS   what the classes from 1 up are called
#   LICENCE  under which others may use it: LICENCE=CC-BY-4.0
LABELS  ?=
LICENCE ?=
BUNDLED := $(if $(filter bundle,$(MAKECMDGOALS)),$(firstword $(or $(RUN),$(filter chosen,$(ABL)),$(filter sfda,$(TRN)),$(notdir $(lastword $(MAIN))))))
$(if $(BUNDLED),$(if $(filter $(RD)/$(BUNDLED),$(RUNS)),,$(error bundle takes the network of a run: RUN=sfda, or another of $(notdir $(RUNS)))))
$(if $(call special_in,$(LABELS) $(LICENCE)),$(error LABELS and LICENCE are words, as LABELS='left_ventricle aorta' LICENCE=CC-BY-4.0))
# runs with few labels may have other classes than the rest
bundle: $(if $(BUNDLED),$(RD)/$(BUNDLED)/last.pkl) | $(VENV)	## a network for others: weights, card, ONNX, MONAI: RUN=chosen
	$(CC) -m prediction.bundle --run $(<D) --out $(RD)/bundle/$(BUNDLED) \
	   $(if $(filter $(BUNDLED),$(FEW)),,$(if $(LABELS),--labels $(LABELS))) $(if $(LICENCE),--licence '$(LICENCE)')
