#!/usr/bin/env bash
# The verbs on the real model and its heads. Usage: verbs_test.sh FIRP MODEL.gguf
set -uo pipefail
firp=$(realpath "$1")
model=$2
if [ ! -f "$model" ]; then
  echo "skipped: no model at $model (scripts/setup.sh fetches it)"
  exit 77
fi
cd "$(dirname "$0")/../.." || exit 1 # heads/ is found from here
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# "address" or "thread" where all of this runs under a sanitizer (CMakePresets.json). Arithmetic is then
# slower by far and memory is the sanitizer's: what is said of either is left out. ThreadSanitizer
# would take over 15 minutes for all: it gets some variants, and only the first of what measures.
sanitizer=${FIRP_SANITIZER:-}
samplings=('--temp 0' '--temp 0.8 --seed 7 --repeat-penalty 1.1' '-ctk q8_0 -ctv q8_0')
drafts_of_all=('--tree 2' '--tree 16 -t 1' '--tree 64' '--chain' '--tree 0')
if [ "$sanitizer" = thread ]; then
  samplings=('--temp 0.8 --seed 7 --repeat-penalty 1.1')
  drafts_of_all=('--tree 16' '--tree 0')
fi
failures=0
finish() {
  echo "$failures failures"
  exit $((failures > 0))
}
fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# Text: the same with and without drafts, whatever the tree, the sampling or the threads.
question='Write a short story about a lighthouse keeper and a parrot.'
for sampling in "${samplings[@]}"; do
  # shellcheck disable=SC2086 # flags
  "$firp" generate "$model" -p "$question" -n 48 $sampling --draft none \
    > "$scratch/plain" 2> "$scratch/log" || fail "generate: $(cat "$scratch/log")"
  iconv -f UTF-8 -t UTF-8 "$scratch/plain" > /dev/null || fail "the text is not UTF-8"
  [ "$(wc -w < "$scratch/plain")" -gt 20 ] || fail "hardly any text: $(cat "$scratch/plain")"
  for drafts in "${drafts_of_all[@]}"; do
    # shellcheck disable=SC2086
    "$firp" generate -m "$model" -p "$question" -n 48 $sampling $drafts --draft firp \
      > "$scratch/drafted" 2> "$scratch/log" || fail "generate $drafts: $(cat "$scratch/log")"
    cmp -s "$scratch/plain" "$scratch/drafted" ||
      fail "another text with $sampling $drafts: $(cat "$scratch/drafted")"
    grep -q 'tokens per forward pass (FIRP' "$scratch/log" || fail "no statistics of $drafts"
  done
done
"$firp" generate -m "$model" -p "$question" -n 48 --draft none 2> /dev/null > "$scratch/plain"
for drafts in '' '--spec-type draft-simple --spec-draft-n-max 8'; do
  # shellcheck disable=SC2086
  "$firp" generate -m "$model" -md "$model" -p "$question" -n 48 $drafts \
    > "$scratch/drafted" 2> "$scratch/log" || fail "a draft model: $(cat "$scratch/log")"
  cmp -s "$scratch/plain" "$scratch/drafted" && grep -q 'a draft model' "$scratch/log" ||
    fail "a draft model writes another text: $(cat "$scratch/drafted" "$scratch/log")"
done
"$firp" generate -m "$model" -p "$question" -n 48 --spec-type none 2>&1 > /dev/null |
  grep '(plain)' > /dev/null || fail "--spec-type none drafts"
"$firp" generate -m "$model" --raw -p 'The capital of France is' -n 5 --draft none \
  2> /dev/null | grep Paris > /dev/null || fail "the capital of France"
printf '%s' "$question" > "$scratch/question"
"$firp" generate -m "$model" -f "$scratch/question" -n 48 2> /dev/null > "$scratch/from-file"
"$firp" generate -m "$model" -p "$question" -n 48 2> /dev/null | cmp -s - "$scratch/from-file" ||
  fail "-f gives another text than -p"
"$firp" generate -m "$model" -p "$question" -n 48 --draft firp --tree 16 --colour always 2> /dev/null |
  grep $'\x1b\[32m' > /dev/null || fail "no drafted token in colour"

