#!/usr/bin/env python3
"""Is a prompt's text the same with drafts and without, alone and beside seven others, with one thread and two?

usage: same_texts.py FIRP MODEL PROMPTS.jsonl [--tokens N] [--limit N] [--threads N ...]

Each prompt is answered greedily and at temperature 0.8 with a seed. The reference is plain decoding with one
thread, one prompt after the other; every other way to decode must give each of its texts.
"""
import argparse
import itertools
import json
import multiprocessing.pool
import time

from served import Served, exchange, request_bytes, text_of


def bodies(path, limit, tokens):
    with open(path) as file:
        prompts = [json.loads(line)["turns"][0] for line in itertools.islice(file, limit)]
    for number, prompt in enumerate(prompts):
        for sampling in ({"temperature": 0}, {"temperature": 0.8, "seed": number}):
            yield {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, **sampling}


def texts(args, requests, threads, draft, clients):
    """The text of each request, and what one of them was: its prompt may be too long for the context."""
    server = Served(args.firp, "serve", "-m", args.model, "-t", threads, "--draft", draft, "-np", max(clients, 1))

    def ask(body):
        responses, _ = exchange(server.port, [request_bytes("/v1/chat/completions", body)], 1, 600)
        return text_of(responses[0]) if responses else None

    begin = time.monotonic()
    with multiprocessing.pool.ThreadPool(clients) as pool:
        found = pool.map(ask, requests, chunksize=1)
    server.end()
    return found, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--limit", type=int, help="of prompts")
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    args = parser.parse_args()
    requests = list(bodies(args.prompts, args.limit, args.tokens))
    reference, seconds = texts(args, requests, threads=1, draft="none", clients=1)
    print(f"plain, 1 thread, one at a time: {len(requests)} texts in {seconds:.0f} s", flush=True)
    all_same = None not in reference
    for threads, draft, clients in itertools.product(args.threads, ("none", "firp+ngram"), (1, 8)):
        if (threads, draft, clients) == (1, "none", 1):
            continue
        found, seconds = texts(args, requests, threads, draft, clients)
        same = [a is not None and a == b for a, b in zip(found, reference)]
        greedy, sampled = sum(same[0::2]), sum(same[1::2])
        print(f"{draft}, {threads} threads, {clients} at once: the same text for {greedy} of {len(same) // 2} prompts "
              f"greedily, {sampled} of {len(same) // 2} at 0.8; {seconds:.0f} s", flush=True)  # fmt: skip
        all_same = all_same and all(same)
    raise SystemExit(0 if all_same else 1)


if __name__ == "__main__":
    main()
