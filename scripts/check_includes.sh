#!/usr/bin/env bash
# Includes between the rooms of src/ point down only (docs/architecture.md). Prints what does not.
set -euo pipefail
cd "$(dirname "$0")/../src"

# room: the rooms that it may include from, besides itself
allowed='
base:
model: base
chat: model base
kernels: model base
engine: kernels model base
draft: engine kernels model base
plan: draft engine model base
decode: plan draft engine model base
serve: chat decode plan draft engine model base
train: chat decode plan draft engine model base
bench: chat decode plan draft engine kernels model base
study: bench train chat decode plan draft engine kernels model base
cli: study bench train serve chat decode plan draft engine kernels model base
'

status=0
while IFS=: read -r file line include; do
  room=${file%%/*}
  from=${include#*\"}
  from=${from%%/*}
  [ "$room" = "$from" ] && continue
  if ! grep -q "^$room:.*\<$from\>" <<< "$allowed"; then
    echo "src/$file:$line: $room/ must not include from $from/"
    status=1
  fi
done < <(grep -rnE '^#include "[a-z_]+/' --include='*.h' --include='*.cpp' .  | sed 's|^\./||')
exit $status
