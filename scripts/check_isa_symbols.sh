#!/usr/bin/env bash
# An object that is compiled for one instruction set must give the linker nothing but its table: an
# inline function of it might be the copy that the whole program then uses, also on an older CPU.
#   check_isa_symbols.sh OBJECT...
set -euo pipefail
status=0
checked=0
for object in "$@"; do
  case $object in
    *kernels_avx* | *kernels_neon*) ;;
    *) continue ;;
  esac
  checked=$((checked + 1))
  if nm -C "$object" | grep -E ' [WVu] ' >&2; then
    echo "$object: the symbols above could be used by the whole program" >&2
    status=1
  fi
done
if [ "$checked" -eq 0 ] && [ "$(uname -m)" = x86_64 ]; then
  echo "no object of an instruction set among the arguments" >&2
  status=1
fi
exit $status