# Of a file and of a pipe: without the editor's last line break, its byte order mark and Windows'
# line breaks. -p is taken as it stands, and a pipe beside it is not read.
raw=(-m "$model" --raw -n 8 -t 1 --draft none)
write() { "$firp" generate "${raw[@]}" "$@" 2> "$scratch/log"; }
mkfifo "$scratch/endless"
sleep 1000 > "$scratch/endless" &
writer=$!
plain=$(write -p $'One.\nThe capital of France is' < "$scratch/endless")
kill $writer && wait $writer 2> /dev/null
grep -q Paris <<< "$plain" || fail "-p beside a pipe that stays open: $plain $(cat "$scratch/log")"
for text in 'One.\nThe capital of France is' 'One.\nThe capital of France is\n' \
  'One.\r\nThe capital of France is\r\n' '\357\273\277One.\nThe capital of France is\n'; do
  # shellcheck disable=SC2059 # escapes
  printf "$text" > "$scratch/question"
  [ "$(write -f "$scratch/question")" = "$plain" ] || fail "another text from -f with $text"
  [ "$(write -f - < "$scratch/question")" = "$plain" ] || fail "another text from -f - with $text"
  [ "$(cat "$scratch/question" | write)" = "$plain" ] || fail "another text from a pipe with $text"
done
printf 'One.\nThe capital of France is\n\n' > "$scratch/question"
[ "$(write -f "$scratch/question" | head -c 100)" != "$plain" ] || fail "-f takes off two line breaks"

# llama.cpp's values of its flags, -1 and 0 included; of flags given twice the last one holds.
plain=$(write -p 'The capital of France is')
for flags in '-t 0' '-t -1' '-c 0' '--temp -1' '--temperature 0' '-ngl auto' '-ngl 0' '-fa 1' '-n 3 -n 8' \
  '--temp 1.5 --temp 0' '-c 4 -c 0' '-dev CUDA7 -dev none' '--draft firp --draft none' '-t 1 -t 1' \
  '--colour always --color never' '--exact --exact --raw'; do
  # shellcheck disable=SC2086 # flags
  [ "$(write -p 'The capital of France is' $flags)" = "$plain" ] ||
    fail "another text with $flags: $(cat "$scratch/log")"
done
sampled=(-p 'The capital of France is' --temp 1.5 --seed 7 --repeat-penalty 1.3)
[ "$(write "${sampled[@]}" --top-k -1)" = "$(write "${sampled[@]}" --top-k 0)" ] ||
  fail "--top-k -1 is not --top-k 0"
[ "$(write "${sampled[@]}" --min-p -1)" = "$(write "${sampled[@]}" --min-p 0)" ] ||
  fail "--min-p -1 is not --min-p 0"
[ "$(write "${sampled[@]}" --repeat-last-n -1)" = "$(write "${sampled[@]}" --repeat-last-n 1000)" ] ||
  fail "--repeat-last-n -1 is not the whole context"
seeds=$(for seed in -1 -1 4294967295; do
  write -p Hi --temp 1 --seed $seed > /dev/null
  grep -o 'seed [0-9]*' "$scratch/log"
done | sort -u | wc -l)
[ "$seeds" -eq 3 ] || fail "--seed -1 is the same seed again"
for most in -1 -2; do
  "$firp" generate "$model" -p hi -c 64 -n $most -t 1 --draft none --ignore-eos > /dev/null 2> "$scratch/log"
  grep -q 'the context of 64 tokens is full' "$scratch/log" || fail "-n $most: $(cat "$scratch/log")"
done
[ -z "$(write -p "$question" -n 0)" ] && grep -q '^firp: 0 tokens' "$scratch/log" &&
  ! grep -q ' 0\.00 s' "$scratch/log" || fail "-n 0 reads no prompt: $(cat "$scratch/log")"

# The threads are those of the cores that the program may use.
core=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
taskset -c "$core" "$firp" bench --load "$model" 2> "$scratch/log" | grep -q ', 1 threads$' ||
  fail "more threads than cores that may be used: $(cat "$scratch/log")"

# Kept packed weights: the second start maps them, and writes the same text.
for start in first second; do
  FIRP_CACHE=$scratch/cache "$firp" generate -m "$model" -p "$question" -n 48 --packed-cache \
    2> "$scratch/log" | cmp -s - "$scratch/from-file" ||
    fail "another text at the $start start with --packed-cache: $(cat "$scratch/log")"
done
[ "$(find "$scratch/cache/packed" -type f | wc -l)" -eq 1 ] ||
  fail "kept packed weights: $(ls -R "$scratch/cache")"

# A reader that goes, and a closed standard output, end it quietly.
output=$("$firp" generate -m "$model" -p "$question" -n 48 2>&1 > >(head -c 1 > /dev/null))
grep -qi 'error\|cannot' <<< "$output" && fail "a closed pipe: $output"
"$firp" generate -m "$model" -p "$question" -n 4 >&- 2> "$scratch/log" ||
  fail "closed standard output: $(cat "$scratch/log")"

# Ctrl-C ends the text cleanly.
"$firp" generate -m "$model" -p "$question" -n 4000 --temp 1.5 --min-p 0 --top-p 1 --top-k 0 \
  > "$scratch/text" 2> "$scratch/log" &
pid=$!
for _ in $(seq 200); do
  [ -s "$scratch/text" ] && break
  sleep 0.05
