#!/usr/bin/env bash
# Compiles the kernels and their tests for AArch64 and runs them under QEMU, each NEON set on a CPU that
# has no better one. Exits with 77 (to CTest: skipped) where what it needs is not there.
#   test_neon.sh BUILD_FOLDER CACHE
set -euo pipefail
build=$1
llama_source=$2/llama-source-0.3.36
here=$(dirname "$0")

skip() {
  echo "skipped: $*"
  exit 77
}
for tool in aarch64-linux-gnu-g++ qemu-aarch64 ninja; do
  command -v $tool > /dev/null || skip "no $tool (see neon_packages in scripts/setup.sh)"
done
for sources in /usr/src/googletest /usr/include/fmt "$llama_source"; do
  [ -d "$sources" ] || skip "no $sources (see scripts/setup.sh)"
done

cmake -S "$here/../src/kernels/aarch64" -B "$build" -G Ninja -DFIRP_LLAMA_SOURCE="$llama_source"
cmake --build "$build" --target kernels_test
"$here/check_isa_symbols.sh" "$build"/kernels/CMakeFiles/firp_kernels.dir/*.o

# run CPU ISAS FILTER: the instruction sets that FIRP must find on this CPU of QEMU, and the tests.
run() {
  local tests=(qemu-aarch64 -cpu "$1" "$build/kernels/kernels_test") found
  found=$("${tests[@]}" --gtest_list_tests | sed -n 's/.*GetParam() = "\(.*\)"$/\1/p' | sort -u | xargs)
  if [ "$found" != "$2" ]; then
    echo "$1 has the instruction sets '$found' instead of '$2'"
    return 1
  fi
  "${tests[@]}" --gtest_brief=1 --gtest_filter="$3"
}
jobs=()
run cortex-a72 'neon portable' '*/neon:KernelsChoice.*' & jobs+=($!)
run neoverse-n1 'neon neon_dotprod portable' '*/neon_dotprod:KernelsChoice.*' & jobs+=($!)
run max 'neon neon_dotprod neon_i8mm portable' '-*/neon:*/neon_dotprod' & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done
