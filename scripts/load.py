#!/usr/bin/env python3
"""Many clients at once: tokens a second, time to the first token and between tokens, beside other servers.

usage: load.py MODEL NAME=COMMAND [NAME=COMMAND ...] [--clients 1,2,4,8,16,32] [--prompt 60] [--answer 128]
       load.py MODEL NAME=COMMAND ... --intruder 3000

COMMAND starts a server that has /v1/chat/completions, without model and port: "firp=build/firp serve -np 32 -t 2",
"llama=llama-server -np 32 -t 2 -c 16384 --no-webui". All are started once; for each number of clients they are asked
in turn, and the table has the medians of the rounds. A client asks a new question as soon as it has an answer;
each question is its own, and answers have the same number of tokens (ignore_eos). With --intruder, seven clients
chat, and in the middle of that one sends a prompt of so many tokens. Figures are ratios to the first server, too.
"""
import argparse
import asyncio
import json
import pathlib
import random
import re
import shlex
import signal
import socket
import statistics
import subprocess
import time
import urllib.request

WORDS = "garden river small house nobody could see how old stones green water moved under bright morning light".split()


class Server:
    """One that is started here; its standard error goes to a file, whose end an error shows."""

    def __init__(self, name, command, model):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.name, self.log = name, open(f"/tmp/load-{name}-{self.port}.log", "w+")
        words = [*shlex.split(command), "-m", model, "--port", str(self.port)]
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{name} did not start: {self.log.name}")
                time.sleep(0.1)

    def resident_megabytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+)", status, re.M)[1]) / 1024

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def question(rng, tokens):
    """Of about so many tokens, and nobody else's from its first word on."""
    words = [str(rng.randrange(10**6)), *(rng.choice(WORDS) for _ in range(max(tokens - 40, 1)))]
    return "Go on: " + " ".join(words)


async def ask(server, prompt, answer):
    """The times at which text came, from the sending on, and the usage."""
    body = json.dumps({
        "messages": [{"role": "user", "content": prompt}], "max_tokens": answer, "temperature": 0, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }).encode()  # fmt: skip
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    times, usage = [], None
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        if b'"content":"' in line and b'"content":""' not in line:
            times.append(time.monotonic() - begin)
        if b'"usage":{' in line:
            usage = json.loads(line[6:])["usage"]
    writer.close()
    if usage is None or not times:
        raise SystemExit(f"{server.name} gave no whole answer: {server.log.name}")
    return begin, times, usage


async def chats(server, clients, args, rng, until=None):
    """All clients, each with so many answers, or until a time."""

    async def client(number):
        found = []
        while len(found) < args.answers if until is None else time.monotonic() < until:
            found.append(await ask(server, question(rng, args.prompt), args.answer))
        return found

    begin = time.monotonic()
    found = [each for one in await asyncio.gather(*map(client, range(clients))) for each in one]
    seconds = time.monotonic() - begin
    tokens = sum(usage["completion_tokens"] for _, _, usage in found)
    firsts = [times[0] for _, times, _ in found]
    gaps = [b - a for _, times, _ in found for a, b in zip(times, times[1:])]
    return {
        "tokens/s": tokens / seconds, "first p50": quantile(firsts, 0.5), "first p95": quantile(firsts, 0.95),
        "gap p50": quantile(gaps, 0.5), "gap p95": quantile(gaps, 0.95), "gap max": max(gaps),
        "prompt": statistics.mean(usage["prompt_tokens"] for _, _, usage in found),
    }  # fmt: skip


async def with_intruder(server, args, rng):
    """Seven chats, and a long prompt in the middle of them."""

    async def later():
        await asyncio.sleep(args.seconds / 3)
        return await ask(server, question(rng, args.intruder), 16)

    around = asyncio.create_task(chats(server, 7, args, rng, time.monotonic() + args.seconds))
    _, times, usage = await later()
    return {**await around, "intruder": times[0], "prompt": usage["prompt_tokens"]}


def quantile(values, share):
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def median_of(rounds):
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("servers", nargs="+", metavar="NAME=COMMAND")
    parser.add_argument("--clients", default="1,2,4,8,16,32")
    parser.add_argument("--prompt", type=int, default=60, help="tokens, about")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--answers", type=int, default=2, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--intruder", type=int, help="tokens of a prompt in the middle of seven chats")
    parser.add_argument("--seconds", type=float, default=15, help="of those chats")
    parser.add_argument("--json", help="write the medians there")
    args = parser.parse_args()
    rng = random.Random(1)
    commands = dict(each.split("=", 1) for each in args.servers)
    servers = [Server(name, command, args.model) for name, command in commands.items()]
    results = []
    try:
        for server in servers:
            asyncio.run(ask(server, question(rng, args.prompt), 16))  # nothing is measured cold
        counts = [8] if args.intruder else [int(n) for n in args.clients.split(",")]
        for clients in counts:
            rounds = {server.name: [] for server in servers}
            for turn in range(args.rounds):
                for server in servers if turn % 2 == 0 else servers[::-1]:
                    run = with_intruder(server, args, rng) if args.intruder else chats(server, clients, args, rng)
                    rounds[server.name].append(asyncio.run(run))
            for server in servers:
                row = {"clients": clients, "server": server.name, **median_of(rounds[server.name])}
                results.append(row)
                over = results[-1 - servers.index(server)]["tokens/s"] / row["tokens/s"]
                print(f"{clients:3} {server.name:10} {row['tokens/s']:8.1f} tokens/s ({over:5.2f})"
                      f"   first {row['first p50']:6.3f} s (p95 {row['first p95']:6.3f})"
                      f"   between {1e3 * row['gap p50']:6.1f} ms (p95 {1e3 * row['gap p95']:6.1f}, most {1e3 * row['gap max']:7.1f})"
                      f"   prompts of {row['prompt']:.0f}"
                      + (f", it began after {row['intruder']:.2f} s" if args.intruder else ""), flush=True)  # fmt: skip
        for server in servers:
            print(f"{server.name}: {server.resident_megabytes():.0f} MiB at most")
    finally:
        for server in servers:
            server.end()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
