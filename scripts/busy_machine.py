#!/usr/bin/env python3
"""Plain decoding beside programs that take all the cores they get: tokens/s with 1 thread, 2, ...

usage: busy_machine.py MODEL.gguf FIRP [FIRP ...] [--busy 0,1,2] [--threads 1,2] [--rounds 3]

Several FIRP (builds of it) are run in turn. The best fixed number of threads is the best column of a program
that does not choose; what chooses should be within a tenth of it.
"""
import argparse
import re
import statistics
import subprocess
import sys
import time


def tokens_per_second(firp, model, threads):
    done = subprocess.run([firp, "generate", "-m", model, "--draft", "none", "-n", "600", "-t", str(threads),
                           "-p", "Write a very long story about the sea."], capture_output=True, text=True)
    found = re.search(r"([\d.]+) tokens/s", done.stderr)
    if done.returncode != 0 or not found:
        sys.exit(f"busy_machine.py: {firp} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return float(found[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("firp", nargs="+")
    parser.add_argument("--busy", default="0,1,2")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    threads = [int(n) for n in args.threads.split(",")]
    print(f"{'busy':>5}  {'program':40}" + "".join(f"{f'{n} threads':>12}" for n in threads))
    for busy in map(int, args.busy.split(",")):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            time.sleep(0.5)
            runs = {}
            for _ in range(args.rounds):
                for firp in args.firp:
                    for n in threads:
                        runs.setdefault((firp, n), []).append(tokens_per_second(firp, args.model, n))
        finally:
            for other in others:
                other.kill()
        for firp in args.firp:
            print(f"{busy:5}  {firp:40}" + "".join(f"{statistics.median(runs[firp, n]):12.1f}" for n in threads),
                  flush=True)


if __name__ == "__main__":
    main()