done
kill -INT $pid
wait $pid
status=$?
[ $status -eq 130 ] || fail "Ctrl-C: exit $status"
grep -q 'tokens/s' "$scratch/log" || fail "no statistics after Ctrl-C: $(cat "$scratch/log")"

# Chat keeps the conversation, until /reset.
printf 'My name is Ada.\nWhat is my name?\n' |
  "$firp" chat -m "$model" -n 40 -sys 'Be brief.' 2> "$scratch/log" > "$scratch/chat" || fail "chat"
first=$(head -n 1 "$scratch/chat")
"$firp" generate -m "$model" --raw -n 40 2> /dev/null > "$scratch/text" \
  -p "<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
My name is Ada.<|im_end|>
<|im_start|>assistant
$first<|im_end|>
<|im_start|>user
What is my name?<|im_end|>
<|im_start|>assistant
"
[ "$(tail -n 1 "$scratch/chat")" = "$(cat "$scratch/text")" ] ||
  fail "chat and the conversation written out differ: $(cat "$scratch/chat" "$scratch/text")"
printf 'My name is Ada.\n/reset\nWhat is my name?\n/exit\nnever answered\n' |
  "$firp" chat -m "$model" -n 20 2> /dev/null > "$scratch/reset" || fail "chat /reset"
printf 'What is my name?\n' | "$firp" chat -m "$model" -n 20 2> /dev/null > "$scratch/fresh"
[ "$(tail -n 1 "$scratch/reset")" = "$(tail -n 1 "$scratch/fresh")" ] ||
  fail "/reset leaves something behind: $(cat "$scratch/reset")"
"$firp" chat -m "$model" < /dev/null > "$scratch/text" 2>&1 || fail "chat without input"

# Chat at a terminal: stopped and continued it goes on; Ctrl-C stops an answer, and at the prompt it
# leaves; SIGTERM, and a terminal that goes away, end the program.
python3 - "$firp" "$model" > "$scratch/log" 2>&1 << 'END' || fail "chat at a terminal: $(cat "$scratch/log")"
import os, pty, select, signal, sys, time

