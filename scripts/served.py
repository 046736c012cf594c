"""What the scripts that try `firp serve` share: the program as a child process, and HTTP by hand."""
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time


class Served:
    """`firp serve` at a free port of loopback."""

    def __init__(self, *command):
        self.log = tempfile.NamedTemporaryFile("r", errors="replace", prefix="firp-serve-")
        with open(self.log.name, "w") as log:
            self.process = subprocess.Popen([*map(str, command), "--port", "0"], stderr=log, stdout=log)
        self.pid = self.process.pid
        deadline = time.monotonic() + 120
        while not (found := re.search(r" at http://\S*:(\d+)\b", self.tail())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{self.tail()}")
            time.sleep(0.02)
        self.port = int(found[1])

    def tail(self):
        with open(self.log.name, errors="replace") as log:
            log.seek(max(0, os.path.getsize(self.log.name) - 2000))
            return log.read()

    def status(self, name):
        """A number of /proc/PID/status."""
        with open(f"/proc/{self.pid}/status") as status:
            return int(re.search(rf"^{name}:\s+(\d+)", status.read(), re.M)[1])

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def end(self, patience=30):
        """SIGTERM. What it ended with (None: not in time, it is killed), and the seconds that it took."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None, patience
        return self.process.returncode, time.monotonic() - begin


class Response:
    def __init__(self, status, version, headers, body, complete):
        self.status, self.version, self.headers, self.body = status, version, headers, body
        self.complete = complete

    def header(self, name):
        return next((value for key, value in self.headers if key == name.lower()), None)

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __repr__(self):
        cut = "" if self.complete else " (cut off)"
        return f"{self.status}{cut} {self.body[:300]!r}"


class Malformed(Exception):
    """What the server sent is not HTTP/1."""


def unchunk(data):
    """The body, what follows it, and whether it is complete."""
    body = b""
    while True:
        line, found, rest = data.partition(b"\r\n")
        if not found:
            return body, b"", False
        if not re.fullmatch(rb"[0-9a-fA-F]+", line):
            raise Malformed(f"chunk size {line[:40]!r}")
        size = int(line, 16)
        if size == 0:
            trailer, found, rest = (b"\r\n" + rest).partition(b"\r\n\r\n")
            return body, rest, bool(found)
        if len(rest) < size + 2:
            return body + rest[:size], b"", False
        if rest[size : size + 2] != b"\r\n":
            raise Malformed("no line end behind a chunk")
        body, data = body + rest[:size], rest[size + 2 :]


def parse(data, closed, head=False):
    """The responses in the bytes; the last one may not be complete."""
    responses = []
    while data:
        top, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            if closed or not b"HTTP/1.1 ".startswith(data[:9]):
                raise Malformed(f"no end of headers in {data[:200]!r}")
            break
        line, *lines = top.split(b"\r\n")
        if not (begin := re.fullmatch(rb"HTTP/1\.([01]) (\d{3})( .*)?", line)):
            raise Malformed(f"status line {line[:200]!r}")
        status = int(begin[2])
        headers = []
        for each in lines:
            name, colon, value = each.partition(b":")
            if not colon or not re.fullmatch(rb"[!-9;-~]+", name):
                raise Malformed(f"header {each[:200]!r}")
            headers.append((name.decode().lower(), value.strip().decode("latin-1")))
        named = dict(headers)
        if status < 200:
            data = rest
            continue
        if head or status in (204, 304):
            body, data, complete = b"", rest, True
        elif "chunked" in named.get("transfer-encoding", ""):
            body, data, complete = unchunk(rest)
        elif "content-length" in named:
            size = int(named["content-length"])
            body, data, complete = rest[:size], rest[size:], len(rest) >= size
        else:
            body, data, complete = rest, b"", closed
        responses.append(Response(status, int(begin[1]), headers, body, complete))
    return responses


HALF_CLOSE, AWAIT_100 = "closes its side", "waits for 100"


def exchange(port, steps, answers=1, patience=60.0, head=False, wait=0.25):
    """Sends bytes, pauses (numbers) and HALF_CLOSE / AWAIT_100, and reads until there are that many
    answers (0: what comes within `wait` seconds, and soon after a first answer), the server closes, or
    the time is over. Returns the responses, and whether the server closed."""
    data, closed = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for step in steps:
                if step == HALF_CLOSE:
                    connection.shutdown(socket.SHUT_WR)
                elif step == AWAIT_100:
                    connection.settimeout(1)
                    try:
                        data += connection.recv(65536)
                    except TimeoutError:
                        pass
                    connection.settimeout(patience)
                elif isinstance(step, bytes):
                    connection.sendall(step)
                else:
                    time.sleep(step)
        except OSError:
            pass  # the server closed, perhaps after an answer
        deadline = time.monotonic() + (patience if answers else wait)
        while True:
            done = parse(data, False, head)
            if len(done) >= max(answers, 1) and done[-1].complete:
                if answers:
                    break
                deadline = min(deadline, time.monotonic() + 0.05)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            connection.settimeout(left)
            try:
                more = connection.recv(1 << 20)
            except TimeoutError:
                break
            except OSError:
                more = b""
            if not more:
                closed = True
                break
            data += more
    return parse(data, closed, head), closed


def request_bytes(path, body, headers=(), method="POST", version="1.1"):
    """A request as a well-behaved client sends it."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def text_of(response):
    """The text of an answer, whole or streamed; None where there is none."""
    if response.status != 200:
        return None
    if (response.header("content-type") or "").startswith("text/event-stream"):
        text, ended = "", False
        for event in response.body.decode("utf-8", "replace").split("\n\n"):
            if event == "data: [DONE]":
                ended = True
            elif event.startswith("data: "):
                data = json.loads(event[len("data: ") :])
                if "error" in data:
                    return None
                for choice in data["choices"]:
                    text += choice.get("text") or choice.get("delta", {}).get("content") or ""
        return text if ended else None
    whole = response.json()
    if not whole or not whole.get("choices"):
        return None
    choice = whole["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def ask(port, request, patience=300, read=text_of):
    """What `read` makes of the answer's response, text_of its text; and the response, or why there is none."""
    try:
        responses, closed = exchange(port, [request_bytes(*request)], 1, patience)
    except (OSError, Malformed) as error:
        return None, repr(error)
    if not responses:
        return None, "closed without an answer" if closed else f"no answer in {patience} s"
    return read(responses[0]), str(responses[0])
