#!/usr/bin/env python3
"""Many clients use `firp serve` for a long time, in every way at once: does it stay right, up, and as large as it was?

usage: soak.py FIRP MODEL [--minutes N] [--clients N] [--seed N] [-- FLAG ...]

A pool of requests (chats, texts, Anthropic's and OpenAI's other forms, streams, tools, schemas, grammars, seeds, samplers,
long prompts) is answered first, one after the other. Then the clients send them in random order, and between them
requests that they leave in the middle, and malformed ones (hostile_requests.py). What counts as a fault: an answer that is
not the one that the request had alone, a malformed request that is answered as it must not be, memory or descriptors that
grow after the first quarter, and a server that ends before it is asked to, or with another status than 0. FIRP may be a
build with sanitizers. A line each minute tells how far it is. What stands behind `--` is added to the server's flags.
"""
import argparse
import json
import multiprocessing
import os
import queue
import random
import statistics
import tempfile
import time

import hostile_requests
from clients import SAILOR, TEMPLATE, WEATHER, WEATHER_PARAMETERS
from same_answers import WORDS, leave
from served import Served, ask

CHAT, TEXT, RESPONSES, MESSAGES, LLAMA = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/completion")  # fmt: skip
GROWTH_MIB = 48  # that memory may have after the first quarter: what malloc keeps, and contexts that differ in size
WARM = 0.25  # of the time

SAMPLERS = (
    {"temperature": 0},
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1, "top_k": 20, "min_p": 0.05},
    {"temperature": 0.7, "repeat_penalty": 1.2, "repeat_last_n": 32},
    {"temperature": 1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 1, "typical_p": 0.8},
    {"temperature": 1.2, "top_n_sigma": 1.5},
    {"temperature": 1, "xtc_probability": 0.5, "xtc_threshold": 0.1},
    {"temperature": 0.9, "dynatemp_range": 0.4},
    {"temperature": 0, "dry_multiplier": 0.8, "dry_allowed_length": 2},
    {"temperature": 1, "mirostat": 2, "mirostat_tau": 4},
    {"temperature": 0, "logit_bias": {"30": -5}},
)  # fmt: skip
GRAMMAR = 'root ::= "The " ("red" | "green" | "blue") " one has " [0-9]{1,3} " " [a-z]{3,8} "s."'


def one_request(rng):
    """A path and a body whose answer is the same each time."""
    words = lambda count: " ".join(rng.choice(WORDS) for _ in range(count))
    prompt = words(rng.choice((2, 10, 10, 40, 150, 1200)))
    most = rng.choice((4, 16, 40))
    body = rng.choice(SAMPLERS) | {"seed": rng.randrange(1 << 30), "stream": rng.random() < 0.5}
    if rng.random() < 0.2:
        body["stop"] = [rng.choice(WORDS)]
    messages = [{"role": "user", "content": prompt}]
    if rng.random() < 0.4:
        messages.insert(0, {"role": "system", "content": "You know all about gardens and rivers. Be brief."})
    path = rng.choice((CHAT, CHAT, CHAT, TEXT, TEXT, RESPONSES, MESSAGES, LLAMA))
    if path == CHAT:
        body |= {"messages": messages, "max_tokens": most}
        way = rng.randrange(6)
        if way == 0:
            body |= {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 80}
            body.pop("stop", None)
        elif way == 1:
            body |= {"response_format": {"type": "json_schema", "json_schema": {"schema": SAILOR}}, "max_tokens": 80}
        elif way == 2:
            body |= {"logprobs": True, "top_logprobs": 3}
        elif way == 3:
            body |= {"n": 2}
    elif path == TEXT:
        body |= {"prompt": prompt, "max_tokens": most}
        way = rng.randrange(4)
        if way == 0:
            body |= {"grammar": GRAMMAR}
        elif way == 1:
            body |= {"logprobs": 2, "echo": True, "stream": False}
    elif path == RESPONSES:
        body |= {"input": prompt, "max_output_tokens": most}
        body.pop("stop", None)
    elif path == MESSAGES:
        body |= {"messages": [messages[-1]], "max_tokens": most}
        if rng.random() < 0.3:
            body |= {"tools": [{"name": "get_weather", "input_schema": WEATHER_PARAMETERS}],
                     "tool_choice": {"type": "any"}, "max_tokens": 80}  # fmt: skip
    else:
        body |= {"prompt": prompt, "n_predict": most, "n_probs": rng.choice((0, 2))}
    return path, body


