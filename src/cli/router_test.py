#!/usr/bin/env python3
"""firp serve --models-dir: several models behind one server. Usage: router_test.py FIRP MODEL.gguf"""
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SECONDS = 120  # for what takes much less

firp, model = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()


def chat(name, tokens=4, **fields):
    return {"model": name, "messages": [{"role": "user", "content": "Write a long story about a lighthouse."}],
            "max_tokens": tokens, **fields}  # fmt: skip


def is_there(process):
    """Whether it runs; one that has ended and was not waited for counts as gone."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


class Router:
    def __init__(self, folder, *flags, environment=None):
        self.log = tempfile.TemporaryFile("w+")
        arguments = [firp, "serve", "--models-dir", folder, "--port", "0", "-t", "1", "-c", "2048", *flags]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        self.port = int(self.process.stdout.readline())

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def send(self, path, body=None, headers=None):
        """The connection, and its reply."""
        connection = self.connection()
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, headers or {})
        return connection, connection.getresponse()

    def ask(self, path, body=None, headers=None):
        """The status and the body of a reply."""
        connection, reply = self.send(path, body, headers)
        with contextlib.closing(connection):
            return reply.status, json.loads(reply.read())

    def status(self, name):
        return next(each for each in self.ask("/models")[1]["data"] if each["id"] == name)["status"]

    def value(self, name):
        return self.status(name)["value"]

    def children(self):
        path = pathlib.Path(f"/proc/{self.process.pid}/task")
        found = []
        for task in path.iterdir():
            try:
                found += (task / "children").read_text().split()
            except OSError:
                continue  # the thread has ended
        return [int(child) for child in found]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        status = self.process.wait(SECONDS)
        self.process.stdout.close()
        return status


class SeveralModels(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "one.gguf").symlink_to(model)
        (self.folder / "two").mkdir()
        (self.folder / "two/model.gguf").symlink_to(model)
        (self.folder / "broken.gguf").write_text("no model")

    def start(self, *flags, **options):
        router = Router(self.folder, *flags, **options)
        self.addCleanup(router.log.close)
        self.addCleanup(lambda: router.process.poll() is None and router.end(signal.SIGKILL))
        return router

    def test_each_answers_by_its_name(self):
        router = self.start()
        self.assertEqual([each["id"] for each in router.ask("/v1/models")[1]["data"]], ["broken", "one", "two"])
        self.assertEqual(router.ask("/props")[1]["role"], "router")
        self.assertEqual(router.children(), [])
        for name in ("one", "two"):
            status, reply = router.ask("/v1/chat/completions", chat(name))
            self.assertEqual((status, reply["model"]), (200, name))
            self.assertEqual(router.ask(f"/props?model={name}")[1]["model_alias"], name)
        self.assertEqual(router.value("one"), "loaded")
        self.assertEqual(len(router.children()), 2)
        self.assertIn("two: /v1/chat/completions: 4 tokens", router.said())

    def test_presets(self):
        presets = self.folder / "presets.ini"
        presets.write_text(f"[*]\nn = 3\n[one]\nc = 512\n[mine]\nmodel = {model}\nload-on-startup = true\n")
        router = self.start("--models-preset", presets)
        names = lambda path: [each["id"] for each in router.ask(path)[1]["data"]]
        self.assertEqual(names("/models"), ["broken", "mine", "one", "two"])
        until(lambda: router.value("mine") == "loaded", "a preset loads at the start")
        self.assertEqual([router.value(name) for name in ("one", "two")], ["unloaded", "unloaded"])
        self.assertEqual(router.ask("/v1/chat/completions", chat("mine", 20))[1]["usage"]["completion_tokens"], 3)
        context = lambda name: router.ask(f"/props?model={name}")[1]["default_generation_settings"]["n_ctx"]
        self.assertEqual([context(name) for name in ("one", "mine")], [2048, 2048], "the command line holds")
        presets.write_text(f"[other]\nmodel = {model}\n")
        self.assertEqual(names("/models?reload=1"), ["broken", "mine", "one", "other", "two"], "what runs stays")
        presets.write_text("[other]\n")
        status, reply = router.ask("/models?reload=1")
        self.assertEqual(status, 500)
        self.assertIn("[other] needs model = PATH", reply["error"]["message"])

    def test_names_that_are_not_there(self):
        router = self.start()
        for path, body in (("/v1/chat/completions", chat("three")), ("/models/load", {"model": "three"}),
                           ("/models/unload", {"model": "three"}), ("/props?model=three", None)):  # fmt: skip
            status, reply = router.ask(path, body)
            self.assertEqual((status, reply["error"]["code"]), (404, "model_not_found"), path)
            self.assertIn("broken, one, two", reply["error"]["message"])
        for path, body in (("/tokenize", {"content": "a"}), ("/slots", None)):
            status, reply = router.ask(path, body)
            self.assertEqual((status, reply["error"]["code"]), (400, "missing_required_parameter"), path)
        self.assertEqual(router.ask("/nowhere?model=one")[0], 404)
        self.assertEqual(router.ask("/tokenize", {"model": 3})[0], 400)
        self.assertEqual(router.children(), [])

    def test_a_broken_file_says_why(self):
        router = self.start()
        for _ in range(2):
            status, reply = router.ask("/v1/chat/completions", chat("broken"))
            self.assertEqual(status, 500)
            self.assertIn("not a GGUF file", reply["error"]["message"])
        told = router.status("broken")
        self.assertEqual((told["value"], told["failed"], told["exit_code"]), ("unloaded", True, 1))
        self.assertEqual(router.ask("/tokenize", {"model": "one", "content": "a"})[0], 200)

    def test_load_and_unload(self):
        router = self.start("--no-models-autoload")
        status, reply = router.ask("/v1/chat/completions", chat("one"))
        self.assertEqual((status, reply["error"]["code"]), (400, "model_not_loaded"))
        self.assertEqual(router.ask("/models/load", {"model": "one"}), (200, {"success": True}))
        self.assertEqual(router.ask("/models/load", {"model": "one"})[0], 400)
        self.assertEqual(router.ask("/v1/chat/completions", chat("one"))[0], 200)
        self.assertEqual(router.ask("/tokenize?autoload=true", {"model": "two", "content": "a"})[0], 200)
        child, = (each for each in router.children()
                  if b"--alias=one" in pathlib.Path(f"/proc/{each}/cmdline").read_bytes())  # fmt: skip
        self.assertEqual(router.ask("/models/unload", {"model": "one"}), (200, {"success": True}))
        until(lambda: not is_there(child), "the process ends")
        until(lambda: "failed" not in router.status("one") and router.value("one") == "unloaded", "it is unloaded")
        self.assertEqual(router.ask("/models/unload", {"model": "one"})[0], 400)

    def test_the_least_recently_used_makes_room(self):
        router = self.start("--models-max", "2")
        (self.folder / "three.gguf").symlink_to(model)
        self.assertNotIn("three", str(router.ask("/models")))
        self.assertIn("three", str(router.ask("/models?reload=1")))
        for name in ("one", "two", "one", "three"):
            self.assertEqual(router.ask("/tokenize", {"model": name, "content": "a"})[0], 200)
        self.assertEqual([router.value(name) for name in ("one", "two", "three")], ["loaded", "unloaded", "loaded"])

    def test_one_that_answers_is_not_ended(self):
        router = self.start("--models-max", "1")
        connection, reply = router.send("/v1/chat/completions", chat("one", 150, stream=True))
        reply.readline()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            others = [threads.submit(router.ask, "/v1/chat/completions", chat("two")) for _ in range(3)]
            text = reply.read().decode()
            self.assertIn("data: [DONE]", text)
            self.assertEqual([other.result()[0] for other in others], [200] * 3)
        connection.close()
        self.assertEqual((router.value("one"), router.value("two")), ("unloaded", "loaded"))
        self.assertEqual(router.said().count("two: firp: two at"), 1)

    def test_streams_are_those_of_the_model(self):
        router = self.start()
        whole = router.ask("/v1/chat/completions", chat("one", 24))[1]["choices"][0]["message"]["content"]
        connection, reply = router.send("/v1/chat/completions", chat("one", 24, stream=True))
        with contextlib.closing(connection):
            self.assertEqual(reply.getheader("Content-Type"), "text/event-stream")
            events = [line[6:] for line in reply.read().decode().split("\n") if line.startswith("data: ")]
        self.assertEqual(events.pop(), "[DONE]")
        text = "".join(choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"])
        self.assertEqual(text, whole)

    def test_who_leaves_ends_the_work(self):
        router = self.start()
        router.ask("/models/load", {"model": "one"})
        until(lambda: router.value("one") == "loaded", "it is loaded")
        is_busy = lambda: any(slot["is_processing"] for slot in router.ask("/slots?model=one")[1])
        for stream in (True, False):
            connection = router.connection()
            connection.request("POST", "/v1/chat/completions", json.dumps(chat("one", -1, stream=stream, ignore_eos=True)))
            until(is_busy, "it is answered")
            connection.close()
            until(lambda: not is_busy(), "nothing is written for who has left")
        self.assertEqual(router.value("one"), "loaded")

    def test_a_crash_takes_one_model(self):
        router = self.start()
        for name in ("one", "two"):
            router.ask("/tokenize", {"model": name, "content": "a"})
        child, = (each for each in router.children()
                  if b"--alias=one" in pathlib.Path(f"/proc/{each}/cmdline").read_bytes())  # fmt: skip
        connection, reply = router.send("/v1/chat/completions", chat("one", -1, stream=True, ignore_eos=True))
        reply.readline()
        os.kill(child, signal.SIGKILL)
        with self.assertRaises(http.client.IncompleteRead):
            reply.read()
        connection.close()
        until(lambda: router.status("one").get("exit_code") == 128 + signal.SIGKILL, "the end is noticed")
        self.assertEqual(router.value("two"), "loaded")
        self.assertEqual(router.ask("/tokenize", {"model": "one", "content": "a"})[0], 200)

    def test_the_key_is_the_router_s(self):
        router = self.start("--api-key", "secret")
        self.assertEqual(router.ask("/health")[0], 200)
        self.assertEqual(router.ask("/v1/chat/completions", chat("one"))[0], 401)
        self.assertEqual(router.ask("/models")[0], 401)
        key = {"Authorization": "Bearer secret"}
        self.assertEqual(router.ask("/v1/chat/completions", chat("one"), key)[0], 200)
        self.assertNotIn("secret", str(router.ask("/models", headers=key)))
        # The model's own process has another one, which no list of processes shows.
        child, = router.children()
        self.assertNotIn(b"key", pathlib.Path(f"/proc/{child}/cmdline").read_bytes())
        own = http.client.HTTPConnection("127.0.0.1", int(router.said().split("http://127.0.0.1:")[2].split()[0]))
        own.request("GET", "/models", headers=key)
        self.assertEqual(own.getresponse().status, 401)
        own.close()

    def test_no_process_outlives_it(self):
        for how in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            router = self.start()
            for name in ("one", "two"):
                router.ask("/tokenize", {"model": name, "content": "a"})
            connection, reply = router.send("/v1/chat/completions", chat("one", -1, stream=True, ignore_eos=True))
            reply.readline()
            children = router.children()
            self.assertEqual(len(children), 2)
            status = router.end(how)
            for child in children:
                until(lambda: not is_there(child), f"{child} ends after {how}")
            if how != signal.SIGKILL:
                self.assertEqual(status, 0)
                self.assertIn(b"server_ending", reply.read())
            connection.close()

    def test_one_that_hears_no_signal_is_ended_too(self):
        router = self.start()
        router.ask("/tokenize", {"model": "one", "content": "a"})
        child, = router.children()
        os.kill(child, signal.SIGSTOP)
        router.ask("/models/unload", {"model": "one"})
        until(lambda: not is_there(child), "a stopped process is killed")
        self.assertEqual(router.ask("/tokenize", {"model": "one", "content": "a"})[0], 200)

    def test_folders_and_flags_that_make_no_sense(self):
        for arguments, message in ((["--models-dir", self.folder / "nowhere"], "cannot read the folder of models"),
                                   (["--models-dir", self.folder, "-m", model], "excludes"),
                                   (["--models-dir", self.folder, "-a", "x"], "excludes"),
                                   (["--models-dir", self.folder, "--models-max", "-1"], "--models-max must be"),
                                   ([], "which model?")):  # fmt: skip
            ended = subprocess.run([firp, "serve", "--port", "0", *arguments], capture_output=True, text=True,
                                   timeout=SECONDS)  # fmt: skip
            self.assertNotEqual(ended.returncode, 0)
            self.assertIn(message, ended.stderr)


if not model.exists():
    print(f"skipped: no model at {model} (scripts/setup.sh fetches it)")
    sys.exit(77)
unittest.main(argv=sys.argv[:1] + sys.argv[3:])