class Chat:
    def __init__(self, ignores_hangup=False):
        self.seen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            if ignores_hangup:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execv(sys.argv[1], [sys.argv[1], "chat", sys.argv[2], "--draft", "none", "--temp", "1.5",
                                   "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "4000"])

    def wait_for(self, text):  # what comes after it is left
        end = time.time() + 120
        while text not in self.seen:
            assert time.time() < end, (text, self.seen)
            if select.select([self.terminal], [], [], 1)[0]:
                self.seen += os.read(self.terminal, 4096)
        self.seen = self.seen[self.seen.index(text) + len(text):]

    def say(self, line):
        os.write(self.terminal, line)

    def ask(self):
        self.say(b"Tell me a very long story.\n")
        self.wait_for(b"story.\r\n")
        while len(self.seen) < 20:
            self.seen += os.read(self.terminal, 4096)

    def ended(self):
        end = time.time() + 120
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            assert time.time() < end, "it does not end"
            if select.select([self.terminal], [], [], 0.1)[0] if self.terminal >= 0 else time.sleep(0.1):
                try:
                    os.read(self.terminal, 4096)
                except OSError:
                    pass

    def go_away(self):
        os.close(self.terminal)
        self.terminal = -1

chat = Chat()
chat.wait_for(b"\n> ")
for _ in range(2):
    os.kill(chat.pid, signal.SIGSTOP)
    os.waitpid(chat.pid, os.WUNTRACED)
    os.kill(chat.pid, signal.SIGCONT)
chat.say(b"/help\n")
chat.wait_for(b"/reset")
chat.wait_for(b"\n> ")
chat.ask()
os.kill(chat.pid, signal.SIGSTOP)
os.waitpid(chat.pid, os.WUNTRACED)
os.kill(chat.pid, signal.SIGCONT)
chat.seen += os.read(chat.terminal, 4096)
chat.say(b"\x03")
chat.wait_for(b"\n> ")
chat.say(b"/stats\n")
chat.wait_for(b"tokens/s")
chat.wait_for(b"\n> ")
chat.say(b"\x03")
assert chat.ended() == 0

chat = Chat()
chat.wait_for(b"\n> ")
chat.ask()
os.kill(chat.pid, signal.SIGTERM)
status = chat.ended()
assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM, status

for answering in False, True:
    chat = Chat()
    chat.wait_for(b"\n> ")
    if answering:
        chat.ask()
    chat.go_away()
    status = chat.ended()  # by the signal, unless a read or a write failed before it came
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGHUP, status
    chat = Chat(ignores_hangup=True)
    chat.wait_for(b"\n> ")
    if answering:
        chat.ask()
    chat.go_away()
    status = chat.ended()
    assert os.WIFEXITED(status), status
END

# Chat of a script: Ctrl-C ends it, and not an answer alone.
printf 'Tell me a very long story.\nAnd another one.\n' |
  "$firp" chat -m "$model" -n 4000 --temp 1.5 --top-k 0 --top-p 1 --min-p 0 --draft none \
    > "$scratch/chat" 2> "$scratch/log" &
pid=$!
for _ in $(seq 600); do
  [ -s "$scratch/chat" ] && break
  sleep 0.05
done
kill -INT $pid
wait $pid
status=$?
[ $status -eq 130 ] || fail "Ctrl-C in a script's chat: exit $status, $(cat "$scratch/log")"

# llama.cpp's engine: with --exact the text is plain decoding's there, too.
llama=(-m "$model" --engine llama --exact -p "$question" -n 24)
"$firp" generate "${llama[@]}" --draft none > "$scratch/plain" 2> "$scratch/log" ||
  fail "--engine llama: $(cat "$scratch/log")"
"$firp" generate "${llama[@]}" --draft firp+ngram --tree 8 > "$scratch/drafted" 2> "$scratch/log" ||
  fail "--engine llama --draft firp: $(cat "$scratch/log")"
cmp -s "$scratch/plain" "$scratch/drafted" || fail "--exact gives another text with drafts"
grep -q ' 1\.[3-9][0-9] tokens per\| [2-9]\.[0-9]* tokens per' "$scratch/log" ||
  fail "llama.cpp's engine accepts no drafts: $(cat "$scratch/log")"

# How near a tie is, is measured once: the second start takes what the first one kept.
short=(-m "$model" --engine llama --exact -p "$question" -n 4 --draft ngram)
FIRP_CACHE=$scratch/ties "$firp" generate "${short[@]}" > "$scratch/plain" 2> "$scratch/log" ||
  fail "--exact with an empty cache: $(cat "$scratch/log")"
sed -i 's/"margin": *[0-9.e+-]*/"margin": 1234.5/' "$scratch"/ties/ties/*.json
FIRP_CACHE=$scratch/ties "$firp" generate "${short[@]}" > "$scratch/drafted" 2> "$scratch/log"
grep -q 'ties nearer than 1.23e+03' "$scratch/log" && cmp -s "$scratch/plain" "$scratch/drafted" ||
  fail "--exact does not remember the margin: $(cat "$scratch/log")"

# Across machines: two servers of ggml's RPC, in network namespaces of their own where we may make
# them, else on this host. The heads run there, too. A server that is lost is said, and not waited for.
serve() { # HOST PORT PREFIX...
  "${@:3}" "$firp" rpc-server --host "$1" --port "$2" -t 1 > "$scratch/server-$2" 2>&1 &
  servers+=($!)
}
servers=()
hosts=(127.0.0.1 127.0.0.1)
in_host=('' '')
if ip netns add firp-a 2> /dev/null && ip netns add firp-b && ip link add firp0 type bridge &&
  ip addr add 10.123.0.1/24 dev firp0 && ip link set firp0 up; then
  number=2
  for name in firp-a firp-b; do
    ip link add "$name" type veth peer name eth0 netns $name && ip link set "$name" master firp0 up &&
      ip netns exec $name ip addr add 10.123.0.$number/24 dev eth0 &&
      ip netns exec $name ip link set eth0 up
    number=$((number + 1))
  done
  hosts=(10.123.0.2 10.123.0.3)
  in_host=('ip netns exec firp-a' 'ip netns exec firp-b')
fi
leave_network() {
  kill "${servers[@]}" 2> /dev/null
  ip netns del firp-a 2> /dev/null
  ip netns del firp-b 2> /dev/null
  ip link del firp0 2> /dev/null
}
trap 'leave_network; rm -rf "$scratch"' EXIT
# shellcheck disable=SC2086 # words
serve "${hosts[0]}" 50152 ${in_host[0]}
# shellcheck disable=SC2086
serve "${hosts[1]}" 50153 ${in_host[1]}
for _ in $(seq 100); do
  grep -q transport "$scratch/server-50152" && grep -q transport "$scratch/server-50153" && break
  sleep 0.05
done
remote=(--rpc "${hosts[0]}:50152,${hosts[1]}:50153")
timeout 300 "$firp" generate "${llama[@]}" "${remote[@]}" --draft firp --tree 4 \
  > "$scratch/remote" 2> "$scratch/log" || fail "two RPC servers: $(cat "$scratch/log")"
[ "$(wc -w < "$scratch/remote")" -gt 10 ] || fail "no text from two RPC servers"
for port in 50152 50153; do
  grep -q 'Accepted client' "$scratch/server-$port" || fail "the server at $port had nothing to do"
done
"$firp" generate -m "$model" "${remote[@]}" -p "$question" -n 4000 --draft none --temp 1.5 --top-k 0 \
  > "$scratch/remote" 2> "$scratch/log" &
pid=$!
for _ in $(seq 600); do
  [ -s "$scratch/remote" ] && break
  sleep 0.05
done
kill -KILL "${servers[1]}"
timeout 30 tail --pid=$pid -f /dev/null || fail "a lost RPC server is waited for"
wait $pid
[ $? -eq 1 ] && grep -q '^firp: llama.cpp cannot go on' "$scratch/log" ||
  fail "a lost RPC server: $(cat "$scratch/log")"
leave_network

# demo says that the texts are the same.
"$firp" demo -m "$model" -n 30 2> /dev/null | grep '^The same text' > /dev/null || fail "demo"

# bench: the JSON that programs read.
cat > "$scratch/prompts.jsonl" << 'END'
{"question_id": 1, "category": "writing", "turns": ["Write a limerick.", "Now another one."]}
{"question_id": 2, "category": "qa", "turns": ["Who wrote Hamlet?"]}
{"question_id": 3, "category": "qa", "turns": ["Who painted the Mona Lisa?"]}
END
bench() {
  "$firp" bench -m "$model" --prompts "$scratch/prompts.jsonl" -n 24 --json "$scratch/out.json" \
    "$@" > "$scratch/table" 2> "$scratch/log" || fail "bench $*: $(cat "$scratch/log")"
}
# A fixed tree: the planner may draft nothing on a busy machine.
bench --methods plain,firp --tree 8 --peer llama.cpp
python3 - "$scratch/out.json" << 'END' || fail "the JSON of bench"
import json, sys
report = json.load(open(sys.argv[1]))
assert {"cpu", "cores", "threads", "isa", "model", "model_hash", "heads", "heads_hash",
        "read_bytes_per_second", "int8_multiply_adds_per_second"} <= report["machine"].keys()
assert len(report["runs"]) == 3 * 4
results = report["results"]
assert [(r["category"], r["method"]) for r in results] == [
    (c, m) for c in ("writing", "qa", "all") for m in ("plain", "firp", "llama.cpp", "llama.cpp+ngram")]
for r in results:
    assert r["prompts"] == {"writing": 1, "qa": 2, "all": 3}[r["category"]]
    assert 0 < r["tokens"] <= 24 * (r["prompts"] + (r["category"] != "qa"))
    assert 0 < r["forwards"] <= r["tokens"]
    assert abs(r["tokens_per_second"] - r["tokens"] / r["seconds"]) < 1e-6 * r["tokens_per_second"]
    assert abs(r["tokens_per_forward"] - r["tokens"] / r["forwards"]) < 1e-6
    assert 0 <= r["identical_to_plain"] <= r["prompts"]
    assert r["speedup_over_plain"] > 0
    if not r["method"].startswith("llama.cpp"):
        assert r["identical_to_plain"] == r["prompts"]
    if r["method"] in ("plain", "llama.cpp"):
        assert r["forwards"] == r["tokens"]
    if r["method"] == "plain":
        assert r["speedup_over_plain"] == 1
plain, firp = results[-4:-2]
assert firp["tokens"] == plain["tokens"] and firp["forwards"] < plain["forwards"]
END
[ "$sanitizer" = thread ] && finish
bench --tree 4,32 --limit 1 --turns 1 --temp 0.8 --seed 3
python3 - "$scratch/out.json" << 'END' || fail "the JSON of bench with two trees"
import json, sys
results = json.load(open(sys.argv[1]))["results"]
assert [r["method"] for r in results[-3:]] == ["plain", "firp-tree4", "firp-tree32"]
assert all(r["prompts"] == r["identical_to_plain"] == 2 for r in results[-3:])
END
grep -q '^all ' "$scratch/table" || fail "the table of bench"
grep -q '^planner' "$scratch/table" && fail "a planner beside fixed trees"
# What the planner chose: everything, where it believes that rows are free.
bench --methods plain,firp --tree 0,4 --free-rows --limit 1 --turns 1
python3 - "$scratch/out.json" << 'END' || fail "the JSON of bench with a planner"
import json, sys
of = {r["method"]: r for r in json.load(open(sys.argv[1]))["results"] if r["category"] == "all"}
assert set(of) == {"plain", "firp", "firp-tree4"}, of.keys()
assert all(r["identical_to_plain"] == r["prompts"] for r in of.values()), of
assert of["firp"]["drafted_nodes"] > 16 * of["firp"]["forwards"], of["firp"]
assert 0.3 < of["firp"]["expected_tokens"] / of["firp"]["tokens"] < 3, of["firp"]
assert "expected_tokens" not in of["firp-tree4"]
END
grep -q '^planner' "$scratch/table" || fail "the planner's table: $(cat "$scratch/table")"

# llama.cpp with drafts from the text, on a text that repeats itself: fewer passes, the same text.
echo '{"question": "Say this three times: The red fox ran over the green hill and was gone.", "answer": "-"}' \
  > "$scratch/gsm8k.jsonl"
"$firp" bench -m "$model" --prompts "$scratch/gsm8k.jsonl" --methods plain --peer llama.cpp -n 40 \
  --json "$scratch/out.json" > "$scratch/table" 2> "$scratch/log" || fail "bench: $(cat "$scratch/log")"
python3 - "$scratch/out.json" << 'END' || fail "llama.cpp+ngram: $(cat "$scratch/table")"
import json, sys
plain, peer, ngram = json.load(open(sys.argv[1]))["results"][:3]
assert ngram["method"] == "llama.cpp+ngram" and ngram["category"] == "gsm8k"
assert ngram["tokens"] == peer["tokens"] == peer["forwards"]
assert ngram["forwards"] < 0.8 * ngram["tokens"]
assert ngram["identical_to_plain"] == peer["identical_to_plain"]
END

# Our own prompts, repeated; the page, and what compares.
"$firp" bench -m "$model" --methods plain,firp --limit 1 --turns 1 -n 8 --repeats 2 \
  --json "$scratch/own.json" --report "$scratch/page.html" > "$scratch/table" 2> "$scratch/log" ||
  fail "bench of our own prompts: $(cat "$scratch/log")"
python3 - "$scratch/own.json" "$scratch/page.html" << 'END' || fail "repeats, or the page"
import json, sys
report = json.load(open(sys.argv[1]))
assert report["settings"]["prompts"] == "default.jsonl" and report["settings"]["repeats"] == 2
assert len({r["category"] for r in report["results"]}) == 9
assert all(len(r["repeat_seconds"]) == 2 and r["seconds"] == min(r["repeat_seconds"])
           for r in report["runs"])
all_of = report["results"][-1]
assert all_of["tokens_per_second_spread"] >= 0 and all_of["speedup_error"] > 0, all_of
page = open(sys.argv[2]).read()
assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n") and "passage_qa" in page
assert "http" not in page and "<script" not in page  # nothing beside it is needed
END
"$firp" bench --compare "$scratch/own.json" "$scratch/own.json" > "$scratch/table" || fail "--compare"
grep -q 'Nothing differs beyond the noise' "$scratch/table" || fail "--compare: $(cat "$scratch/table")"
mkdir "$scratch/figures"
echo '<svg xmlns="http://www.w3.org/2000/svg"/>' > "$scratch/figures/a.svg"
echo 'A caption' > "$scratch/figures/a.txt"
"$firp" bench --report "$scratch/both.html" --from "$scratch/own.json" "$scratch/out.json" \
  --figures "$scratch/figures" || fail "--report --from"
[ "$(grep -c '<section>' "$scratch/both.html")" -eq 2 ] && grep -q 'A caption' "$scratch/both.html" ||
  fail "the page of two results"

# Rivals: the same text from each. The model as its own draft model, and its heads as another's.
heads=$(dirname "$0")/../../heads/smollm2-135m-instruct-q4_1.firp.gguf
bench --methods plain,firp,lookahead,early-exit,draft-model -md "$model" \
  --rivals "same=$heads" --limit 1 --turns 1
python3 - "$scratch/out.json" << 'END' || fail "the JSON of bench with rivals: $(cat "$scratch/table")"
import json, sys
report = json.load(open(sys.argv[1]))
of = {r["method"]: r for r in report["results"] if r["category"] == "all"}
assert set(of) == {"plain", "firp", "lookahead", "early-exit", "draft-model", "same"}
for name, r in of.items():
    assert r["identical_to_plain"] == r["prompts"] == 2, r
    assert r["forwards"] <= r["tokens"], r
assert set(report["settings"]["notes"]) == {"early-exit", "same"}
END
grep -q 'leaves out' "$scratch/table" || fail "the table does not tell what was left out"

# bench of the parts.
"$firp" bench --forward "$model" --context 20 --rows 1,3 --peer llama.cpp \
  --json "$scratch/out.json" > "$scratch/table" 2> "$scratch/log" ||
  fail "bench --forward: $(cat "$scratch/log")"
python3 - "$scratch/out.json" << 'END' || fail "the JSON of bench --forward"
import json, sys
report = json.load(open(sys.argv[1]))
machine = report["machine"]
assert report["mode"] == "forward" and machine["read_bytes_per_second"] > 0
assert {"cpu", "model_hash", "heads", "multiply_adds_per_byte", "other_load_cores"} <= machine.keys()
assert not machine["random_weights"]
steps = report["passes"][2]["pseudo_rows"]
assert steps > 0  # its heads were found
assert [(p["token_rows"], p["pseudo_rows"]) for p in report["passes"]] == [
    (1, 0), (3, 0), (0, steps), (1, steps), (3, steps)]
for p in report["passes"]:
    assert 0 < p["best_seconds"] <= p["median_seconds"]
    # A drafting pass reads weights of its own: no limit is known.
    assert (p["limit_seconds"] or 0) > 0 if p["token_rows"] else p["limit_seconds"] is None
    assert (p["llama_cpp_best_seconds"] is None) == (p is not report["passes"][0])
assert report["prefill"]["tokens"] == 512 and report["prefill"]["llama_cpp_best_seconds"] > 0
END
grep -q '^plain decoding: .*llama.cpp' "$scratch/table" || fail "the table of bench --forward"
"$firp" bench --forward --synthetic smollm2-135m:q8_0 --rows 1 --peer llama.cpp \
  --json "$scratch/out.json" > "$scratch/table" 2> "$scratch/log" || fail "bench --synthetic: $(cat "$scratch/log")"
grep -q 'random weights, for speed only' "$scratch/table" || fail "--synthetic does not say so"
grep -q '"random_weights": true' "$scratch/out.json" || fail "the JSON of --synthetic"
grep -q '^plain decoding: .*llama.cpp' "$scratch/table" || fail "no peer beside --synthetic"
"$firp" bench --forward --synthetic smollm2-135m:q4_0 --engine llama --rows 1,2 --context 20 \
  > "$scratch/table" 2> "$scratch/log" || fail "bench --synthetic --engine llama: $(cat "$scratch/log")"
grep -q ', llama.cpp, .*random weights' "$scratch/table" && grep -q '^ *2 .* - *$' "$scratch/table" ||
  fail "the table of --synthetic --engine llama: $(cat "$scratch/table")"
"$firp" bench --load "$model" --json "$scratch/out.json" > "$scratch/table" 2> "$scratch/log" ||
  fail "bench --load: $(cat "$scratch/log")"
python3 - "$scratch/out.json" << 'END' || fail "the JSON of bench --load: $(cat "$scratch/table")"
import json, os, sys
report = json.load(open(sys.argv[1]))
assert all(report[f"{what}_{state}_seconds"] > 0
           for what in ("load", "read") for state in ("cold", "warm"))
# The program itself takes some 20 MB; the file is not held beside its packed form.
rest = report["peak_resident_bytes"] - report["packed_bytes"]
assert 0 < rest and (rest < 30e6 or os.environ.get("FIRP_SANITIZER"))
END

# study: a figure, its numbers and its caption.
"$firp" study mask "$model" -o "$scratch/study" --tokens 60 > "$scratch/text" 2> "$scratch/log" ||
  fail "study mask: $(cat "$scratch/log")"
[ "$(cut -d , -f 1-2 "$scratch/study/mask.csv" | paste -sd ' ')" = \
  'mask,step seen,1 seen,2 seen,3 seen,4 unseen,1 unseen,2 unseen,3 unseen,4' ] ||
  fail "the CSV of study mask: $(cat "$scratch/study/mask.csv")"
grep -q 'at step 4' "$scratch/study/mask.txt" || fail "the caption: $(cat "$scratch/study/mask.txt")"
grep -q 'at step 4' "$scratch/text" || fail "study mask tells nothing: $(cat "$scratch/text")"
for figure in png svg; do
  [ -s "$scratch/study/mask.$figure" ] || fail "no $figure of study mask"
done
llama=("$model" --engine llama -o "$scratch/study" --tokens 60)
"$firp" study similarity "${llama[@]}" > "$scratch/text" 2> "$scratch/log" &&
  grep -q 'for step 4' "$scratch/text" || fail "study similarity --engine llama: $(cat "$scratch/log")"
"$firp" study mask "${llama[@]}" > "$scratch/text" 2> "$scratch/log"
[ $? -eq 1 ] && grep -q 'needs --engine native' "$scratch/log" ||
  fail "study mask --engine llama: $(cat "$scratch/log")"

# inspect.
"$firp" inspect "$model" > "$scratch/text" || fail "inspect"
grep -q 'roofline' "$scratch/text" && grep -q '^loading .* of memory at most' "$scratch/text" &&
  grep -q 'FIRP pays above' "$scratch/text" || fail "inspect: $(cat "$scratch/text")"
"$firp" inspect "$model" --engine llama > "$scratch/text" 2> "$scratch/log" &&
  grep -q '^engine .*llama.cpp' "$scratch/text" && grep -q 'FIRP pays above' "$scratch/text" ||
  fail "inspect --engine llama: $(cat "$scratch/text" "$scratch/log")"
heads=$(find heads -name '*.gguf' | head -n 1)
"$firp" inspect "$heads" -m "$model" | grep 'fits the model *yes$' > /dev/null || fail "inspect of heads"

# Heads that were made with another file of the same shapes.
LC_ALL=C sed 's/b6fbaa6fde5906b8/0123456789abcdef/' "$heads" > "$scratch/sibling.firp.gguf"
"$firp" inspect "$scratch/sibling.firp.gguf" -m "$model" |
  grep 'fits the model *yes: they were made with another file' > /dev/null || fail "inspect of a sibling's heads"
"$firp" generate "$model" -p "$question" -n 48 --draft none > "$scratch/plain" 2> "$scratch/log"
"$firp" generate "$model" -p "$question" -n 48 --tree 4 --heads "$scratch/sibling.firp.gguf" \
  > "$scratch/drafted" 2> "$scratch/log" || fail "a sibling's heads: $(cat "$scratch/log")"
cmp -s "$scratch/plain" "$scratch/drafted" && grep -q 'made with another file of the same shapes' "$scratch/log" &&
  ! grep -q ' 1\.00 tokens per forward' "$scratch/log" || fail "a sibling's heads: $(cat "$scratch/log")"

# serve: the text of generate, and an end by Ctrl-C.
"$firp" serve "$model" --port 0 -n 40 > /dev/null 2> "$scratch/serve" &
server=$!
for _ in $(seq 600); do
  grep -q 'Ctrl-C' "$scratch/serve" && break
  sleep 0.1
done
"$firp" generate "$model" -p "$question" -n 40 2> /dev/null > "$scratch/plain"
python3 - "$scratch/serve" "$question" > "$scratch/served" 2> "$scratch/log" << 'END' || fail "serve: $(cat "$scratch/log" "$scratch/serve")"
import json, re, sys, urllib.request
base = re.search(r"http://\S+", open(sys.argv[1]).read()).group(0)
body = json.dumps({"messages": [{"role": "user", "content": sys.argv[2]}]}).encode()
reply = json.load(urllib.request.urlopen(base + "/v1/chat/completions", body))
print(reply["choices"][0]["message"]["content"])
END
cmp -s "$scratch/plain" "$scratch/served" || fail "serve gives another text: $(cat "$scratch/served")"
kill -INT $server
wait $server || fail "serve ends with $?: $(cat "$scratch/serve")"

# serve: it lets go of the model and its memory, and takes it back.
"$firp" serve "$model" --port 0 -c 4096 -np 4 --no-kv-unified --sleep-idle-seconds 1 -md "$model" \
  > "$scratch/port" 2> "$scratch/serve" &
server=$!
for _ in $(seq 600); do
  grep -q 'Ctrl-C' "$scratch/serve" && break
  sleep 0.1
done
python3 - "$(cat "$scratch/port")" $server "$question" "$sanitizer" > "$scratch/served" 2> "$scratch/log" << 'END' || fail "serve, asleep: $(cat "$scratch/log" "$scratch/serve")"
import json, re, sys, time, urllib.request
base = f"http://127.0.0.1:{sys.argv[1]}"
ask = lambda path, body=None: json.load(urllib.request.urlopen(base + path, body and json.dumps(body).encode()))
def answer():
    body = {"messages": [{"role": "user", "content": sys.argv[3]}], "max_tokens": 40}
    return ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
def resident_mebibytes():
    return int(re.search(r"VmRSS:\s*(\d+)", open(f"/proc/{sys.argv[2]}/status").read())[1]) / 1024
assert ask("/props")["default_generation_settings"]["n_ctx"] == 1024
for _ in range(3):
    text, awake = answer(), resident_mebibytes()
    deadline = time.monotonic() + 60
    while not ask("/props")["is_sleeping"]:
        assert time.monotonic() < deadline, "it does not sleep"
        time.sleep(0.1)
    asleep = resident_mebibytes()
    print(f"{awake:.0f} MiB awake, {asleep:.0f} asleep", file=sys.stderr)
    assert asleep < awake / 3 or sys.argv[4], "it keeps the memory"
print(text)
END
cmp -s "$scratch/plain" "$scratch/served" || fail "serve gives another text: $(cat "$scratch/served" "$scratch/log")"
kill -INT $server
wait $server || fail "serve ends with $?: $(cat "$scratch/serve")"

for verb in '' generate chat serve demo train bench inspect study; do
  # shellcheck disable=SC2086
  "$firp" $verb --help | grep 'firp' > /dev/null || fail "$verb --help"
done
[ "$("$firp" --version | cut -d ' ' -f 1)" = firp ] || fail "--version"

finish
