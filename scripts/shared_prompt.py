#!/usr/bin/env python3
"""How soon do requests begin that share a long system prompt?

usage: shared_prompt.py FIRP MODEL [--requests N] [--words N] [-t N]

Each round has a system prompt of its own, of some 1,500 tokens. It asks one request by itself; with another
system prompt N requests at once; then one more with that prompt; and last one with a short prompt. Times are
from sending to the first text. Draws no conclusion from a single round: medians of five are printed.
"""
import argparse
import json
import random
import socket
import statistics
import threading
import time

from served import Served, request_bytes

WORDS = "garden river small house nobody could see how old stones green water moved under bright morning light".split()


def first_text_seconds(port, system, question):
    """Until the first text comes, and how many of the prompt's tokens were there already."""
    body = {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin = time.monotonic()
    data, first = b"", None
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(request_bytes("/v1/chat/completions", body))
        while b"[DONE]" not in data:
            more = connection.recv(65536)
            if not more:
                raise SystemExit(f"the server closed: {data[-300:]!r}")
            data += more
            if first is None and b'"content":"' in data.replace(b'"content":""', b""):
                first = time.monotonic() - begin
    usages = [json.loads(line[6:]) for line in data.decode().split("\n") if line.startswith("data: {")]
    usage = next(each["usage"] for each in usages if each.get("usage"))
    return first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--words", type=int, default=1400)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    server = Served(args.firp, "serve", "-m", args.model, "-t", args.threads, "-np", args.requests, "--draft", "none")
    rng = random.Random(1)
    system_prompt = lambda: "You know: " + " ".join(rng.choice(WORDS) for _ in range(args.words))
    alone, last, ninth, short, read = [], [], [], [], []
    for _ in range(args.rounds):
        alone.append(first_text_seconds(server.port, system_prompt(), "Say hello.")[0])
        system = system_prompt()
        found = []

        def ask(number):
            found.append(first_text_seconds(server.port, system, f"Say the number {number}."))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(args.requests)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        last.append(max(seconds for seconds, _, _ in found))
        read.append(sum(tokens - cached for _, tokens, cached in found))
        question = f"Say {rng.choice(WORDS)} and {rng.choice(WORDS)} {rng.randrange(1000)} times."
        ninth.append(first_text_seconds(server.port, system, question)[0])
        short.append(first_text_seconds(server.port, rng.choice(WORDS), question)[0])
    server.end()
    tokens = found[0][1]
    median = statistics.median
    print(f"prompts of {tokens} tokens, {args.threads} threads; medians of {args.rounds} rounds")
    print(f"one alone begins after      {1e3 * median(alone):7.1f} ms")
    print(f"the last of {args.requests} at once after  {1e3 * median(last):7.1f} ms, "
          f"{median(last) / median(alone):.2f} times that; together they read {median(read)} tokens")  # fmt: skip
    print(f"one more, later, after      {1e3 * median(ninth):7.1f} ms; one with a short prompt {1e3 * median(short):.1f} ms")


if __name__ == "__main__":
    main()