NOT_THE_ANSWER = {"id", "call_id", "item_id", "created", "created_at", "completed_at", "timings", "usage", "drafted",
                  "tokens_cached", "tokens_evaluated", "id_slot", "obfuscation"}  # fmt: skip


def cleaned(value):
    if isinstance(value, dict):
        return {name: cleaned(each) for name, each in value.items() if name not in NOT_THE_ANSWER}
    return [cleaned(each) for each in value] if isinstance(value, list) else value


def streamed(data):
    """What the events of a stream say together, however it was cut into them."""
    texts, ends = {}, []

    def add(key, text):
        texts[key] = texts.get(key, "") + (text or "")

    for event in data.decode("utf-8", "replace").split("\n\n"):
        line = next((line[6:] for line in event.split("\n") if line.startswith("data: ")), None)
        if line is None or line == "[DONE]":
            ends += ["[DONE]"] if line else []
            continue
        said = json.loads(line)
        if "error" in said:
            return None
        for choice in said.get("choices", ()):
            delta = choice.get("delta", {})
            add((choice["index"], "text"), choice.get("text") or delta.get("content"))
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                add((choice["index"], call["index"]), function.get("name", "") + function.get("arguments", ""))
            if choice["finish_reason"]:
                ends.append(choice["finish_reason"])
        if isinstance(said.get("content"), str):  # llama.cpp's
            add("text", said["content"])
            ends += [said["stop_type"]] if said.get("stop") else []
        delta = said.get("delta")
        if isinstance(delta, str):  # of responses
            add(said["output_index"], delta)
        elif isinstance(delta, dict):  # of messages
            add(said.get("index"), delta.get("text") or delta.get("partial_json"))
            ends += [delta["stop_reason"]] if "stop_reason" in delta else []
        if said.get("type") in ("response.completed", "response.incomplete", "message_stop"):
            ends.append(said["type"])
    return [sorted(map(list, texts.items()), key=str), sorted(ends)] if ends else None


def essence(response):
    """What must be the same each time; None where there is no answer."""
    if response.status != 200 or not response.complete:
        return None
    if (response.header("content-type") or "").startswith("text/event-stream"):
        return streamed(response.body)
    return cleaned(response.json())


def difference(alone, now):
    """Both from where they part."""
    a, b = json.dumps(alone), json.dumps(now)
    at = max(0, len(os.path.commonprefix([a, b])) - 40)
    return f"  alone ...{a[at : at + 300]}\n  now   ...{b[at : at + 300]}"


MALFORMED = (hostile_requests.json_mutated, hostile_requests.other_body, hostile_requests.framing, hostile_requests.raw)


def client(port, seed, args, pool, alone, ended, found):
    """Puts (kind, what is wrong or None) into `found` for each request."""
    rng = random.Random(seed)
    while not ended.is_set():
        way = rng.random()
        if way < args.leave:
            leave(port, rng.choice(pool), rng)
            found.put(("left", None))
        elif way < args.leave + args.malformed:
            case = rng.choice(MALFORMED)(rng, None)
            wrong, _ = hostile_requests.send(port, case, False, args.patience)
            found.put(("malformed", wrong and f"{case.name}: {wrong}"))
        else:
            which = rng.randrange(len(pool))
            answer, said = ask(port, pool[which], args.patience, essence)
            wrong = None
            if answer is None:
                wrong = f"no answer to {pool[which][0]} {json.dumps(pool[which][1])[:300]}: {said}"
            elif answer != alone[which]:
                wrong = (f"another answer to {pool[which][0]} {json.dumps(pool[which][1])[:300]}:\n"
                         + difference(alone[which], answer))  # fmt: skip
            found.put(("same", wrong))


