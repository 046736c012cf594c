#!/usr/bin/env bash
# Valgrind's memcheck over kernels, models, forward passes with trees and pseudo rows, drafts and
# decoding, on the instruction sets that it knows (AVX2 and portable). It does not know AVX-512, nor
# may libggml use that. Usage: scripts/valgrind.sh [BUILD]
set -euo pipefail
src=${1:-build}/src

# check ROOM FILTER. Threads that libgomp keeps to the end count as possibly lost: only definite losses
# are errors. Without fair-sched a thread that spins at a barrier would take valgrind's lock again.
check() {
  valgrind --quiet --error-exitcode=1 --leak-check=full --show-leak-kinds=definite \
    --errors-for-leak-kinds=definite --fair-sched=try \
    "$src/$1/$1_test" --gtest_brief=1 --gtest_filter="$2"
}

# These go through the instruction sets themselves. Left out is what takes long and runs no other code.
check kernels '-*OfGgml*:*DependsOnNothingElse*'
check engine '-Oracle.*'
check model 'GgufFile.*:HeadsFile.*:ModelConfig.*:ModelInMemory.*:Rope.*'
check draft '*'
for isa in avx2 portable; do
  FIRP_ISA=$isa check decode '*'
done
