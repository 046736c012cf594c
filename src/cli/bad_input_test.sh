#!/usr/bin/env bash
# Bad input gets one clear line on standard error and a non-zero exit: no crash, no hang, no
# half-written file. Usage: bad_input_test.sh FIRP MODEL.gguf
set -uo pipefail
firp=$(realpath "$1")
model=$2
if [ ! -f "$model" ]; then
  echo "skipped: no model at $model (scripts/setup.sh fetches it)"
  exit 77
fi
cd "$(dirname "$0")/../.." || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
cases=0

# refuses STATUS PATTERN ARGUMENTS...: the program ends with STATUS, has written nothing but one
# line that begins with "firp: " and matches PATTERN.
refuses() {
  local status=$1 pattern=$2 output actual
  shift 2
  output=$(timeout 60 "$firp" "$@" 2>&1 < /dev/null)
  actual=$?
  cases=$((cases + 1))
  if [ "$actual" -ne "$status" ] || [ "$(wc -l <<< "$output")" -ne 1 ] ||
    ! grep -qE "^firp: .*$pattern" <<< "$output"; then
    printf 'FAILED: firp %s\n  expected exit %s and "firp: ...%s", got exit %s and: %s\n' \
      "$*" "$status" "$pattern" "$actual" "$output"
    failures=$((failures + 1))
  fi
}

prompt=(-m "$model" -p hello)

# Usage.
refuses 2 'subcommand is required'
refuses 2 'nosuchverb' nosuchverb
refuses 2 'model' generate -p hello
refuses 2 'nosuchflag' generate "${prompt[@]}" --nosuchflag
refuses 2 '-n|predict' generate "${prompt[@]}" -n many
refuses 2 'draft' generate "${prompt[@]}" --draft magic
refuses 2 'model' bench

# Flags that make no sense.
refuses 1 '-t must be at most' generate "${prompt[@]}" -t 100000
refuses 1 'no layer to choose|firp-train is not beside' train -m "$model" --method medusa --layer 9 \
  -o "$scratch/x.firp.gguf"
refuses 1 '-n must be at least 0, or -1: no limit' generate "${prompt[@]}" -n -3
refuses 1 '-n must be at least 1, or -1: no limit' chat -m "$model" -n 0
refuses 1 '-n must be at least 1, or -1: no limit' serve "$model" -n 0
refuses 1 '-c must be at least 0' generate "${prompt[@]}" -c -1
refuses 1 '--repeat-last-n must be at least -1' generate "${prompt[@]}" --repeat-last-n -2
refuses 2 'cache-type-k' generate "${prompt[@]}" -ctk q4_0
refuses 1 'must be the same' generate "${prompt[@]}" -ctk q8_0
refuses 1 'must be the same' bench --forward --synthetic smollm2-135m:q4_0 -ctv q8_0
refuses 1 '--temp must be between' generate "${prompt[@]}" --temp nan
refuses 1 '--top-p must be between' generate "${prompt[@]}" --top-p 1.5
refuses 1 '--min-p must be between' generate "${prompt[@]}" --min-p 1.5
refuses 2 'gpu-layers' generate "${prompt[@]}" -ngl many
refuses 1 '--tree must be at least 1' generate "${prompt[@]}" --tree -1
refuses 2 'engine' generate "${prompt[@]}" --engine gpu
refuses 1 '--logit-bias needs TOKEN' generate "${prompt[@]}" --logit-bias 5
refuses 1 '--logit-bias needs TOKEN' generate "${prompt[@]}" --logit-bias 49152+1
refuses 1 '--logit-bias needs TOKEN' generate "${prompt[@]}" --logit-bias 5+x
refuses 1 '--typical must be between 0 and 1' generate "${prompt[@]}" --typical 2
refuses 1 '--xtc-probability must be between' generate "${prompt[@]}" --xtc-probability -1
refuses 1 '--dry-multiplier must be between' generate "${prompt[@]}" --dry-multiplier -1
refuses 1 '--dry-base must be between' generate "${prompt[@]}" --dry-base 0.5
refuses 1 '--dry-penalty-last-n must be at least -1' generate "${prompt[@]}" --dry-penalty-last-n -2
refuses 1 '--mirostat must be 0, 1 or 2' generate "${prompt[@]}" --mirostat 3
refuses 1 '--adaptive-decay must be between' generate "${prompt[@]}" --adaptive-decay 1
refuses 1 "--samplers: there is no sampler of the name 'best'" generate "${prompt[@]}" --samplers 'top_k;best'
refuses 1 "--sampler-seq: there is no sampler of the letter 'q'" generate "${prompt[@]}" --sampler-seq kq
refuses 2 'sampler-seq' generate "${prompt[@]}" --sampler-seq k --samplers top_k
refuses 1 '--exact is for greedy' generate "${prompt[@]}" --engine llama --exact --sampler-seq kp
refuses 1 '--exact is for greedy' generate "${prompt[@]}" --engine llama --exact --temp 1
refuses 1 '--exact is for greedy' generate "${prompt[@]}" --engine llama --exact --repeat-penalty 1.1
refuses 1 'there is no CUDA7 \(there are: none, ' generate "${prompt[@]}" --device CUDA7
refuses 1 'llama.cpp cannot go on: Failed to connect to 127.0.0.1:1$' generate "${prompt[@]}" --rpc 127.0.0.1:1
refuses 1 '--port must be' rpc-server --port 0
# Before a model is read, and so before anything is measured.
refuses 1 'early-exit needs the native engine' bench -m "$scratch/nothing.gguf" --engine llama --methods early-exit
refuses 1 'self-speculative needs the native' bench -m "$scratch/nothing.gguf" -ngl 9 --methods self-speculative
refuses 1 'other.gguf' bench -m "$scratch/nothing.gguf" --methods draft-model -md "$scratch/other.gguf"
refuses 1 'they draft deferred only' generate "${prompt[@]}" --tree 8 --drafting in-pass
refuses 1 '--tree must be at most' generate "${prompt[@]}" --tree 100000

