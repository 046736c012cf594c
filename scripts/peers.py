#!/usr/bin/env python3
"""Programs that are not linked in, in turn with ours on the same file: T(n), one token of each of n sequences.

usage: peers.py FIRP MODEL.gguf NAME=PROGRAM [NAME=PROGRAM ...] [--sessions 1,2,4,8,16] [-t 2] [--rounds 5]

PROGRAM is a llama-batched-bench, as llama.cpp and ik_llama.cpp build it, with flags of its own where it
has some: "ik=ik_llama.cpp/build/bin/llama-batched-bench -rtr". Each sequence has a context of its own on
both sides. A round runs every program once, one after the other; the table has the medians of the rounds.
"""
import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"peers.py: {shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def ours(args):
    """Seconds of a pass by the number of sequences."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "sessions.json")
        run([args.firp, "bench", args.model, "--sessions", args.sessions, "-t", str(args.threads),
             "-n", str(args.tokens), "--json", str(path)])
        return {each["sessions"]: each["sessions"] / each["plain_tokens_per_second"]
                for each in json.loads(path.read_text())["results"]}


def peer(program, args):
    sessions = [int(n) for n in args.sessions.split(",")]
    context = max(sessions) * (args.prompt + args.tokens)
    output = run([*program, "-m", args.model, "-c", str(context), "-b", "512", "-t", str(args.threads),
                  "-npp", str(args.prompt), "-ntg", str(args.tokens), "-npl", args.sessions])
    seconds = {}
    for line in output.splitlines():  # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | ...
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 10 and cells[0].isdigit():
            seconds[int(cells[2])] = float(cells[6]) / int(cells[1])
    if sorted(seconds) != sorted(sessions):
        sys.exit(f"peers.py: {program[0]} wrote no table of {args.sessions} sequences:\n{output[-2000:]}")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("peers", nargs="+", metavar="NAME=PROGRAM")
    parser.add_argument("--sessions", default="1,2,4,8,16")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a peer's prompts; ours are those of bench")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    programs = {}
    for each in args.peers:
        name, equals, command = each.partition("=")
        if not equals or not command:
            parser.error(f"'{each}' is not NAME=PROGRAM")
        programs[name] = shlex.split(command)
    rounds = {"firp": [], **{name: [] for name in programs}}
    for _ in range(args.rounds):
        rounds["firp"].append(ours(args))
        for name, program in programs.items():
            rounds[name].append(peer(program, args))
    counts = [int(n) for n in args.sessions.split(",")]
    medians = {name: [statistics.median(each[n] for each in found) for n in counts] for name, found in rounds.items()}
    print(f"{'T(n), ms (T(n)/T(1))':24}" + "".join(f"{n:>16}" for n in counts))
    for name, times in medians.items():
        print(f"{name:24}" + "".join(f"{1e3 * t:9.2f} ({t / times[0]:.2f})" for t in times))
    for name in programs:
        print(f"{'firp over ' + name:24}" + "".join(f"{p / f:15.2f}x" for p, f in zip(medians[name], medians["firp"])))


if __name__ == "__main__":
    main()
