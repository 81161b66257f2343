# make         the demo: CT -> MR on real vertebrae (spine.make), after making the virtual environment
# make test    every test      make lint    the linter      make bench   benchmarks
# make check   builds the network, losses and bounds of every command line of every makefile, without data
# make gpu     what the docs leave open for a GPU, in at most eight minutes; without one in tiny sizes on the CPU (docs/gpu.md)
# make chaos   kills a training at 200 random moments; each time it must end with the same bits
# make torture damaged and hostile input of every kind, and kills of every program
# make help    this, and the goals of an experiment makefile
SHELL := bash
.PHONY: demo test lint check chaos torture bench gpu help
.DEFAULT_GOAL := demo
include make/venv.mk

EXPERIMENTS := spine.make prostate.make whs.make ivd.make sites.make acdc.make isles.make wmh.make gta5.make msd_prostate.make brats.make

# two trainings at a time, a thread each, unless -j says otherwise
demo: $(VENV)
	@$(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j2) -f spine.make

# a file of tests a process, as many as there are cores, in the order of tests/conftest.py
test: .venv/tested
	$(CC) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(if $(CI),--durations=10)

lint: .venv/tested
	$(CC) -m ruff check .
	$(CC) -m ruff format --check .

check: $(VENV)
	$(CC) -m tests.tools.check_makefiles $(EXPERIMENTS)

chaos: .venv/tested
	OMP_NUM_THREADS=1 $(CC) -m tests.tools.chaos --kills 200

torture: .venv/tested
	OMP_NUM_THREADS=1 $(CC) -m tests.tools.torture --count 1000 --kills 10

bench: $(VENV)
	$(CC) -m tests.benchmarks.run

gpu: .venv/tested
	$(CC) -m tests.gpu.run

help:
	@sed -n '1,7s/^# //p' Makefile
	@echo; $(MAKE) --no-print-directory -f spine.make help

# what the tests and the linter need in addition to requirements.txt (with CC=/path/to/python there may be no .venv yet)
.venv/tested: tests/requirements.txt $(VENV)
	$(CC) -m pip install --quiet --disable-pip-version-check -r $<
	mkdir -p $(@D)
	touch $@