# Prompts.
refuses 1 'prompt is empty' generate -m "$model"
refuses 1 'prompt is empty' generate -m "$model" -p ''
: > "$scratch/empty"
refuses 1 'prompt is empty' generate -m "$model" -f "$scratch/empty"
refuses 1 'not valid UTF-8 \(at byte 3\)' generate -m "$model" -p $'abc\xff'
printf 'ab\xc3' > "$scratch/cut"
refuses 1 'not valid UTF-8 \(at byte 2\)' generate -m "$model" -f "$scratch/cut"
refuses 1 'cannot read the prompt .*No such file' generate -m "$model" -f "$scratch/nothing"
refuses 1 'cannot read the prompt' generate -m "$model" -f "$scratch"
refuses 1 'prompt is empty' generate -m "$model" -f -
# What has no end is read no further than the limit that the message names.
refuses 1 'the prompt /dev/zero is longer than 32 MiB' generate -m "$model" -f /dev/zero
refuses 1 'the prompts /dev/zero has a line of more than 32 MiB' bench -m "$model" --prompts /dev/zero
refuses 1 'the results /dev/zero is longer than 32 MiB' bench --report "$scratch/x.html" --from /dev/zero
refuses 1 'the log /dev/zero has a line of more than 32 MiB' study curve /dev/zero -o "$scratch/study"
for verb in generate chat; do
  cases=$((cases + 1))
  output=$(timeout 60 "$firp" $verb -m "$model" --draft none 2>&1 < /dev/zero)
  status=$?
  if [ $status -ne 1 ] || ! grep -aqE '^firp: .* (longer|more) than 32 MiB$' <<< "$output"; then
    echo "FAILED: $verb with endless input: exit $status, $output"
    failures=$((failures + 1))
  fi
done
refuses 1 'context of 4 ' generate "${prompt[@]}" -c 4 --draft none
refuses 1 'context of 4 ' generate -m "$model" -c 4 --draft none --raw -p 'one two three four five'

head -c 2000 /dev/zero | tr '\0' a > "$scratch/long"
refuses 1 'has 2000 bytes: a context of 4 tokens' generate -m "$model" -c 4 -f "$scratch/long"
refuses 1 'has 2000 bytes: a context of 4 tokens' generate -m "$model" -c 4 --raw -f "$scratch/long"

# Models.
refuses 1 'nothing.gguf' generate -m "$scratch/nothing.gguf" -p hello
refuses 1 "$scratch" generate -m "$scratch" -p hello
refuses 1 'empty' generate -m "$scratch/empty" -p hello
for bytes in 3 4 23 1000 100000 2000000 50000000; do
  head -c "$bytes" "$model" > "$scratch/truncated.gguf"
  refuses 1 'truncated.gguf' generate -m "$scratch/truncated.gguf" -p hello
  refuses 1 'truncated.gguf' inspect "$scratch/truncated.gguf"
