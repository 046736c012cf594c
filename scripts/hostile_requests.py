#!/usr/bin/env python3
"""Sends random hostile requests to `firp serve`, and says what it should not have done.

usage: hostile_requests.py FIRP MODEL [--requests N] [--seed N] [--seconds N] [--engine native|llama] ...

Several clients at once send raw bytes, bad framing, floods, bombs, JSON of every wrong type at every field,
sizes at each limit and one beyond, and between them valid requests, whose answers must be those that they had
alone. All along /health is asked every 50 ms, each time on a connection of its own. Then servers under load
are ended by SIGTERM. What counts as a fault:
  - the server ends, or an answer is not HTTP, or has a status of 500 and more that is not a 503 with its reason
  - a status that the request must not have (a wrong type let pass, a body taken for a second request)
  - an error without {"error": {"message", "type", "code"}}
  - a valid request's answer that is another one than alone (engine native)
  - /health later than --health-ms; more memory at rest after the run than after its first quarter, or more
    descriptors than before
  - SIGTERM that takes more than --end-seconds, or a status other than 0
The requests depend on --seed alone. `--only INDEX` shows one and sends it again, alone.
"""
import argparse
import gzip
import itertools
import json
import multiprocessing
import os
import queue
import random
import socket
import time
import zlib

from served import AWAIT_100, HALF_CLOSE, Malformed, Served, exchange, request_bytes, text_of

KEY = "a-key"
CONTEXT = 256
# The server's limits (docs/serve.md). None: it has none.
MOST_HEAD_BYTES = 64 << 10
MOST_BODY_BYTES = 32 << 20
MOST_DEPTH = 32
MOST_KEYS = 8192
MOST_MESSAGES = 10000
MOST_STOPS = 64
MOST_STOP_BYTES = 1024
MEMORY_TOLERANCE = 64 << 10  # kB that memory may grow by after the first quarter: what malloc keeps

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
POSTS = (CHAT, TEXT)
GETS = ("/", "/page.css", "/page.js", "/health", "/v1/models")
AUTHORIZED = (("Authorization", "Bearer " + KEY),)
CLIENT_ERRORS = frozenset(range(400, 500))
FULL = frozenset({503})


class Case:
    """What is sent, and what may come back."""

    def __init__(self, name, steps, allowed=None, answers=1, required=True, text=None, head=False, at_most=None,
                 wait=0.25):  # fmt: skip
        self.name, self.steps = name, steps
        self.allowed = allowed  # statuses; None: any below 500
        self.answers = answers  # 0: whatever comes in `wait` seconds; None: it goes away
        self.wait = wait
        self.required = required  # an answer; else the connection may be closed without one
        self.text = text  # the answer's
        self.head = head
        self.at_most = at_most if at_most is not None else answers or 1  # answers


def body_of(path, **fields):
    """A small valid request; fields of the value `...` are left out."""
    body = {"max_tokens": 2, "max_completion_tokens": 2, "n_predict": 2, "temperature": 0}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": "Hi"}]
    else:
        body["prompt"] = "One, two,"
    body |= fields
    return {name: value for name, value in body.items() if value is not ...}


def post(path, body, headers=AUTHORIZED, **options):
    return request_bytes(path, body, headers, **options)


# ---------------------------------------------------------------- valid requests

VALID = [
    (TEXT, {"prompt": "The capital of France is", "max_tokens": 6}),
    (TEXT, {"prompt": "1, 2, 3, 4,", "max_tokens": 12, "stream": True}),
    (TEXT, {"prompt": "Once upon a time", "max_tokens": 9, "temperature": 1, "seed": 7}),
    (TEXT, {"prompt": "def main():\n", "max_tokens": 8, "stop": ["("]}),
    (CHAT, {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}),
    (CHAT, {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Count to five."}]}],
            "max_completion_tokens": 10, "temperature": 0.8, "top_k": 40, "seed": 3}),
    (TEXT, {"prompt": "Der Himmel ist blau, weil", "n_predict": 7, "model": "any", "repeat_penalty": 1.1}),
]  # fmt: skip


def valid(rng, alone):
    which = rng.randrange(len(VALID))
    path, body = VALID[which]
    return Case("valid", [post(path, body)], allowed={200}, text=alone[which])


