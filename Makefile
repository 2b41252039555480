# `make demo` and `make test` are complete on a machine that has Python >= 3.11, make and a
# package index: they create .venv, install, and run.
PYTHON ?= python3
BIN := .venv/bin
comma := ,
# Tests run with a thread each, this many at a time.
JOBS ?= 2

# What depends on how the processor multiplies, and each way in which some processor does, with
# bfloat16 and without, with compiled kernels and without. `make test` runs all tests in float32.
ARITHMETIC := $(addprefix tests/test_,$(addsuffix .py,precision kernels kernels_derived kernels_vocabulary fused \
	mixed loss softmaxes openblas matmul tanh directional exact_order version_0_1))
ARITHMETICS := \
	"RNNNAS_TEST_PRECISION=bfloat16" \
	"RNNNAS_TEST_PRECISION=bfloat16 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" \
	"RNNNAS_TEST_PRECISION=bfloat16 CXX=false" \
	"RNNNAS_TEST_PRECISION=float32 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41" \
	"RNNNAS_TEST_PRECISION=float32 ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE"

# What pip does is shown: on a terminal with a bar for every download.
# Unpacking is silent: every 20 seconds a line says how far it is.
# TORCH_INDEX: the address of PyTorch's CPU builds, where there is no GPU.
PIP := $(BIN)/python -m pip install --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
define install
	@(while sleep 20 >/dev/null 2>&1; do \
		echo "  still installing: $$(du -sm .venv 2>/dev/null | cut -f1) MB so far"; done) & \
	beat=$$!; $(PIP) $(1); code=$$?; kill $$beat; exit $$code
endef

.PHONY: demo test gpu-tests arithmetic slow lint clean

demo: .venv/installed
	$(BIN)/rnnnas demo

test: .venv/dev
	@# Once for all workers, and for the processes that tests start.
	$(BIN)/python -m compileall -q rnnnas
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# The kernels for CUDA devices, by Triton's interpreter where there is none: a gigabyte more.
gpu-tests: .venv/gpu-tests
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal tests/test_device.py

arithmetic: .venv/dev
	@set -e; for way in $(ARITHMETICS); do \
		echo "$$way"; \
		case "$$way" in *avx512*) if ! grep -q avx512f /proc/cpuinfo; then \
			echo "left out: this processor has no such instructions"; continue; fi;; esac; \
		env $$way $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARITHMETIC); \
	done

slow: .venv/dev
	$(BIN)/python -m pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rnnnas needs Python 3.11 or newer: make PYTHON=python3.12')"
	@echo "making .venv: 1.4 GB on disk, some minutes"
	$(PYTHON) -m venv .venv
	$(call install,-e .)
	@touch $@

.venv/dev: .venv/installed
	@echo "adding the tools for tests: 100 MB on disk"
	$(call install,-e '.[dev]')
	@touch $@

.venv/gpu-tests: .venv/dev
	@echo "adding Triton: a gigabyte on disk"
	$(call install,-e '.[dev$(comma)gpu-tests]')
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
