# The python of every recipe: .venv, made from requirements.txt when it is missing, unless `CC=/path/to/python` names
# another on the command line. (A CC or CFLAGS exported for a C compiler is none of our business.)
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
	python3 folder_lock.py renew $@ -- sh -ec '\
	  test -x .venv/bin/python || python3 -m venv .venv; \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<; \
	  touch $@'
