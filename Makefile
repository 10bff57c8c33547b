# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-results
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all check csrc-test csrc-tsan csrc-neon bench bench-classes gpu-check bench-compare bench-serving benchmarks-page detection detection-page clean

demo: $(VENV)/.demo
	$(BIN)/scrd-fast demo --out $(OUT)

# Processes of one thread each: on 2 cores a third quicker than one process of two.
test: check csrc-test
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=40

test-all: check csrc-test csrc-tsan csrc-neon
	$(BIN)/python -m pytest -m ""

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(CSRC_TESTS)

# For a machine with an NVIDIA GPU: uses what $(PYTHON) has installed and downloads nothing.
gpu-check:
	$(PYTHON) setup.py -q build_ext --inplace
	$(PYTHON) -m benchmarks.gpu_check

# Stores the result in benchmarks/results and reports on it, whether all figures were kept or not.
bench: $(VENV)/.bench
	@mkdir -p build
	status=0; $(BIN)/python -m pytest benchmarks -s --benchmark-columns=min,median,max,rounds \
	    --benchmark-json=build/benchmarks.json || status=$$?; \
	$(BIN)/python -m benchmarks.report build/benchmarks.json && exit $$status

# The whole path on each class of CPUs that this one shows, under caps on instructions; stored, too.
bench-classes: $(VENV)/.bench
	$(BIN)/python -m benchmarks.classes

bench-compare: $(VENV)/.test
	$(BIN)/python -m benchmarks.report --compare "$(BASE)"

benchmarks-page: $(VENV)/.test
	$(BIN)/python -m benchmarks.report --page

# A service under load, beside the Python API; about 17 minutes. Adds to benchmarks/results.
bench-serving: $(VENV)/.bench
	$(BIN)/python -m benchmarks.serving --store

# How well anomalies are found, at most about 3 hours; goes on where it was stopped. BUDGET: factor
# of all steps, by default what fits.
detection: $(VENV)/.test
	$(BIN)/python -m benchmarks.detection $(if $(BUDGET),--budget $(BUDGET))
	$(BIN)/python -m benchmarks.detection --page

detection-page: $(VENV)/.test
	$(BIN)/python -m benchmarks.detection --page

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; use make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras: the second run starts at once.
CSRC := $(shell find csrc -path csrc/tests -prune -o -name '*.?pp' -print -o -name '*.inl' -print)
CSRC_TESTS := $(wildcard csrc/tests/*.?pp)
INSTALL := pyproject.toml setup.py constraints.txt $(CSRC)

$(VENV)/.demo: $(INSTALL) | $(VENV)/bin/python
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.test: $(INSTALL) | $(VENV)/bin/python
	$(PIP) -e ".[test,tensorrt-rtx]" || { \
	    echo "TensorRT for RTX does not install here: its tests will be skipped"; \
	    $(PIP) -e ".[test]"; }
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(INSTALL) | $(VENV)/bin/python
	$(PIP) -e ".[bench]"
	@touch $@ $(VENV)/.test $(VENV)/.demo

# The C++ tests: csrc/src/*.cpp and csrc/tests/*.cpp, with the address and undefined-behaviour
# sanitizers, once more with the thread sanitizer for what threads share, and once for arm64 in an
# emulator. A new file needs no line here; TSAN_TESTS holds the files test_<name>.cpp of what
# threads share.
CXX ?= g++
CXXFLAGS ?= -O1 -g
WARNINGS := -Wall -Wextra -Wno-psabi
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
TSAN_TESTS := thread_pool anomaly_map scorer terms pending_scores
ASAN := -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS
TSAN := -fsanitize=thread
NEON_CXX := aarch64-linux-gnu-g++
RUNNER_SOURCES := $(wildcard csrc/src/*.cpp csrc/tests/*.cpp)

csrc-test:
	@$(MAKE) --no-print-directory $(PARALLEL) build/asan/tests
	build/asan/tests

csrc-tsan:
	@$(MAKE) --no-print-directory $(PARALLEL) build/tsan/tests
	TSAN_OPTIONS=suppressions=csrc/tests/tsan_suppressions.txt build/tsan/tests $(TSAN_TESTS)

# Debian's packages qemu-user and g++-aarch64-linux-gnu.
csrc-neon:
	@if command -v $(NEON_CXX) > /dev/null && command -v qemu-aarch64 > /dev/null; then \
	    $(MAKE) --no-print-directory $(PARALLEL) build/neon/tests && qemu-aarch64 build/neon/tests; \
	else \
	    echo "qemu-aarch64 or $(NEON_CXX) is not installed: NEON is not tested"; \
	fi

# As many compilers as CPUs, unless make was told a number already.
PARALLEL = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))

build/asan/%: SANITIZE := $(ASAN)
build/tsan/%: SANITIZE := $(TSAN)
build/neon/%: CXX := $(NEON_CXX)

build/asan/tests: $(RUNNER_SOURCES:%.cpp=build/asan/%.o)
build/tsan/tests: $(RUNNER_SOURCES:%.cpp=build/tsan/%.o)
build/neon/tests: $(RUNNER_SOURCES:%.cpp=build/neon/%.o)
build/asan/tests build/tsan/tests:
	$(CXX) $(SANITIZE) -pthread $^ -o $@
build/neon/tests:  # static: needs no library of that kind at run time
	$(CXX) -static -pthread $^ -o $@

COMPILE = $(CXX) -std=c++17 $(CXXFLAGS) $(WARNINGS) $(SANITIZE) -pthread -Icsrc/include -MMD -MP -c $< -o $@

build/asan/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(COMPILE)

build/tsan/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(COMPILE)

build/neon/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(COMPILE)

-include $(foreach kind,asan tsan neon,$(RUNNER_SOURCES:%.cpp=build/$(kind)/%.d))

clean:
	rm -rf $(VENV) build dist *.egg-info scrd_fast/*.so .pytest_cache .mypy_cache .ruff_cache
