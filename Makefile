# make setup  the environment in .venv/
# make demo   trains the example, compiles it, checks it, times it; ends with one table
# make test   all tests: those of C++ where GoogleTest is installed, then those of Python
# make lint   format, lint and types
# make test-native  C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer
# make test-threads C++ tests with ThreadSanitizer
# make test-arm     C++ tests cross-compiled for 64-bit ARM, under QEMU
# make kernels      CUDA kernels for every GPU, with a table of their registers and spills (nvcc 13)
# make kernels-legacy  the same for Jetson Nano, TX2 and Xavier, which nvcc 13 has dropped: cubins
# make test-tensorrt    the TensorRT plug-in without a GPU; wants TENSORRT_INCLUDE_DIR and TENSORRT_LIBRARY
# make test-gpu     on a machine with an NVIDIA GPU: kernels and whole bundles on it, compute-sanitizer
# make bench-gpu    on such a machine: its figures into benchmarks/results/cuda.json
# make bench  the figures of the README (long); needs an idle machine
# make random-graphs  the property tests on 3,000 random networks (minutes)
# make nightly        all of the above
PYTHON := .venv/bin/python
MDPRUNE := .venv/bin/mdprune
STAMP := .venv/.installed
DEMO := out/demo
BENCH := out/bench
BUDGET := 0.5
# `make demo TRAIN=--quick` trains for seconds instead of minutes; its accuracies mean nothing.
TRAIN :=
# `make test TESTS=tests/test_cli.py` runs one file.
TESTS :=
# `make random-graphs SEED=20260131` draws the networks of another day again.
SEED := $(shell date +%Y%m%d)

# Everything that the native runtime's library is made of.
NATIVE := $(shell find runtime kernels \( -path runtime/tests -o -path runtime/examples -o -path kernels/tools -o -path kernels/cuda/emulate \) -prune -o -type f ! -name "*.cu" ! -name "*.cuh" -print)
CXX_FILES = $(shell git ls-files 'runtime/*.h' 'runtime/*.hpp' 'runtime/*.c' 'runtime/*.cpp' 'kernels/*.h' 'kernels/*.inl' 'kernels/*.cpp' 'kernels/*.cuh' 'kernels/*.cu')
GTEST := $(firstword $(wildcard /usr/include/gtest/gtest.h /usr/local/include/gtest/gtest.h /usr/src/googletest/CMakeLists.txt))
JOBS ?= 2
CUDA_MAIN_LOOPS := ^(convolution|matmul)_kernel<__half
comma := ,

# PyTorch's threads wait for each other by spinning: on a busy machine that takes ten times as long.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-cpp test-native test-threads test-arm test-tensorrt kernels kernels-legacy gpu test-gpu bench-gpu lint bench random-graphs nightly
setup: $(STAMP)

$(STAMP): pyproject.toml $(NATIVE)
	@python3 -m venv .venv
	@echo "installing into .venv"
	@touch $@.begun  # the stamp's time: what changes from here on is not in
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@mv $@.begun $@

demo: setup
	@mkdir -p $(DEMO)
	$(PYTHON) examples/train.py --output $(DEMO) $(TRAIN)
	$(MDPRUNE) compile $(DEMO)/model.pt --budget $(BUDGET) -o $(DEMO)/bundle --force
	$(MDPRUNE) verify $(DEMO)/bundle --against $(DEMO)/model.pt
	$(MDPRUNE) bench $(DEMO)/bundle --against $(DEMO)/model.pt --html $(DEMO)/bench.html --json > $(DEMO)/bench.json
	@$(PYTHON) examples/demo.py $(DEMO)

test: test-cpp
	@$(PYTHON) -m pytest $(TESTS)

# $(call run_cpp_tests,FOLDER,OPTIONS,TARGETS,TESTS) builds into build/FOLDER; ctest's output is shown if a test fails.
define run_cpp_tests
	@mkdir -p build
	@.venv/bin/cmake -S runtime -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja \
		-DMDPRUNE_TESTS=ON $(2) --log-level=ERROR > build/$(1).log 2>&1 || { cat build/$(1).log; exit 1; }
	@.venv/bin/ninja -C build/$(1) -j$(JOBS) --quiet $(3)
	@.venv/bin/ctest --test-dir build/$(1) -j$(JOBS) --output-on-failure $(4) > build/$(1)/tests.log 2>&1 || \
		{ cat build/$(1)/tests.log; exit 1; }
	@echo "C++, $(1): $$(grep 'tests passed' build/$(1)/tests.log)"
endef

# With TESTS only those run.
test-cpp: setup
ifneq ($(TESTS),)
else ifeq ($(GTEST),)
	@echo "C++ tests are not run: GoogleTest is not installed (Debian: libgtest-dev)"
else
	$(call run_cpp_tests,test,)
endif

test-native: setup
	$(call run_cpp_tests,sanitize,-DMDPRUNE_SANITIZE=address$(comma)undefined)

test-threads: setup
	$(call run_cpp_tests,threads,-DMDPRUNE_SANITIZE=thread)

test-arm: setup
	$(call run_cpp_tests,aarch64,-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtime/cmake/aarch64-linux-gnu.cmake)