def valid_otherwise_framed(rng, alone):
    which = rng.randrange(len(VALID))
    path, body = VALID[which]
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part)
        for part in (data[i : i + 7] for i in range(0, len(data), 7))
    )
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(data) + data
    way = rng.randrange(8)
    text = alone[which]
    if way == 0:
        return Case("chunked", [chunked], allowed={200}, text=text)
    if way == 1:
        return Case("slow chunks", [part for i in range(0, len(chunked), 60) for part in (chunked[i : i + 60], 0.01)],
                    allowed={200}, text=text)  # fmt: skip
    if way == 2:
        return Case("pipelined", [whole + whole], allowed={200}, answers=2, text=text)
    if way == 3:
        late = head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(data)
        return Case("Expect: 100-continue", [late, AWAIT_100, data], allowed={200}, text=text)
    if way == 4:
        ranged = whole.replace(b"Host: x\r\n", b"Host: x\r\nRange: bytes=0-9\r\n")
        return Case("Range", [ranged], allowed={200}, text=text)
    if way == 5:
        # What curl -d calls JSON, and longer than a form may be.
        form = head + b"Content-Type: application/x-www-form-urlencoded\r\n"
        padded = data + b" " * 10000
        return Case("curl -d", [form + b"Content-Length: %d\r\n\r\n" % len(padded) + padded], allowed={200}, text=text)
    if way == 6:
        packed = gzip.compress(data)
        head += b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        return Case("gzip", [head + packed], allowed={200, 415})
    old = whole.replace(b"HTTP/1.1", b"HTTP/1.0")
    return Case("HTTP/1.0", [old], allowed={200}, text=text)


# ---------------------------------------------------------------- JSON

NUMBERS = {"temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
INTEGERS = {"top_k", "repeat_last_n", "seed", "max_tokens", "max_completion_tokens", "n_predict", "n", "best_of"}
OTHERS = {"stream": "boolean", "prompt": "string", "messages": "array", "stop": "string array",
          "stream_options": "object", "response_format": "object"}  # fmt: skip
# Refused unless they change nothing; which values these are is the server's to say.
REFUSED = ["tools", "functions", "logit_bias", "grammar", "json_schema", "logprobs", "top_logprobs", "echo", "suffix",
           "chat_template_kwargs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "min_tokens",
           "ignore_eos", "mirostat", "mirostat_tau", "mirostat_eta", "typical_p", "stop_token_ids", "tool_choice",
           "parallel_tool_calls", "function_call", "dynatemp_range", "xtc_probability", "dry_multiplier", "samplers",
           "model", "user", "metadata", "store", "nobody_knows_this"]  # fmt: skip
FIELDS = sorted(NUMBERS) + sorted(INTEGERS) + sorted(OTHERS) + REFUSED
# Places inside: the body with a hole for the value.
PLACES = {
    "messages[0]": lambda value: {"messages": [value]},
    "messages[0].role": lambda value: {"messages": [{"role": value, "content": "Hi"}]},
    "messages[0].content": lambda value: {"messages": [{"role": "user", "content": value}]},
    "messages[0].content[0]": lambda value: {"messages": [{"role": "user", "content": [value]}]},
    "messages[0].content[0].type": lambda value: {
        "messages": [{"role": "user", "content": [{"type": value, "text": "Hi"}]}]
    },
    "messages[0].content[0].text": lambda value: {
        "messages": [{"role": "user", "content": [{"type": "text", "text": value}]}]
    },
    "messages[0].tool_calls": lambda value: {"messages": [{"role": "assistant", "content": None, "tool_calls": value}]},
    "messages[0].name": lambda value: {"messages": [{"role": "user", "content": "Hi", "name": value}]},
    "stop[0]": lambda value: {"stop": [value]},
    "stream_options.include_usage": lambda value: {"stream": True, "stream_options": {"include_usage": value}},
    "response_format.type": lambda value: {"response_format": {"type": value}},
    "tools[0]": lambda value: {"tools": [value]},
    "logit_bias[0]": lambda value: {"logit_bias": [value]},
}
# As they are written, with the type that they have.
VALUES = [("null", b"null"), ("boolean", b"true"), ("boolean", b"false"), ("integer", b"0"), ("integer", b"1"),
          ("integer", b"-1"), ("integer", b"9223372036854775807"), ("integer", b"-9223372036854775808"),
          ("integer", b"18446744073709551615"), ("number", b"18446744073709551616"), ("number", b"1.5"),
          ("number", b"-0.0"), ("number", b"1e308"), ("number", b"-1e308"), ("number", b"1e-320"),
          ("none", b"1e999"), ("none", b"NaN"), ("none", b"Infinity"), ("string", b'""'), ("string", b'"text"'),
          ("string", b'"\\u0000"'), ("string", "\"\u00e9\U0001f600\"".encode()), ("string", b'"1"'),
          ("none", b'"\\ud800"'), ("none", b'"\xff\xfe"'), ("none", b'"\xc0\x80"'), ("array", b"[]"),
          ("array", b"[null]"), ("array", b'["text"]'), ("array", b"[[[[]]]]"), ("array", b"[1, 2.5, {}]"),
          ("object", b"{}"), ("object", b'{"type": "text"}'), ("object", b'{"a": {"b": []}}'),
          ("string", b'"' + b"long " * 2000 + b'"')]  # fmt: skip


def json_type(rng, alone, path, place, value):
    kind, written = value
    if place in PLACES:
        fields = PLACES[place]("@")
        wanted = None
    else:
        fields = {place: "@"}
        wanted = (
            "integer number" if place in NUMBERS
            else "integer" if place in INTEGERS
            else OTHERS.get(place)
        )  # fmt: skip
    body = json.dumps(body_of(path, **fields)).encode().replace(b'"@"', written, 1)
    allowed = {200} | CLIENT_ERRORS
    used = not (path == CHAT and place == "prompt") and not (path == TEXT and place.startswith("messages"))
    # Whole numbers may be written with a point, and a prompt may be a list of one.
    meant = (place in INTEGERS and written == b"-0.0") or (place == "prompt" and written == b'["text"]')
    if kind == "none" or (wanted and used and kind != "null" and kind not in wanted.split() and not meant):
        allowed = CLIENT_ERRORS
    return Case(f"{place} = {written[:40]!r}", [post(path, body)], allowed=allowed)


def json_mutated(rng, alone):
    path, body = rng.choice(VALID)
    data = bytearray(json.dumps(body).encode())
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data))
        way = rng.randrange(4)
        if way == 0:
            data[at] = rng.randrange(256)
        elif way == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif way == 2:
            data[at:at] = rng.choice((b"{", b"[", b'"', b",", b"\\u", b"\0", b"null", b"1e9", b"\xf0\x9f", b"}]"))
        else:
            data[at:at] = data[at : at + rng.randrange(1, 30)]
        data = data or bytearray(b" ")
    return Case("JSON with faults", [post(path, bytes(data))], allowed={200} | CLIENT_ERRORS)


