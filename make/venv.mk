# Every makefile reads this file first. Variables of the environment are forgotten: a shell may export a LOCAL, PLOTS or CC
# that is meant for another program, and `NAME ?= value` would take it.
$(foreach name,$(shell sed -n 's/^\([A-Za-z_0-9]*\) *?=.*/\1/p' make/*.mk | sort -u),\
  $(if $(filter environment,$(origin $(name))),$(eval undefine $(name))))

# The python of every recipe: .venv, made from requirements.txt when it is missing, unless `CC=/path/to/python` names
# another on the command line. What the recipes start is not told of it: it would take it for a C compiler.
unexport CC CFLAGS
ifneq ($(origin CC),command line)
CC := .venv/bin/python
VENV := .venv/installed
else
VENV :=
endif
ifneq ($(origin CFLAGS),command line)
CFLAGS :=
endif

# By one make at a time, should two be typed at once.
.venv/installed: requirements.txt
	python3 -m processes.lock renew $@ -- sh -ec '\
	  test -x .venv/bin/python || python3 -m venv .venv; \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<; \
	  touch $@'
