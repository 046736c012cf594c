# Everything that a fresh Debian machine needs is installed by `make setup`, which the others call.
FIRP_CACHE ?= $(HOME)/.cache/firp
export FIRP_CACHE
# cuda, vulkan, hip, ...: libllama is built with that backend of llama.cpp's, whose tools must be there.
GPU ?=
export GPU
BUILD := build$(if $(GPU),-$(GPU))
# Of the demo: smollm2, gemma3, or a GGUF file.
MODEL ?= smollm2
MODEL_FILE := $(if $(filter smollm2,$(MODEL)),$(FIRP_CACHE)/models/SmolLM2-135M-Instruct.Q4_1.gguf,$(if \
  $(filter gemma3,$(MODEL)),$(FIRP_CACHE)/models/gemma-3-270m-q4_k_m.gguf,$(MODEL)))
export MODEL

.PHONY: help setup configure build test demo format clean

help:
	@echo 'make demo    a real model answers with FIRP and without, side by side; MODEL=gemma3 takes'
	@echo '             Gemma 3 270M (230 MiB, under Gemma'\''s terms of use), MODEL=FILE one of yours'
	@echo 'make build   build/firp; with GPU=cuda (vulkan, hip, ...) build-cuda/firp, for llama.cpp'\''s engine'
	@echo 'make test    all tests'
	@echo 'make format  clang-format on all sources'
	@echo 'make clean   removes the build folders; what lies in $(FIRP_CACHE) stays'

setup:
	@scripts/setup.sh $(SETUP_FOR)

configure: setup
	@cmake --preset release -B '$(BUILD)' -DFIRP_CACHE='$(FIRP_CACHE)' -DFIRP_GPU='$(GPU)'

build: configure
	@cmake --build '$(BUILD)'

test: SETUP_FOR := tests
test: build
	@ctest --test-dir '$(BUILD)' --output-on-failure --no-tests=error -j "$$(nproc)"

# Without the tests and the trainer.
demo: configure
	@cmake --build '$(BUILD)' --target firp
	@$(BUILD)/firp demo -m '$(MODEL_FILE)'

format:
	@find src -name '*.cpp' -o -name '*.h' | xargs clang-format -i

clean:
	rm -rf build build-*