# CUDA_MAIN_LOOPS: a regular expression for the kernels that may not spill registers.
kernels: setup
	@mkdir -p build
	@.venv/bin/cmake -S runtime -B build/kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja \
		-DMDPRUNE_CUDA=ON -DCMAKE_COMPILE_WARNING_AS_ERROR=ON --log-level=ERROR > build/kernels.log 2>&1 || \
		{ cat build/kernels.log; exit 1; }
	@.venv/bin/ninja -C build/kernels -j$(JOBS) --quiet mdprune_cuda
	@$(PYTHON) -m kernels.tools.resources build/kernels --csv build/kernels/resources.csv \
		--no-spills '$(CUDA_MAIN_LOOPS)'

kernels-legacy: setup
	@$(PYTHON) -m kernels.tools.legacy build/kernels-legacy

# Where there are no headers nothing is tested. The library is any that has TensorRT's registry.
test-tensorrt: setup
ifeq ($(TENSORRT_INCLUDE_DIR),)
	@echo "the TensorRT plug-in is not tested: TENSORRT_INCLUDE_DIR and TENSORRT_LIBRARY are not set"
else
	$(call run_cpp_tests,tensorrt,-DTENSORRT_INCLUDE_DIR=$(TENSORRT_INCLUDE_DIR) -DTENSORRT_LIBRARY=$(TENSORRT_LIBRARY) \
		-DMDPRUNE_TENSORRT_EMULATED=ON,mdprune_tensorrt tensorrt_plugin_test run_node,-R tensorrt_plugin)
	@MDPRUNE_TENSORRT_BUILD=$(CURDIR)/build/tensorrt $(PYTHON) -m pytest tests/test_tensorrt_plugin.py
endif

# The library of the GPU of this machine, and its tests.
GPU_LIBRARIES := MDPRUNE_LIBRARY=$(CURDIR)/build/gpu/libmdprune.so \
	MDPRUNE_CUDA_LIBRARY=$(CURDIR)/build/gpu/libmdprune_cuda.so
GPU_TESTS := cuda_operators_device_test cuda_products_device_test cuda_device_test

gpu:
	@ls /dev/nvidia[0-9]* /dev/nvhost-gpu 2> /dev/null | grep -q . || \
		{ echo "this machine has no NVIDIA GPU (/dev/nvidia0 or /dev/nvhost-gpu)" >&2; exit 1; }

# $(call build_gpu,TARGETS)
define build_gpu
	@mkdir -p build
	@.venv/bin/cmake -S runtime -B build/gpu -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja \
		-DMDPRUNE_TESTS=ON -DMDPRUNE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native --log-level=ERROR \
		> build/gpu.log 2>&1 || { cat build/gpu.log; exit 1; }
	@.venv/bin/ninja -C build/gpu -j$(JOBS) --quiet mdprune mdprune_cuda $(1)
endef

# compute-sanitizer is part of the CUDA toolkit.
test-gpu: gpu setup
	$(call build_gpu,$(GPU_TESTS))
	@for test in $(GPU_TESTS); do build/gpu/tests/$$test --gtest_brief=1 || exit 1; done
	@$(GPU_LIBRARIES) $(PYTHON) -m pytest tests/native/test_cuda_engine.py
	@for tool in memcheck racecheck; do for test in $(GPU_TESTS); do \
		compute-sanitizer --tool $$tool --error-exitcode 1 build/gpu/tests/$$test --gtest_brief=1 || exit 1; \
	done; done

bench-gpu: gpu setup
	$(call build_gpu,cuda_convolution_bench)
	@$(GPU_LIBRARIES) $(PYTHON) -m benchmarks.cuda

lint: setup
	@$(PYTHON) -m ruff format --check --quiet .
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy
	@.venv/bin/clang-format --style=file:runtime/.clang-format --dry-run -Werror $(CXX_FILES)

bench: setup $(BENCH)/6/r50-regular $(BENCH)/20/r50-regular
	$(PYTHON) -m benchmarks.exactness $(addprefix --checkpoint ,$(wildcard $(DEMO)/model.pt))
	$(PYTHON) -m benchmarks.latency --styles regular --openvino
	$(PYTHON) -m benchmarks.latency --styles learned
	$(PYTHON) -m benchmarks.latency --styles regular --threads 2
	$(PYTHON) -m benchmarks.gather
	$(PYTHON) -m benchmarks.memory $(BENCH)/6/r50-regular $(BENCH)/20/r50-regular
	$(PYTHON) -m benchmarks.switch $(BENCH)/6/r50-regular
	$(PYTHON) -m benchmarks.torch_pruning
	$(PYTHON) -m benchmarks.budget_tradeoff
	$(PYTHON) -m benchmarks.layout
	$(PYTHON) -m benchmarks.packing
	$(PYTHON) -m benchmarks.compile_cost

$(BENCH)/6/r50-regular: | setup
	@$(PYTHON) -m benchmarks.compile_case $(@D) --domains 6

$(BENCH)/20/r50-regular: | setup
	@$(PYTHON) -m benchmarks.compile_case $(@D) --domains 20 --targets native

random-graphs: setup
	@echo "seed $(SEED)"
	@$(PYTHON) -m pytest tests/passes/test_random_graphs.py tests/native/test_random_plans.py \
	--hypothesis-profile=nightly --hypothesis-seed=$(SEED)

nightly: lint test random-graphs demo bench