def other_body(rng, alone):
    body = rng.choice((b"", b"null", b"1", b"[]", b'"text"', b"{", b"{}", b"\xef\xbb\xbf{}", b"\0", b"{}{}",
                       rng.randbytes(rng.randrange(1, 3000)), b"a=b&c=d", b"--x\r\n\r\n--x--\r\n"))  # fmt: skip
    kind = rng.choice(("text/plain", "multipart/form-data", "multipart/form-data; boundary=x", "application/json",
                       "application/x-www-form-urlencoded", "", "a" * 500, "application/octet-stream"))  # fmt: skip
    head = f"POST {rng.choice(POSTS)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {kind}\r\n"
    return Case("no JSON", [head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body], allowed=CLIENT_ERRORS)


# ---------------------------------------------------------------- sizes at each limit and one beyond


def sized(name, limit, make, beyond=CLIENT_ERRORS, within=frozenset({200})):
    """Cases of a size just within and just beyond a limit; without a limit one of any size does."""
    if limit is None:
        return []
    return [(name, size, make, within if size <= limit else beyond) for size in (limit, limit + 1)]


def nested(depth):
    """A body whose deepest value lies `depth` levels deep; the body itself is the first."""
    inside = b"[" * (depth - 1) + b"]" * (depth - 1)
    return json.dumps(body_of(TEXT, other="@")).encode().replace(b'"@"', inside)


def padded(size):
    body = json.dumps(body_of(TEXT)).encode()
    return body + b" " * (size - len(body))


def keyed(count):
    body = body_of(TEXT)
    return body | {f"k{i}": 0 for i in range(count - len(body))}


def head_of(size):
    """A request of /health whose line and headers have that many bytes."""
    line, end = b"GET /health HTTP/1.1\r\nHost: x\r\n", b"\r\n"
    fields = []
    left = size - len(line) - len(end)
    while left:
        # The library that reads them has a bound of its own for one line.
        count = left if left <= 4000 else min(4000, left - 100)
        fields.append(b"X: " + b"a" * (count - 5) + b"\r\n")
        left -= count
    return line + b"".join(fields) + end


SIZES = (
    sized("body bytes", MOST_BODY_BYTES, lambda size: post(TEXT, padded(size)))
    + sized("depth", MOST_DEPTH, lambda size: post(TEXT, nested(size)))
    + sized("keys", MOST_KEYS, lambda size: post(TEXT, keyed(size)))
    + sized("messages", MOST_MESSAGES,
            lambda size: post(CHAT, body_of(CHAT, messages=[{"role": "user", "content": "x"}] * size)),
            within={200} | CLIENT_ERRORS)
    + sized("stops", MOST_STOPS, lambda size: post(TEXT, body_of(TEXT, stop=[f"#{i}" for i in range(size)])))
    + sized("bytes of a stop", MOST_STOP_BYTES, lambda size: post(TEXT, body_of(TEXT, stop=["x" * size])))
    + sized("bytes of the head", MOST_HEAD_BYTES, head_of)
    + sized("tokens of a prompt", CONTEXT - 1, lambda size: post(TEXT, body_of(TEXT, prompt=" the" * size)),
            within={200} | CLIENT_ERRORS)
)  # fmt: skip


def size(rng, alone, which):
    name, count, make, allowed = which
    return Case(f"{name}: {count}", [make(count)], allowed=allowed)


