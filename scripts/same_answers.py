#!/usr/bin/env python3
"""Does every request to `firp serve` have the answer that it has alone, whoever else comes and goes?

usage: same_answers.py FIRP MODEL [--engine native|llama] [--requests N] [--seed N] [--allow-different N] ...

Requests of several lengths, with temperature 0 or a seed, whole or as a stream, are answered one after the
other first. Then 8 clients send them at once, in another order, and many of them go away: before they have
sent all, while the prompt is read, or in the middle of the answer. Each answer that a client waited for must
be the one that the request had alone. At the end a last request must be served at once.
What is given to the server behind `--`, as `-- --exact`, is added to its flags.
"""
import argparse
import json
import multiprocessing
import random
import socket
import time

from served import Served, ask, request_bytes

WORDS = "the garden river under a small house where nobody could see how old stones and green water moved".split()


def requests(seed, count):
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        length = rng.choice((1, 5, 20, 60, 150))
        prompt = " ".join(rng.choice(WORDS) for _ in range(length))
        body = {"max_tokens": rng.choice((1, 8, 24, 48)), "stream": rng.random() < 0.5}
        if rng.random() < 0.5:
            body |= {"temperature": 0}
        else:
            body |= {"temperature": 1, "top_k": 50, "seed": rng.randrange(1 << 30)}
        if rng.random() < 0.5:
            made.append(("/v1/completions", body | {"prompt": prompt}))
        else:
            made.append(("/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}))
    return made


def leave(port, request, rng):
    """Goes away before all is sent, soon after, or in the middle of the answer."""
    data = request_bytes(*request)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            way = rng.randrange(3)
            if way == 0:
                connection.sendall(data[: rng.randrange(len(data))])
                return
            connection.sendall(data)
            if way == 1:
                time.sleep(rng.uniform(0, 0.3))
            elif connection.recv(200):
                time.sleep(rng.uniform(0, 0.1))
    except OSError:
        pass  # the server may close first


def client(port, jobs, taken, found):
    while True:
        with taken.get_lock():
            job = taken.value
            taken.value += 1
        if job >= len(jobs):
            return
        which, request, leaves, seed = jobs[job]
        if leaves:
            leave(port, request, random.Random(seed))
            found.put((which, None, "left"))
        else:
            found.put((which, *ask(port, request)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--engine", choices=("native", "llama"), default="native")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--different-requests", type=int, default=100, help="of which the requests are drawn")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--leave", type=float, default=0.3, help="share of the requests whose client goes away")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048, help="-c")
    parser.add_argument("--at-once", type=float, default=10, help="seconds for the last request, at most")
    parser.add_argument("--allow-different", type=int, default=0, help="answers that may differ")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG")
    args = parser.parse_args()

    rng = random.Random(f"{args.seed} order")
    pool = requests(args.seed, args.different_requests)
    jobs = []
    for _ in range(args.requests):
        which = rng.randrange(len(pool))
        jobs.append((which, pool[which], rng.random() < args.leave, rng.random()))
    server = Served(args.firp, "serve", "-m", args.model, "--engine", args.engine, "-t", args.threads, "-np",
                    args.slots, "-c", args.context, *args.flags)  # fmt: skip
    begin = time.monotonic()
    alone = []
    for request in pool:
        text, reason = ask(server.port, request)
        if text is None:
            raise SystemExit(f"no answer alone to {json.dumps(request)}: {reason}")
        alone.append(text)
    print(f"{len(alone)} requests alone: {time.monotonic() - begin:.0f} s", flush=True)

    begin = time.monotonic()
    taken, found = multiprocessing.Value("q", 0), multiprocessing.Queue()
    clients = [
        multiprocessing.Process(target=client, args=(server.port, jobs, taken, found)) for _ in range(args.clients)
    ]
    for each in clients:
        each.start()
    same = left = different = failed = 0
    for count in range(len(jobs)):
        which, text, reason = found.get(timeout=600)
        if reason == "left":
            left += 1
        elif text is None:
            failed += 1
            print(f"FAULT: no answer to {json.dumps(pool[which])[:300]}: {reason}", flush=True)
        elif text == alone[which]:
            same += 1
        else:
            different += 1
            if different <= 5:
                print(f"different: {json.dumps(pool[which])[:300]}\n  alone    {alone[which]!r}\n  together {text!r}", flush=True)
        if count % 200 == 199:
            print(f"{count + 1} requests, {time.monotonic() - begin:.0f} s", flush=True)
    for each in clients:
        each.join()

    begin = time.monotonic()
    text, reason = ask(server.port, ("/v1/completions", {"prompt": "Hi", "max_tokens": 1, "temperature": 0}))
    last = time.monotonic() - begin
    status, _ = server.end()
    print(f"engine {args.engine}: {same} answers as alone, {different} different, {failed} without an answer, {left} whose "
          f"client left; the last request took {last:.2f} s; the server ended with {status}")  # fmt: skip
    right = different <= args.allow_different and failed == 0 and text is not None and last <= args.at_once
    raise SystemExit(0 if right and status == 0 else 1)


if __name__ == "__main__":
    main()
