# What the probabilities of finished runs are worth, and scans of their patients for a viewer. rules.mk includes this file.
# $(RD)/evaluated/sfda lies beside the run $(RD)/sfda, whose own folder stays as main.py made it. calibration.csv is written last.
#   RUN  whose: by default all main runs
EVALUATIONS := $(RUNS:$(RD)/%=$(RD)/evaluated/%/calibration.csv)
$(EVALUATIONS): $(RD)/evaluated/%/calibration.csv: $(RD)/%/last.pkl | $(VENV)
	$(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) $(CC) -m study.evaluate --run $(<D)

EVALUATED := $(or $(RUN),$(notdir $(MAIN)))
$(if $(filter evaluate,$(MAKECMDGOALS)),$(foreach run,$(filter-out $(notdir $(RUNS)),$(EVALUATED)),\
  $(error evaluate is of runs, and '$(run)' is none; they are: $(notdir $(RUNS)))))
evaluate: $(EVALUATED:%=$(RD)/evaluated/%/calibration.csv)      ## calibration of finished runs, and scans for a viewer: RUN='noadap sfda'

# one line a run: before and after adaptation
$(RD)/reliability.png: $(EVALUATED:%=$(RD)/evaluated/%/calibration.csv)
	$(RENEW) $(CC) plot.py reliability --runs $(addprefix $(RD)/,$(EVALUATED)) --out $@