def slope(samples):
    """MiB a minute."""
    if len(samples) < 3:
        return 0.0
    times, values = zip(*samples)
    return statistics.linear_regression(times, values).slope * 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pool", type=int, default=60, help="different requests")
    parser.add_argument("--leave", type=float, default=0.15, help="share of the requests whose client goes away")
    parser.add_argument("--malformed", type=float, default=0.15, help="share of the malformed ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=8192, help="-c")
    parser.add_argument("--patience", type=float, default=600, help="seconds for an answer")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG")
    args = parser.parse_args()
    if not os.path.exists(args.model):
        print(f"skipped: no model at {args.model} (scripts/setup.sh fetches it)")
        raise SystemExit(77)
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write(TEMPLATE)
        template.flush()
        # What a malformed request leaves unsaid must not write for minutes.
        server = Served(args.firp, "serve", "-m", args.model, "-t", args.threads, "-np", args.slots, "-c", args.context,
                        "-n", 128, "--chat-template-file", template.name, *args.flags)  # fmt: skip
    raise SystemExit(soak(args, server))


def soak(args, server):
    rng = random.Random(args.seed)
    pool = [one_request(rng) for _ in range(args.pool)]
    begin = time.monotonic()
    alone = []
    for request in pool:
        answer, said = ask(server.port, request, args.patience, essence)
        if answer is None:
            server.end()
            raise SystemExit(f"no answer alone to {request[0]} {json.dumps(request[1])[:500]}: {said}")
        alone.append(answer)
    print(f"{len(pool)} requests alone: {time.monotonic() - begin:.0f} s", flush=True)

    descriptors_before = server.descriptors()
    ended, found = multiprocessing.Event(), multiprocessing.Queue()
    clients = [
        multiprocessing.Process(target=client, args=(server.port, f"{args.seed} {i}", args, pool, alone, ended, found))
        for i in range(args.clients)
    ]
    for each in clients:
        each.start()
    begin = time.monotonic()
    counts = {"same": 0, "left": 0, "malformed": 0}
    faults, samples = [], []
    minutes_told, died = 0, False
    while not died and (any(each.is_alive() for each in clients) or not found.empty()):
        try:
            kind, wrong = found.get(timeout=0.5)
            counts[kind] += wrong is None
            if wrong:
                faults.append(wrong)
                if len(faults) <= 10:
                    print("FAULT:", wrong[:2000], flush=True)
        except queue.Empty:
            pass
        now = time.monotonic() - begin
        died = server.process.poll() is not None
        if not died and not ended.is_set() and (not samples or now - samples[-1][0] >= 1):
            samples.append((now, server.status("VmRSS") / 1024, server.descriptors()))
        if now >= 60 * args.minutes:
            ended.set()
        if now >= 60 * (minutes_told + 1) and samples:
            minutes_told += 1
            print(f"{minutes_told:4} min  {counts['same']:6} answers as alone  {counts['left']:5} left  "
                  f"{counts['malformed']:5} malformed  {len(faults):3} faults  {samples[-1][1]:6.0f} MiB  "
                  f"{samples[-1][2]:3} descriptors", flush=True)  # fmt: skip
    for each in clients:
        each.join(timeout=5)
        each.terminate()

    if died:
        faults.append(f"the server ended with {server.process.returncode}:\n{server.tail()}")
    warm = [sample for sample in samples if sample[0] >= WARM * 60 * args.minutes]
    print("     s     MiB  descriptors")
    for i in range(0, len(samples), max(1, len(samples) // 10)):
        print(f"{samples[i][0]:6.0f}  {samples[i][1]:6.1f}  {samples[i][2]:5}")
    grown = slope([(seconds, mib) for seconds, mib, _ in warm])
    minutes = (warm[-1][0] - warm[0][0]) / 60 if warm else 0
    print(f"after the first {WARM:.0%} of the time memory grows by {grown:+.2f} MiB a minute")
    if grown * minutes > GROWTH_MIB:
        faults.append(f"memory grew by {grown * minutes:.0f} MiB in {minutes:.1f} minutes; {GROWTH_MIB} are let pass")
    if not died:
        time.sleep(3)  # the last connections close
        descriptors = server.descriptors()
        print(f"descriptors: {descriptors_before} before, {descriptors} after")
        if descriptors > descriptors_before + 2:
            faults.append(f"{descriptors - descriptors_before} descriptors more than before")
        status, _ = server.end()
        if status != 0:
            faults.append(f"the server ended with {status}:\n{server.tail()}")
    print(f"{sum(counts.values())} requests: {counts['same']} answers as alone, {counts['left']} whose client left, "
          f"{counts['malformed']} malformed; {len(faults)} faults" + (":" if faults else ""))  # fmt: skip
    for fault in faults[:20]:
        print(" ", fault[:1000])
    return 1 if faults else 0


if __name__ == "__main__":
    main()