def flood(rng, alone):
    path = rng.choice(POSTS)
    count = rng.choice((1000, 20000, 100000))
    way = rng.randrange(9)
    if way == 0:
        body = b"[" * count
    elif way == 1:
        body = b'{"a":' * count
    elif way == 2:
        body = json.dumps(body_of(path) | {f"k{i}": i for i in range(count)}).encode()
    elif way == 3:
        body = json.dumps(body_of(CHAT, messages=[{"role": "user", "content": "x"}] * count)).encode()
        path = CHAT
    elif way == 4:
        body = json.dumps(body_of(TEXT, prompt="<|im_end|>" * count)).encode()
        path = TEXT
    elif way == 5:
        body = json.dumps(body_of(TEXT, prompt=rng.choice(("word ", "a", " ", "\n", "\U0001f600", "1")) * count)).encode()
        path = TEXT
    elif way == 6:
        body = json.dumps(body_of(path, stop=["x" * 10] * count)).encode()
    elif way == 7:
        body = json.dumps(body_of(path, stop="x" * count)).encode()
        return Case("a long stop", [post(path, body)], allowed={200} | CLIENT_ERRORS)
    else:
        body = json.dumps(body_of(CHAT, messages=[{"role": "user",
                                                   "content": [{"type": "text", "text": "x"}] * count}])).encode()  # fmt: skip
        path = CHAT
    return Case(f"flood {way} of {count}", [post(path, body)],
                allowed={200} | CLIENT_ERRORS if way == 2 else CLIENT_ERRORS, required=False)  # fmt: skip


def bomb(rng, alone):
    how, packed = rng.choice(BOMBS)
    if rng.random() < 0.3:
        packed = bytearray(packed)
        for _ in range(3):
            packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        packed = bytes(packed[: rng.randrange(1, len(packed))])
    head = f"POST {rng.choice(POSTS)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Encoding: {how}\r\n"
    return Case(f"bomb of {how}", [head.encode() + b"Content-Length: %d\r\n\r\n" % len(packed) + packed],
                allowed=CLIENT_ERRORS, required=False)  # fmt: skip


def bombs():
    """128 MiB of blanks, packed."""
    made = []
    for how, bits in (("gzip", 31), ("deflate", 15)):
        packer = zlib.compressobj(9, zlib.DEFLATED, bits)
        blanks = b" " * (1 << 20)
        made.append((how, b"".join(packer.compress(blanks) for _ in range(128)) + packer.flush()))
    made.append(("gzip", gzip.compress(made[0][1])))
    made.append(("br", b"\x1b" + b"\xff" * 3000))
    made.append(("zstd", b"\x28\xb5\x2f\xfd" + b"\0" * 3000))
    return made


# ---------------------------------------------------------------- framing


