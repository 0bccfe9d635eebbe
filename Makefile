# Everything from a fresh clone: only Python >= 3.11 and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export OMP_WAIT_POLICY = passive

.PHONY: demo train test check setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "causvid needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing causvid into $(VENV) (the first time takes a few minutes)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,wan]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/causvid demo

# Vista from nothing, about five hours on two cores; the same command goes on
train: $(STAMP)
	PYTHON="$(abspath $(BIN))/python" PATH="$(abspath $(BIN)):$$PATH" runs/vista_cpu.sh

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
