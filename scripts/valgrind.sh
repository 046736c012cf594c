#!/usr/bin/env bash
# Valgrind's memcheck over kernels, models, forward passes with trees and pseudo rows, drafts and
# decoding, on the instruction sets that it knows (AVX2 and portable). It does not know AVX-512, nor
# may libggml use that. Usage: scripts/valgrind.sh [BUILD]
set -euo pipefail
build=${1:-build}

check() {
  # fair-sched: its lock would else go back to the thread that spins at a barrier.
  valgrind --quiet --error-exitcode=1 --leak-check=full --fair-sched=try "$@"
}

# These go through the instruction sets themselves.
check "$build/src/kernels/kernels_test" --gtest_brief=1
check "$build/src/engine/engine_test" --gtest_brief=1
# Others follow FIRP_ISA.
for isa in avx2 portable; do
  export FIRP_ISA=$isa
  check "$build/src/decode/decode_test" --gtest_brief=1
done