done
# Counts, lengths and offsets of the header, one byte each set to 255.
for byte in 4 8 15 16 23 24 31 40 47 60 100 200 400; do
  cp "$model" "$scratch/hostile.gguf"
  printf '\xff' | dd of="$scratch/hostile.gguf" bs=1 seek="$byte" conv=notrunc status=none
  output=$(timeout 60 "$firp" inspect "$scratch/hostile.gguf" 2>&1 > /dev/null)
  status=$?
  cases=$((cases + 1))
  # Some bytes are text, which may be anything.
  if [ $status -gt 1 ] || { [ $status -eq 1 ] && [ "$(wc -l <<< "$output")" -ne 1 ]; }; then
    echo "FAILED: inspect of a file with byte $byte set to 255: exit $status, $output"
    failures=$((failures + 1))
  fi
done

# Heads.
heads=$(grep -lE 'b6fbaa6fde5906b8' heads/*.gguf 2> /dev/null | head -n 1)
if [ -z "$heads" ]; then
  echo "FAILED: heads/ holds none for the test model"
  failures=$((failures + 1))
else
  LC_ALL=C sed 's/llama/qwen2/' "$heads" > "$scratch/other.firp.gguf"
  refuses 1 'made for another model' generate "${prompt[@]}" --heads "$scratch/other.firp.gguf"
  head -c 10000 "$heads" > "$scratch/half.firp.gguf"
  refuses 1 'half.firp.gguf' generate "${prompt[@]}" --heads "$scratch/half.firp.gguf"
  refuses 1 'firp|architecture' generate -m "$heads" -p hello
fi
refuses 1 'not a FIRP heads file' generate "${prompt[@]}" --heads "$model"
refuses 1 'nothing.gguf' generate "${prompt[@]}" --heads "$scratch/nothing.gguf"

# Bench.
echo '{"question_id": 1, "category": "qa", "turns": ["Hello"]}' > "$scratch/good.jsonl"
{ cat "$scratch/good.jsonl"; echo '{"question_id": 2, "category": "qa"}'; } > "$scratch/bad.jsonl"
refuses 1 'bad.jsonl, line 2' bench -m "$model" --prompts "$scratch/bad.jsonl"
refuses 1 'nothing.jsonl' bench -m "$model" --prompts "$scratch/nothing.jsonl"
refuses 1 'cannot write' bench -m "$model" --prompts "$scratch/good.jsonl" --json "$scratch/no/x.json"
printf '{"question_id": 7, "category": "qa", "turns": ["%0200d"]}' 0 > "$scratch/long.jsonl"
refuses 1 'question 7: .*context of 64 ' bench -m "$model" --prompts "$scratch/long.jsonl" \
  --methods plain -c 64

refuses 1 '--repeats must be at least 1' bench -m "$model" --prompts "$scratch/good.jsonl" --repeats 0
refuses 1 'cannot write' bench -m "$model" --prompts "$scratch/good.jsonl" --report "$scratch/no/x.html"
mkdir "$scratch/no-figures"
refuses 1 'holds no \*.svg' bench -m "$model" --prompts "$scratch/good.jsonl" \
  --report "$scratch/x.html" --figures "$scratch/no-figures"
refuses 2 'report' bench --from "$scratch/good.jsonl"
refuses 2 'report' bench -m "$model" --figures "$scratch/no-figures"
refuses 1 'nothing.json' bench --report "$scratch/x.html" --from "$scratch/nothing.json"
refuses 1 'good.jsonl is not what .firp bench' bench --report "$scratch/x.html" --from "$scratch/good.jsonl"
refuses 2 'compare' bench --compare "$scratch/good.jsonl"
refuses 2 'prompts|compare' bench --compare "$scratch/good.jsonl" "$scratch/good.jsonl" --prompts "$scratch/good.jsonl"
refuses 1 'nothing.json' bench --compare "$scratch/nothing.json" "$scratch/nothing.json"
refuses 1 'good.jsonl is not what' bench --compare "$scratch/good.jsonl" "$scratch/good.jsonl"
refuses 2 'report' bench --kernels --report "$scratch/x.html"
refuses 1 'NAME=FILE' bench -m "$model" --prompts "$scratch/good.jsonl" --rivals heads.gguf
refuses 1 'named twice' bench -m "$model" --prompts "$scratch/good.jsonl" --rivals plain=heads.gguf
refuses 1 'nothing.gguf' bench -m "$model" --prompts "$scratch/good.jsonl" --methods plain \
  --rivals "paper=$scratch/nothing.gguf"
refuses 1 'model-draft' bench -m "$model" --prompts "$scratch/good.jsonl" --methods plain,draft-model
refuses 1 'model-draft' bench -m "$model" --prompts "$scratch/good.jsonl" --methods plain -md "$model"
refuses 1 'nothing.gguf' bench -m "$model" --prompts "$scratch/good.jsonl" --methods draft-model \
  -md "$scratch/nothing.gguf"

refuses 2 'prompts' bench --kernels --prompts "$scratch/good.jsonl"
refuses 2 'kernels' bench -m "$model" --prompts "$scratch/good.jsonl" --types q4_0
refuses 1 "no weight type 'q9' .*q4_0, " bench --kernels --types q4_0,q9
refuses 1 "'4096' is not a shape" bench --kernels --shapes 4096
refuses 1 'rows of 576 weights cannot be q4_K' bench --kernels --types q4_K --shapes 576x576
refuses 1 '--rows must be at least 1' bench --kernels --rows 1,0
refuses 1 '--rows must be at most' bench --kernels --rows 100000
refuses 2 'model' bench --forward
refuses 2 'prompts|kernels' bench --forward --kernels
refuses 2 'forward' bench --synthetic llama-7b:q4_0
refuses 2 'forward|load' bench --load --forward -m "$model"
refuses 2 'model' bench --load
refuses 1 'nothing.gguf' bench --load "$scratch/nothing.gguf"
TMPDIR="$scratch/nothing" refuses 1 'TMPDIR' bench --load --synthetic smollm2-135m:q4_0
refuses 1 "no shape 'llama-9b' .*llama-7b" bench --forward --synthetic llama-9b:q4_0
refuses 1 "no weight type 'q9'" bench --forward --synthetic llama-7b:q9
refuses 1 'not SHAPE:TYPE' bench --forward --synthetic llama-7b
refuses 1 '--context must be at least 1' bench --forward -m "$model" --context 0
refuses 1 '--rows must be at most 128' bench --forward -m "$model" --rows 129
refuses 1 'cannot write' bench --kernels --json "$scratch/no/x.json"

# Study.
refuses 2 'name' study magic "$model"
refuses 1 'which model' study rows
refuses 1 'which training' study curve
refuses 1 'good.jsonl is no log' study curve "$scratch/good.jsonl" -o "$scratch/study"
refuses 1 'nothing.gguf' study rows "$scratch/nothing.gguf" -o "$scratch/study"
refuses 1 'not a FIRP heads file' study mask "$model" "$model" -o "$scratch/study"
refuses 1 'cannot make the folder' study rows "$model" -o "$scratch/good.jsonl/study"
refuses 1 'needs --engine native' study mask "$scratch/nothing.gguf" --engine llama -o "$scratch/study"
refuses 1 '--tokens must be at least 1' study mask "$model" --tokens 0 -o "$scratch/study"

# serve.
refuses 1 '--port must be 0 to 65535' serve "$model" --port 70000
refuses 1 '--parallel must be at least 1' serve "$model" -np 0
refuses 1 "-n is empty" generate "${prompt[@]}" -n ""
refuses 1 "--port is empty" serve "$model" --port ""
refuses 1 "--alias is empty" serve "$model" --alias=
refuses 1 "is no origin" serve "$model" --allow-origin my.example
refuses 1 '--host is empty' serve "$model" --host ''
refuses 1 '--api-key is empty' serve "$model" --api-key ,
refuses 1 'cannot read the API keys .*No such file' serve "$model" --api-key-file "$scratch/nothing"
refuses 1 'has no key: one a line' serve "$model" --api-key-file /dev/null
FIRP_API_KEY='' refuses 1 'FIRP_API_KEY is empty' serve "$model"
refuses 2 '--ssl-key-file requires --ssl-cert-file' serve "$model" --ssl-key-file "$scratch/key"
refuses 2 '--ssl-cert-file requires --ssl-key-file' serve "$model" --ssl-cert-file "$scratch/key"
refuses 1 'cannot read the certificate' serve "$model" --ssl-key-file "$scratch/nothing" --ssl-cert-file "$scratch/nothing"
refuses 1 'holds no certificate' serve "$model" --ssl-key-file README.md --ssl-cert-file README.md
: > "$scratch/file.sock"
refuses 1 'there is a file, which is no socket' serve "$model" --host "$scratch/file.sock"
refuses 2 '--log-format' serve "$model" --log-format xml
refuses 2 '--request-timeout' serve "$model" --request-timeout -1
refuses 1 'stands alone' serve "$model" --host 127.0.0.1,"$scratch/file.sock"
refuses 1 'cannot read the presets' serve --models-preset "$scratch/nothing"
refuses 1 'neither .NAME. nor KEY = VALUE' serve --models-preset "$scratch/good.jsonl"
refuses 2 'excludes' serve "$model" --models-preset "$scratch/nothing"
refuses 1 '--sleep-idle-seconds must be' serve "$model" --sleep-idle-seconds 0
refuses 2 '--sleep-idle-seconds' serve "$model" --sleep-idle-seconds -2
refuses 1 'leaves none of 4 slots a token' serve "$model" -c 3 --no-kv-unified
AIP_MODE=PREDICTION AIP_HTTP_PORT=x refuses 1 'AIP_HTTP_PORT must be a port' serve "$model"
AIP_MODE=PREDICTION AIP_HTTP_PORT=99999 refuses 1 'must be 0 to 65535' serve "$model"
refuses 1 'no Jinja template .*llama3' serve "$model" --chat-template lama3
refuses 1 'needs --model-draft' serve "$model" --spec-type draft-simple
refuses 2 "'draft-mtp' is not done here" serve "$model" --spec-type draft-mtp
refuses 2 'excludes' serve "$model" -md "$model" --draft firp
refuses 2 '--spec-draft-n-max' serve "$model" --spec-draft-n-max 0
refuses 1 'nothing.gguf' generate "$model" -p hi -md "$scratch/nothing.gguf"
refuses 1 '--host is empty' rpc-server --host ''
refuses 1 'cannot listen at 192.0.2.1:' serve "$model" --host 192.0.2.1

# The machine.
FIRP_ISA=z80 refuses 1 'z80.*portable' generate "${prompt[@]}"

FIRP_CACHE="$scratch/good.jsonl" refuses 1 'cannot write.*start without --packed-cache' \
  generate "${prompt[@]}" --packed-cache
refuses 2 'no file that stays' bench --load --synthetic smollm2-135m:q4_0 --packed-cache

# A full disk: for the text, and for a file (EFBIG stands in for ENOSPC; writing needs a pipe then).
cases=$((cases + 2))
output=$("$firp" generate "${prompt[@]}" -n 4 --draft none 2>&1 > /dev/full)
status=$?
if [ $status -ne 1 ] || ! grep -q '^firp: cannot write the output: No space left' <<< "$output"; then
  echo "FAILED: output to a full disk: exit $status, $output"
  failures=$((failures + 1))
fi
# Messages that cannot be written are lost, and nothing with them.
cases=$((cases + 1))
output=$("$firp" generate "${prompt[@]}" -n 4 --draft none 2> /dev/full)
status=$?
if [ $status -ne 0 ] || [ -z "$output" ]; then
  echo "FAILED: messages to a full disk: exit $status, $output"
  failures=$((failures + 1))
fi
"$firp" generate "${prompt[@]}" -c -1 2> /dev/full
status=$?
if [ $status -ne 1 ]; then
  echo "FAILED: an error's message to a full disk: exit $status"
  failures=$((failures + 1))
fi
output=$(
  trap '' XFSZ
  ulimit -f 0
  "$firp" bench -m "$model" --prompts "$scratch/good.jsonl" --methods plain -n 2 \
    --json "$scratch/out.json" 2>&1
)
status=$?
if [ $status -ne 1 ] || ! grep -q '^firp: cannot write .*out.json' <<< "$output" ||
  compgen -G "$scratch/out.json*" > /dev/null; then
  echo "FAILED: JSON to a full disk: exit $status, $(ls "$scratch"), $output"
  failures=$((failures + 1))
fi

cases=$((cases + 1))
output=$(
  trap '' XFSZ
  ulimit -f 1000
  TMPDIR="$scratch" "$firp" bench --load --synthetic smollm2-135m:q4_0 2>&1
)
status=$?
if [ $status -ne 1 ] || ! grep -q '^firp: cannot write smollm2-135m:q4_0 .*TMPDIR' <<< "$output"; then
  echo "FAILED: a synthetic model to a full disk: exit $status, $output"
  failures=$((failures + 1))
fi

echo "$cases cases, $failures failures"
[ "$failures" -eq 0 ]