def framing(rng, alone):
    path = rng.choice(POSTS)
    data = json.dumps(body_of(path)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
    size = b"%d" % len(data)
    chunk = b"%x\r\n%b\r\n" % (len(data), data)
    inside = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    te = b"Transfer-Encoding: chunked\r\n"
    pause = rng.choice((0, 0.05))

    def bad(name, *steps, answers=0, **more):
        """Must not be answered as if it were right, nor more than once."""
        return Case(name, list(steps), allowed=CLIENT_ERRORS, answers=answers, required=False, wait=1, **more)

    def odd(name, *steps, **more):
        """May be taken or refused."""
        return Case(name, list(steps), allowed={200} | CLIENT_ERRORS, answers=0, required=False, wait=1, **more)

    return rng.choice((
        lambda: bad("two Content-Lengths", head + b"Content-Length: %b\r\nContent-Length: 3\r\n\r\n" % size + data),
        lambda: bad("two Content-Lengths, the first too short", head + b"Content-Length: 3\r\nContent-Length: %b\r\n\r\n" % size + data),
        lambda: bad("a list of Content-Lengths", head + b"Content-Length: 3, %b\r\n\r\n" % size + data),
        lambda: odd("Content-Length twice the same", head + (b"Content-Length: %b\r\n" % size) * 2 + b"\r\n" + data),
        lambda: odd("Content-Length and chunks", head + te + b"Content-Length: 5\r\n\r\n" + chunk + b"0\r\n\r\n"),
        lambda: bad("Content-Length -1", head + b"Content-Length: -1\r\n\r\n" + data),
        lambda: bad("Content-Length +N", head + b"Content-Length: +%b\r\n\r\n" % size + data),
        lambda: bad("Content-Length in hexadecimal", head + b"Content-Length: 0x10\r\n\r\n" + data),
        lambda: bad("a Content-Length of 31 digits", head + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n" + data),
        lambda: bad("a Content-Length of 2^64", head + b"Content-Length: 18446744073709551616\r\n\r\n" + data),
        lambda: bad("a Content-Length of 2^63 - 1", head + b"Content-Length: 9223372036854775807\r\n\r\n" + data),
        lambda: bad("no Content-Length's value", head + b"Content-Length: \r\n\r\n" + data),
        lambda: bad("too little body", head + b"Content-Length: 500\r\n\r\n" + data, HALF_CLOSE),
        lambda: bad("no body", head + b"Content-Length: 500\r\n\r\n", HALF_CLOSE),
        lambda: bad("no body, no length", head + b"\r\n"),
        lambda: bad("a chunk's size is no number", head + te + b"\r\nzz\r\n" + data + b"\r\n0\r\n\r\n"),
        lambda: bad("a negative chunk", head + te + b"\r\n-5\r\n" + data + b"\r\n0\r\n\r\n"),
        lambda: bad("a chunk of 2^64", head + te + b"\r\n10000000000000000\r\n" + data + b"\r\n0\r\n\r\n"),
        lambda: bad("a chunk of 2^64 - 1", head + te + b"\r\nFFFFFFFFFFFFFFFF\r\n" + data, HALF_CLOSE),
        lambda: bad("a line of 100 KB for a chunk's size", head + te + b"\r\n" + b"0" * 100000 + b"5\r\nhello\r\n0\r\n\r\n"),
        lambda: bad("chunks that do not end", head + te + b"\r\n" + chunk, HALF_CLOSE),
        lambda: bad("a chunk longer than its size", head + te + b"\r\n5\r\n" + data + b"\r\n0\r\n\r\n"),
        lambda: odd("chunk extensions", head + te + b"\r\n%x;a=b;c=\"d\"\r\n%b\r\n0;x\r\n\r\n" % (len(data), data)),
        lambda: odd("a chunk extension of 1 MB", head + te + b"\r\n%x;" % len(data) + b"a" * 1000000 + b"\r\n%b\r\n0\r\n\r\n" % data),
        lambda: odd("trailers", head + te + b"\r\n" + chunk + b"0\r\nX: y\r\nContent-Length: 3\r\n\r\n"),
        lambda: odd("a million trailers", head + te + b"\r\n" + chunk + b"0\r\n" + b"X: y\r\n" * 170000 + b"\r\n"),
        lambda: bad("an unknown coding", head + b"Transfer-Encoding: cow\r\n\r\n" + chunk + b"0\r\n\r\n"),
        lambda: odd("chunked twice", head + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + chunk + b"0\r\n\r\n"),
        lambda: odd("chunked, odd spelling", head + b"Transfer-Encoding:\tCHUNKED \r\n\r\n" + chunk + b"0\r\n\r\n"),
        lambda: bad("a body behind another method", b"PUT %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (path.encode(), KEY.encode(), len(inside)), pause, inside),
        lambda: bad("a body without a key", b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(inside)), pause, inside),
        lambda: bad("a body for nobody", b"POST /nothing HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(inside)), pause, inside),
        lambda: odd("a GET with a body", b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inside), pause, inside),
        lambda: odd("a GET with chunks", b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(inside), inside)),
        lambda: odd("half-closed after the request", head + b"Content-Length: %b\r\n\r\n" % size + data, HALF_CLOSE),
        lambda: odd("half a request", (head + b"Content-Length: %b\r\n\r\n" % size + data)[: rng.randrange(1, len(head) + len(data))]),
        lambda: odd("half a request, then its end", (head + b"Content-Length: %b\r\n\r\n" % size + data)[: rng.randrange(1, len(head) + len(data))], HALF_CLOSE),
        lambda: odd("a slow trickle", *itertools.chain(*((head[i : i + 5], 0.02) for i in range(0, len(head), 5)))),
        lambda: odd("Expect: nonsense", head + b"Expect: 200-ok\r\nContent-Length: %b\r\n\r\n" % size + data),
        lambda: odd("Connection: close", head + b"Connection: close\r\nContent-Length: %b\r\n\r\n" % size + data),
        lambda: odd("an upgrade", head + b"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\nContent-Length: %b\r\n\r\n" % size + data),
        lambda: odd("50 pipelined", (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") * 50, at_most=50),
    ))()  # fmt: skip


def raw(rng, alone):
    line = rng.choice((
        lambda: rng.randbytes(rng.randrange(1, 5000)),
        lambda: b"\r\n" * rng.randrange(1, 5000),
        lambda: b"\0" * rng.randrange(1, 5000),
        lambda: b"GET /health\r\n",
        lambda: b"GET /health HTTP/1.0\r\n\r\n",
        lambda: b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\n\n",
        lambda: b"GET  /health  HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x12\4\0\0\0\0\0" * 3,
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        lambda: b"GET " + b"/" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /?" + b"a&" * 50000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /%" + rng.choice((b"", b"0", b"00", b"zz", b"u0000", b"ff%fe")) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /he\0alth HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * rng.choice((90, 110, 10000, 100000)) + b"\r\n",
        lambda: b"GET /health HTTP/1.1\r\nX: " + b"y" * rng.choice((8000, 9000, 100000, 10000000)) + b"\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\n" + b"y" * rng.choice((8000, 9000, 100000, 10000000)),
        lambda: b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\r\n folded\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\nHost : x\r\n: y\r\nnothing\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\nHost: x\r\nX: \0\x01\xff\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1,2-3,-5," + b"1-2," * 1000 + b"\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip, br, zstd, " + b"x," * 1000 + b"\r\n\r\n",
        lambda: b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: " + rng.choice((b"Bearer", b"Bearer ", b"Basic Og==", b"Bearer " + b"k" * 5000, rng.randbytes(20).replace(b"\n", b""))) + b"\r\n\r\n",
        lambda: b"OPTIONS * HTTP/1.1\r\nHost: x\r\nOrigin: null\r\nAccess-Control-Request-Headers: " + b"x," * 3000 + b"\r\n\r\n",
    ))()  # fmt: skip
    steps = [line]
    if rng.random() < 0.3:
        steps.append(HALF_CLOSE)
    return Case(f"raw {line[:50]!r}", steps, answers=0, required=False, at_most=20)


def method(rng, alone, path, verb):
    steps = [request_bytes(path, b"", AUTHORIZED, method=verb)]
    right = {"GET", "HEAD"} if path in GETS else {"POST"} if path in POSTS else set()
    if verb in right:
        allowed = {200} if path in GETS else CLIENT_ERRORS  # an empty body
    elif verb == "OPTIONS":
        allowed = {200, 204, 403, 404, 405}
    elif path not in GETS + POSTS:
        allowed = CLIENT_ERRORS
    elif verb in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"):
        allowed = {405}
    else:
        allowed = {400, 404, 405}
    return Case(f"{verb} {path}", steps, allowed=allowed, head=verb == "HEAD", required=verb != "CONNECT")


def leaves(rng, alone):
    """Asks for much and goes away, at any moment."""
    path = rng.choice(POSTS)
    body = body_of(path, max_tokens=..., n_predict=..., max_completion_tokens=..., stream=rng.random() < 0.5)
    if path == TEXT:
        body["prompt"] = "Once upon a time" * rng.choice((1, 40))
    return Case("leaves", [post(path, body), rng.choice((0, 0.01, 0.05, 0.2))], answers=None, required=False)


VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "")
# Kinds at random, with how often each is sent.
AT_RANDOM = [(valid, 30), (valid_otherwise_framed, 15), (framing, 30), (raw, 25), (json_mutated, 25), (other_body, 8),
             (flood, 1), (bomb, 1), (leaves, 6)]  # fmt: skip


def plan(seed, count, clients):
    """Of each request its kind and what that needs. First what takes most memory, by all clients at once; of
    the rest one half goes through all there is in order, and the other half is at random."""
    rng = random.Random(seed)
    largest = [(size, (which,)) for which in SIZES] + [(bomb, ())] * 2
    largest = [kind for kind in largest for _ in range(clients)][:count]
    count -= len(largest)
    each = [(json_type, (path, place, value)) for path in POSTS for place in [*FIELDS, *PLACES] for value in VALUES]
    each += [(method, (path, verb)) for path in (*GETS, *POSTS, "/nothing", "*") for verb in VERBS]
    rng.shuffle(each)
    each = (each * (count // 2 // len(each) + 1))[: count // 2]
    kinds, weights = zip(*AT_RANDOM)
    each += [(kind, ()) for kind in rng.choices(kinds, weights, k=count - len(each))]
    rng.shuffle(each)
    return largest + each, len(largest)


def make(seed, index, kind, alone):
    return kind[0](random.Random(f"{seed} {index}"), alone, *kind[1])


# ---------------------------------------------------------------- sending and judging


def judge(case, responses, closed, compare):
    """What is wrong with the answers, or None."""
    if len(responses) > case.at_most:
        return f"{len(responses)} answers to one request"
    if case.required and len(responses) < case.answers:
        return f"{len(responses)} answers where {case.answers} are due{', and closed' if closed else ''}"
    for response in responses:
        if not response.complete and case.answers:
            return f"the answer is cut off: {response}"
        if not response.complete:
            continue  # this client did not wait for it
        if response.status >= 400 and not case.head:
            error = (response.json() or {}).get("error") if isinstance(response.json() or {}, dict) else None
            if not isinstance(error, dict) or not {"message", "type", "code"} <= error.keys():
                return f"an error without message, type and code: {response}"
            if not error["message"] or not isinstance(error["message"], str):
                return f"an error that says nothing: {response}"
        if response.status in FULL:
            continue
        if response.status >= 500:
            return f"status {response}"
        if case.allowed is not None and response.status not in case.allowed:
            return f"status must be {among(case.allowed)}, is {response}"
        if case.name == "HTTP/1.0" and response.header("transfer-encoding"):
            return "chunks for a client of HTTP/1.0"
        if b'\ndata: {"error":' in b"\n" + response.body:
            return f"an error in the stream: {response}"
        if compare and case.text is not None and text_of(response) != case.text:
            return f"the answer must be {case.text!r}, is {text_of(response)!r}"
    return None


def among(statuses):
    if statuses is None:
        return "below 500"
    if statuses >= CLIENT_ERRORS:
        return " or ".join([*map(str, sorted(statuses - CLIENT_ERRORS)), "4xx"])
    return " or ".join(map(str, sorted(statuses)))


def send(port, case, compare, patience):
    """What is wrong, or None, and whether the server said that it is full."""
    try:
        if case.answers is None:
            leave(port, case.steps)
            return None, 0
        responses, closed = exchange(port, case.steps, case.answers, patience, case.head, case.wait)
    except Malformed as error:
        return f"not HTTP: {error}", 0
    except OSError as error:
        return f"no connection: {error}", 0
    return judge(case, responses, closed, compare), sum(r.status in FULL for r in responses)


def leave(port, steps):
    request, seconds = steps
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        time.sleep(seconds)


def client(port, args, planned, alone, number, indices, ended, doing, done, found):
    for index in indices:
        if ended.is_set():
            break
        doing[number] = index
        case = make(args.seed, index, planned[index], alone)
        begin = time.monotonic()
        wrong, full = send(port, case, args.engine == "native", args.patience)
        found.put((index, case.name, wrong, full, time.monotonic() - begin))
        with done.get_lock():
            done.value += 1
    doing[number] = -1


def probe(port, ended, found):
    """Asks /health every 50 ms; the seconds of each, and by how much this process itself woke too late."""
    try:
        os.nice(-10)  # what is measured is the server, not how this process is scheduled
    except OSError:
        pass
    slowest, late = [], 0.0
    due = time.monotonic()
    while not ended.is_set():
        due = max(due + 0.05, time.monotonic())
        time.sleep(max(0, due - time.monotonic()))
        begin = time.monotonic()
        late = max(late, begin - due)
        try:
            responses, _ = exchange(port, [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"], 1, 30)
            ok = bool(responses) and responses[0].status == 200
        except (OSError, Malformed):
            ok = False
        slowest.append((time.monotonic() - begin, ok))
    found.put((slowest, late))


def command(args):
    return [args.firp, "serve", "-m", args.model, "-t", "1", "-c", str(CONTEXT), "-np", "4",
            "--engine", args.engine, "--api-key", KEY]  # fmt: skip


def run(args):
    faults = []
    planned, largest = plan(args.seed, args.requests, args.clients)
    server = Served(*command(args))
    alone = []
    for path, body in VALID:
        responses, _ = exchange(server.port, [post(path, body)])
        if not responses or text_of(responses[0]) is None:
            raise SystemExit(f"a valid request alone has no answer: {responses}")
        alone.append(text_of(responses[0]))
    if args.only is not None:
        case = make(args.seed, args.only, planned[args.only], alone)
        for step in case.steps:
            print(step if not isinstance(step, bytes) or len(step) < 4000 else step[:4000] + b"... (%d bytes)" % len(step))
        print("should be:", among(case.allowed))
        try:
            print("answers:", exchange(server.port, case.steps, case.answers, args.patience, case.head, case.wait))
        except Malformed as error:
            print("answer is not HTTP:", error)
        print("server ended with", server.end()[0])
        return 0

    descriptors = server.descriptors()
    ended, found, probed = multiprocessing.Event(), multiprocessing.Queue(), multiprocessing.Queue()
    doing, done = multiprocessing.Array("q", [-1] * args.clients), multiprocessing.Value("q", 0)
    prober = multiprocessing.Process(target=probe, args=(server.port, ended, probed))
    prober.start()
    begin = told = time.monotonic()
    full, slowest, died, at_rest = 0, (0, None), False, []
    quarter = max(largest, len(planned) // 4)
    for part in (range(0, quarter), range(quarter, len(planned))):
        clients = [
            multiprocessing.Process(
                target=client,
                args=(server.port, args, planned, alone, i, part[i :: args.clients], ended, doing, done, found),
            )
            for i in range(args.clients)
        ]
        for each in clients:
            each.start()
        while not died and (any(each.is_alive() for each in clients) or not found.empty()):
            try:
                index, name, wrong, was_full, seconds = found.get(timeout=0.2)
                full += was_full
                slowest = max(slowest, (seconds, f"{index} ({name})"))
                if wrong:
                    faults.append(f"request {index} ({name}): {wrong}")
                    if len(faults) <= args.show:
                        print("FAULT:", faults[-1][:1000], flush=True)
            except queue.Empty:
                pass
            died = server.process.poll() is not None
            now = time.monotonic()
            if now - begin > args.seconds:
                ended.set()
            if now - told > 15:
                told = now
                print(f"{done.value} requests, {now - begin:.0f} s, {len(faults)} faults", flush=True)
        if not died:
            time.sleep(3)  # what was asked for and not waited for ends
            died = server.process.poll() is not None
        if died:
            break
        for each in clients:
            each.join()
        at_rest.append((server.status("VmRSS"), server.descriptors()))
    took = time.monotonic() - begin
    if died:
        faults.append(f"the server ended with {server.process.returncode}; requests then: "
                      f"{sorted(i for i in doing if i >= 0)}\n{server.tail()}")  # fmt: skip
        print("FAULT:", faults[-1], flush=True)
        for each in clients:
            each.terminate()
    ended.set()
    probes, late = probed.get(timeout=60)
    prober.join()
    print(f"{done.value} of {len(planned)} requests in {took:.0f} s, {full} answered that the server is full; "
          f"the slowest {slowest[1]}: {slowest[0]:.1f} s")  # fmt: skip

    times = sorted(seconds for seconds, _ in probes)
    failed = sum(not ok for _, ok in probes)
    print(f"/health: {len(times)} times, slowest {times[-1] * 1e3:.0f} ms, 99.9 % within "
          f"{times[int(len(times) * 0.999)] * 1e3:.0f} ms, median {times[len(times) // 2] * 1e3:.1f} ms, {failed} "
          f"not answered (this machine woke the one who asks up to {late * 1e3:.0f} ms late)")  # fmt: skip
    if times[-1] * 1e3 > args.health_ms or failed:
        faults.append(f"/health took {times[-1] * 1e3:.0f} ms; {failed} times no answer")

    if not died:
        (warm, _), (rss, now) = at_rest
        peak = server.status("VmHWM")
        print(f"memory: {warm // 1024} MiB at rest after the first {quarter} requests, {rss // 1024} MiB after all, "
              f"at most {peak // 1024} MiB; descriptors {descriptors} before and {now} after")  # fmt: skip
        if rss > warm + MEMORY_TOLERANCE:
            faults.append(f"memory grew from {warm} to {rss} kB; {MEMORY_TOLERANCE} more are let pass")
        if now > descriptors + 2:  # the last connections may still be open
            faults.append(f"{now - descriptors} descriptors more than before")
        status, seconds = server.end()
        if status != 0 or seconds > args.end_seconds:
            faults.append(f"SIGTERM at rest: ended with {status} after {seconds:.2f} s\n{server.tail()[-500:]}")
        faults += end_under_load(args)
    print(f"{len(faults)} faults" + (":" if faults else ""))
    kinds = {}
    for fault in faults:
        # A request's kind stands between its index and what was wrong, without the value that was tried.
        kind = fault.split("(", 1)[1].split(":")[0].split(" = ")[0] if fault.startswith("request ") else fault
        kinds.setdefault(kind, []).append(fault)
    for those in sorted(kinds.values(), key=len, reverse=True):
        print(f"  {len(those)} x {those[0][:400]}")
    return 1 if faults else 0


def end_under_load(args):
    """SIGTERM at a random moment, with clients that ask for much."""
    faults = []
    times = []
    rng = random.Random(f"{args.seed} ends")
    for round in range(args.ends):
        server = Served(*command(args))
        ended = multiprocessing.Event()
        clients = [multiprocessing.Process(target=load, args=(server.port, f"{args.seed} {round} {i}", ended)) for i in range(8)]
        for each in clients:
            each.start()
        time.sleep(rng.uniform(0.05, 2.5))
        status, seconds = server.end()
        ended.set()
        for each in clients:
            each.join(timeout=5)
            each.terminate()
        times.append(seconds)
        if status != 0 or seconds > args.end_seconds:
            faults.append(f"SIGTERM {round}: ended with {status} after {seconds:.2f} s\n{server.tail()[-500:]}")
            print("FAULT:", faults[-1], flush=True)
    if times:
        print(f"SIGTERM under load: {len(times)} times, slowest {max(times):.2f} s")
    return faults


def load(port, seed, ended):
    rng = random.Random(seed)
    while not ended.is_set():
        path = rng.choice(POSTS)
        body = body_of(path, max_tokens=..., n_predict=..., max_completion_tokens=..., stream=rng.random() < 0.5)
        way = rng.randrange(5)
        if way == 0:
            path, body = TEXT, body_of(TEXT, prompt="word and other " * 60, max_tokens=100)
        elif way == 1:
            path, body = TEXT, body_of(TEXT, prompt="<|im_end|>" * 40000)
        elif way == 2:
            path, body = CHAT, body_of(CHAT, messages=[{"role": "user", "content": "x"}] * 20000)
        try:
            exchange(port, [post(path, body)], 1, 5)
        except (OSError, Malformed):
            time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1800, help="stop sending after that")
    parser.add_argument("--engine", choices=("native", "llama"), default="native")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--ends", type=int, default=5, help="servers ended under load")
    parser.add_argument("--health-ms", type=float, default=100)
    parser.add_argument("--end-seconds", type=float, default=1)
    parser.add_argument("--patience", type=float, default=60, help="seconds for an answer")
    parser.add_argument("--show", type=int, default=50, help="faults that are printed as they are found")
    parser.add_argument("--only", type=int, help="show the request of that index and send it alone")
    args = parser.parse_args()
    if not os.path.exists(args.model):
        print(f"skipped: no model at {args.model} (scripts/setup.sh fetches it)")
        raise SystemExit(77)
    raise SystemExit(run(args))


BOMBS = bombs()
if __name__ == "__main__":
    main()
