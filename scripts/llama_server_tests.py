#!/usr/bin/env python3
"""Runs llama.cpp's own tests of llama-server against `firp serve`, and says what fails and why.

usage: llama_server_tests.py --server build/firp [--base REPORT.json] [--report REPORT.json] [TEST ...]

The tests are in the source package of PyPI's llama-cpp-python. They are unpacked into
$FIRP_CACHE/llama-server-tests, and none of them is kept here. One model (SmolLM2) stands in for all of theirs, so
texts and numbers of tokens are not compared (PATCHES). --server is `firp`, or a llama-server, which gives the
base: the tests that can pass at all with this model. With --base FILE, its report, the share of the base that
passes is printed, and what is missing. TEST is a file or a test, as pytest names them: unit/test_basic.py.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree

CACHE = pathlib.Path(os.environ.get("FIRP_CACHE", pathlib.Path.home() / ".cache/firp"))
VERSION = "0.3.36"  # of llama-cpp-python, as in setup.sh
MODEL = CACHE / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = """aiohttp~=3.9.3 filelock~=3.16 numpy~=2.2.6 openai~=2.14.0 prometheus-client~=0.20.0 pytest~=8.3.3
    pytest-timeout~=2.4 requests~=2.32.3 wget~=3.2""".split()
UNPACKED = re.compile(r"[^/]+/vendor/(llama\.cpp/(?:tools/server/tests|models/templates|tools/mtmd/test-1\.jpeg).*)")
TEST_SECONDS = 120

# What is changed in the tests: (file, pattern, replacement).
COUNTS = "prompt_n|predicted_n|cache_n|prompt_tokens|completion_tokens|cached_tokens|n_saved|n_restored"
PATCHES = (
    # Nothing is downloaded.
    ("conftest.py", r"ServerPreset\.load_all\(\)", "pass"),
    # Draft models are the same model; what else would be downloaded (LoRA, images) does not work.
    ("utils.py", r"(def download_file\(.*:\n)", r"\1    return os.environ['LLAMA_TEST_MODEL']\n"),
    # A server that hangs fails one test and not the file.
    ("utils.py", r"DEFAULT_REQUEST_TIMEOUT = 600", "DEFAULT_REQUEST_TIMEOUT = 60"),
    ("utils.py", r"json=data, stream=True\)", "json=data, stream=True, timeout=60)"),
    # Texts are another model's: there has to be one.
    ("utils.py", r"(def match_regex\(.*:\n)", r"\1    return isinstance(text, str)\n"),
    # So are numbers of tokens, where they are compared with a constant or a parameter: there has to be one.
    ("unit/*.py", rf"""assert (\S*\[["'](?:{COUNTS})["']\]) == [\w *]+( *#.*)?$""", r"assert isinstance(\1, int)"),
    ("unit/test_embedding.py", r"(assert len\(\S*\['embedding'\]\)) == 5\b", r"\1 > 1"),
    # A server of several models has them in a folder (MODELS), where no name has a slash.
    ("unit/test_router.py", r'"ggml-org/([\w-]+):\w+"', r'"\1"'),
    # A preset's model is a file, beside the folder of the tests.
    ("unit/test_router.py", r"hf-repo = ggml-org/([\w-]+)", r"model = ../../../../models/\1.gguf"),
    # FIRP tells of its memory while it sleeps, too; what llama-server tells is compared.
    ("unit/test_sleep.py", r"return res\.body$",
     'return "".join(line for line in res.body.splitlines(True) if "llamacpp:" in line)'),
)
# Of a server that is started without a model: all are the one that stands in.
MODELS = "tinygemma3-GGUF", "test-model-stories260K", "test-model-stories260K-infill"
MODEL_FLAGS = ("--hf-repo", "--hf-file", "--model-url", "--model")

# Flags of llama-server that FIRP does without, and how many values they have. The tests need not fail for them.
NOT_NEEDED = {
    # The model is the one that stands in.
    "--hf-repo": 1, "--hf-file": 1, "--model-url": 1, "--offline": 0, "--model": 1,
    # How a pass is cut, and where rows and samplers are: no reply tells.
    "--batch-size": 1, "--ubatch-size": 1, "--cont-batching": 0, "--swa-full": 0, "--backend_sampling": 0,
    # What is kept of old answers, and how short a draft may be: the same.
    "--cache-ram": 1, "--no-cache-idle-slots": 0, "--spec-draft-n-min": 1,
    # There is one way to render a template, but for those with a name.
    "--no-jinja": 0,
}  # fmt: skip


# What llama-server does where no flag says otherwise, and FIRP does where a flag says so.
LLAMA_DEFAULTS = "--cors-headers", "*", "--cors-credentials"


def firp_arguments(firp, arguments):
    """llama-server's arguments as firp's; ends the program if firp lacks one."""
    help_text = subprocess.run([firp, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_text))
    translated = ["serve", *model_arguments(arguments), *LLAMA_DEFAULTS]
    if "--parallel" in arguments and "--kv-unified" not in arguments:
        translated.append("--no-kv-unified")  # llama-server's default, once the number of slots is given
    left = collections.deque(arguments)
    while left:
        flag = left.popleft()
        values = []
        while left and not re.match(r"--?[a-z]", left[0]):
            values.append(left.popleft())
        if flag in NOT_NEEDED and len(values) == NOT_NEEDED[flag]:
            continue
        if flag not in known:
            raise SystemExit(f"flag missing: {flag}")
        translated += [flag, *values]
    return translated


def model_arguments(arguments):
    """The model that stands in, or the folder of them for a server that has none and loads what requests name."""
    if any(flag in MODEL_FLAGS for flag in arguments):
        return ["--model", str(MODEL)]
    return ["--models-dir", os.environ["LLAMA_TEST_MODELS"]]


def llama_arguments(arguments):
    """The same with the model that stands in."""
    translated = []
    left = collections.deque(arguments)
    while left:
        flag = left.popleft()
        if flag in MODEL_FLAGS:
            left.popleft()
        else:
            translated.append(flag)
    return translated + model_arguments(arguments)


def be_server(server, arguments):
    """What the tests start instead of the server."""
    if pathlib.Path(server).name == "firp":
        translated = firp_arguments(server, arguments)
    else:
        translated = llama_arguments(arguments)
    os.execv(server, [server, *translated])


def unpack(folder):
    """The tests and what they read, as they are in the package."""
    say("fetching the tests")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([*pip, "--dest", work, f"llama-cpp-python=={VERSION}"], check=True)
        with tarfile.open(next(pathlib.Path(work).glob("*.tar.gz"))) as package:
            for member in package:
                if found := UNPACKED.fullmatch(member.name):
                    member.name = found[1]
                    package.extract(member, work)
        (pathlib.Path(work) / "llama.cpp").rename(folder / "llama.cpp")


def patch(tests):
    for name, pattern, replacement in PATCHES:
        changed = 0
        for file in tests.glob(name):
            text, count = re.subn(pattern, replacement, file.read_text(), flags=re.M)
            file.write_text(text)
            changed += count
        if not changed:
            raise SystemExit(f"nothing to change in {name}: {pattern}")


def run_file(python, tests, name, environment, work):
    """The outcome of each test of a file: {test: (passed, failed or skipped, why)}."""
    result = work / "result.xml"
    result.unlink(missing_ok=True)
    options = ["-m", "not slow", f"--timeout={TEST_SECONDS}", "--tb=short", f"--junitxml={result}", "-q", "-p",
               "no:cacheprovider", "-o", "junit_family=xunit1", "-o", "junit_logging=all"]  # fmt: skip
    with open(work / "log", "w") as log:
        subprocess.run([python, "-m", "pytest", *options, *shlex.split(name)], cwd=tests, env=environment, stdout=log,
                       stderr=log)  # fmt: skip
    if not result.exists():
        raise SystemExit((work / "log").read_text()[-2000:])
    return dict(outcome(case) for case in xml.etree.ElementTree.parse(result).iter("testcase"))


def outcome(case):
    test = f"{pathlib.Path(case.get('file')).name}::{case.get('name')}"
    problem = next((case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None)
    if problem is None:
        return test, ("passed", "")
    if problem.tag == "skipped":
        return test, ("skipped", problem.get("message", ""))
    output = "".join(each.text or "" for each in case if each.tag.startswith("system-"))
    return test, ("failed", why(problem.get("message", "") + "\n" + (problem.text or ""), output))


def why(trace, output):
    """A line that says why a test failed, beginning with the group that it is of."""
    if missing := re.search(r"flag missing: (\S+)", output):
        return f"flag missing: {missing[1]}"
    first = trace.strip().splitlines()[0]
    asserted = re.findall(r"^ +(assert .+)$", trace, re.M)
    line = asserted[-1] if asserted else first
    if "Timeout" in first:
        return f"timeout: {line}"
    # What the server said last; while it starts it says that it loads the model.
    messages = [message for _, message in re.findall(r"""["']message["']: (["'])(.*?)(?<!\\)\1""", output + trace)]
    message = next((each for each in reversed(messages) if each != "Loading model"), "")
    if message == "File Not Found" or message.startswith("there is no "):
        return f"endpoint missing: {message}"
    if message and ("status_code" in line or "ServerError" in first or "Error code: " in first):
        return f"refused: {message}"
    if "died with return code" in first:
        said = [each for each in output.splitlines() if each.strip() and not each.startswith("---")]
        return f"the server ended: {said[-1]}"
    return f"another reply: {line}" + (f" [{first}]" if line != first else "")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, type=pathlib.Path)
    parser.add_argument("--base", type=pathlib.Path, help="the report of a llama-server")
    parser.add_argument("--report", type=pathlib.Path, default="llama-server-tests.json")
    parser.add_argument("tests", nargs="*", metavar="TEST")
    args = parser.parse_args()

    folder = CACHE / "llama-server-tests"
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "venv/bin/python"
    if not python.exists():
        say("installing what the tests use")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    if not (folder / "llama.cpp").exists():
        unpack(folder)
    with tempfile.TemporaryDirectory(prefix="llama-server-tests-") as work:
        work = pathlib.Path(work)
        shutil.copytree(folder / "llama.cpp", work / "llama.cpp")
        tests = work / "llama.cpp/tools/server/tests"
        patch(tests)
        (tests / "tmp").mkdir(exist_ok=True)
        server = work / "server"
        server.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(os.path.abspath(__file__))} '
                          f'--be-server {shlex.quote(str(args.server.resolve()))} "$@"\n')  # fmt: skip
        server.chmod(0o755)
        models = work / "models"
        models.mkdir()
        for name in MODELS:
            (models / f"{name}.gguf").symlink_to(MODEL)
        environment = os.environ | {"LLAMA_SERVER_BIN_PATH": str(server), "LLAMA_TEST_MODEL": str(MODEL),
                                    "LLAMA_TEST_MODELS": str(models),
                                    "LLAMA_CACHE": str(work), "PORT": str(free_port())}  # fmt: skip
        outcomes = {}
        for name in args.tests or sorted(f"unit/{file.name}" for file in tests.glob("unit/test_*.py")):
            found = run_file(python, tests, name, environment, work)
            say(f"{name}: {sum(state == 'passed' for state, _ in found.values())} of {len(found)} passed")
            outcomes |= found
            args.report.write_text(json.dumps(outcomes, indent=1) + "\n")
    tell(outcomes, json.loads(args.base.read_text()) if args.base else None)


def tell(outcomes, base):
    """The failed tests by their reasons; with a base those alone that pass there."""
    wanted = [test for test in outcomes if base is None or base.get(test, [""])[0] == "passed"]
    groups = collections.defaultdict(list)
    for test in wanted:
        state, reason = outcomes[test]
        if state == "failed":
            groups[reason].append(test)
    for reason, tests in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        print(f"{len(tests):3} {reason}")
        for test in tests:
            print(f"      {test}")
    counts = collections.Counter(state for state, _ in outcomes.values())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if base is not None:
        passed = sum(outcomes[test][0] == "passed" for test in wanted)
        print(f"{passed} of the {len(wanted)} that llama-server passes, {100 * passed / max(len(wanted), 1):.1f} %")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be-server"]:
        be_server(sys.argv[2], sys.argv[3:])
    main()
