#!/usr/bin/env python3
"""Uses the page of `firp serve` in a real browser, as a person does, and says what is wrong.

usage: page_in_browser.py FIRP MODEL [--axe FILE] [--pictures FOLDER] [--only WORDS]

Debian's chromium, headless, is driven by chromedriver through WebDriver (https://www.w3.org/TR/webdriver2/).
What depends on the server's answer word by word, or on its failing, is tried with a stand-in for fetch(). With
axe-core (scripts/setup.sh tests fetches it) the page is searched for what keeps people out. --pictures keeps
what it looks like. Status 77: skipped, as something of this is not there.
"""
import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import traceback
import urllib.error
import urllib.request

from served import Served

ENTER, ESCAPE, TAB, SHIFT, UP, DOWN = "\ue007", "\ue00c", "\ue004", "\ue008", "\ue013", "\ue015"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name for one

# A fetch() whose replies the test writes: exchanges[i] is a request.
STAND_IN = """
window.exchanges = [];
window.fetch = (path, options = {}) => {
  const one = {path, headers: options.headers, body: options.body && JSON.parse(options.body), open: true};
  const stream = new ReadableStream({start(to) { one.to = to; }, cancel() { one.open = false; }});
  const response = new Promise((resolve, reject) => { Object.assign(one, {resolve, reject}); });
  one.fail = error => {
    if (!one.open) return;
    one.open = false;
    one.reject(error);
    try { one.to.error(error); } catch { }
  };
  options.signal?.addEventListener('abort', () => one.fail(new DOMException('aborted', 'AbortError')));
  one.begin = () => one.resolve(new Response(stream));
  one.refuse = (status, body) => { one.open = false; one.resolve(new Response(body, {status})); };
  one.event = data => one.to.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(data)}\\n\\n`));
  one.text = content => one.event({choices: [{delta: {content}}]});
  one.end = () => {
    one.to.enqueue(new TextEncoder().encode('data: [DONE]\\n\\n'));
    one.open = false;
    one.to.close();
  };
  one.answer = content => { one.begin(); one.text(content); one.end(); };
  window.exchanges.push(one);
  return response;
};
"""

HOSTILE = """Look: <b id="bold">bold</b> <img src=x onerror="window.hacked = 1"> and

<script>window.hacked = 2</script>

<iframe src="javascript:window.hacked = 3"></iframe>

[a link](javascript:window.hacked=4) ![a picture](https://elsewhere.example/x.png) <https://elsewhere.example/>

<svg onload="window.hacked = 5"></svg>

```html
<script>window.hacked = 6</script>
```
"""
RICH = """## Reading a file

Here is how **Python** reads a file, *line by line*, with `open`:

```python
def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\\n") for line in file if line.strip() and not line.startswith("#")]
```

| mode | meaning | keeps what is there, and more words so that the table is wide |
|---|---|--:|
| `r` | read | yes |
| `w` | write | no |

1. Open the file.
2. Read it, one line after the other:
   - a line ends with a line break
   - [more about it](https://docs.python.org/3/)
3. Close it.

> `with` closes it for you.
"""


class Browser:
    """A session of WebDriver."""

    def __init__(self, driver, chromium, downloads):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([driver, "--port=0"], stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 20
        while not (found := re.search(r"started successfully on port (\d+)", self.said())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"chromedriver did not start:\n{self.said()}")
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{found[1]}/session"
        arguments = ["--headless=new", "--disable-gpu", "--window-size=1200,850", "--hide-scrollbars"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # chromium's refuses to be root's
        options = {"binary": chromium, "args": arguments, "prefs": {"download.default_directory": downloads}}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self.url += "/" + session["sessionId"]

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def call(self, method, path, body=None):
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {json.load(error)['value']['message'].splitlines()[0]}") from None

    def end(self):
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()

    def js(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def go(self, url):
        self.call("POST", "/url", {"url": url})

    def element(self, selector):
        return self.call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        """As a person does, who scrolls there first: where something else lies over it, that is an error."""
        self.js(
            "document.querySelector(arguments[0])?.scrollIntoView({block: 'center', behavior: 'instant'})", selector
        )
        self.call("POST", f"/element/{self.element(selector)}/click")

    def type(self, selector, text):
        self.call("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def press(self, *keys):
        """Keys for what has the focus, held together."""
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def wait(self, script, what, seconds=30):
        deadline = time.monotonic() + seconds
        while not (value := self.js(script)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.02)
        return value

    def picture(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("GET", "/screenshot")))

    def problems(self):
        """What the console shows since the last time, but for what is refused on purpose, and the picture that
        browsers look for beside /health."""
        entries = self.call("POST", "/se/log", {"type": "browser"})
        return [
            entry["message"]
            for entry in entries
            if entry["level"] == "SEVERE" and not re.search(r"status of 401|/favicon\.ico", entry["message"])
        ]


class Page:
    """The page in the browser, and the steps that the tests have in common."""

    def __init__(self, browser, url, locked, several, downloads, axe, pictures):
        self.browser, self.url = browser, url
        self.locked = locked  # of a server that has a key
        self.several = several  # of a server of the models "one" and "two"
        self.downloads, self.axe, self.pictures = downloads, axe, pictures

    def open(self, chats=(), settings=None, stand_in=False, url=None):
        """Anew, with these chats kept, the first one open: lists of messages, the reader's and answers in turn."""
        browser = self.browser
        browser.go((url or self.url) + "health")  # of the same origin
        kept = {}
        for i, messages in enumerate(chats):
            said = [
                {"role": "assistant" if j % 2 else "user", "content": each} if isinstance(each, str) else each
                for j, each in enumerate(messages)
            ]
            chat = {"id": f"c{i}", "name": f"Chat {i}", "changed": 1000 + i, "messages": said}
            kept[f"firp.chat.c{i}"] = json.dumps(chat)
        kept["firp.settings"] = json.dumps(settings or {"max_tokens": 60})
        browser.js("localStorage.clear(); sessionStorage.clear(); Object.assign(localStorage, arguments[0]);"
                   "if (arguments[1]) sessionStorage.setItem('chat', 'c0')", kept, bool(chats))  # fmt: skip
        browser.go(url or self.url)
        if stand_in:
            browser.js(STAND_IN)

    def ask(self, text, key=ENTER):
        self.browser.type("#text", text)
        self.browser.press(key)

    def is_running(self):
        return self.browser.js("return document.querySelector('#chat').className === 'running'")

    def wait_for_end(self):
        self.browser.wait("return document.querySelector('#chat').className !== 'running'", "the answer's end")

    def answers(self):
        return self.browser.js("return [...document.querySelectorAll('.answer > .text')].map(box => box.innerText)")

    def questions(self):
        return self.browser.js("return [...document.querySelectorAll('.user > .text')].map(box => box.innerText)")

    def shown(self, selector):
        return self.browser.js(
            "return [...document.querySelectorAll(arguments[0])].map(box => box.innerText)", selector
        )

    def typed(self):
        return self.browser.js("return document.querySelector('#text').value")

    def kept(self):
        script = "return Object.entries(localStorage).filter(([name]) => name.startsWith('firp.chat.'))"
        return [json.loads(text) for _, text in self.browser.js(script)]

    def exchange(self, script, index=-1):
        """Something done with a request of the stand-in, and the time for it to arrive."""
        self.browser.js(f"const one = exchanges.at({index}); {script}")
        self.browser.call("POST", "/execute/async", {"script": "setTimeout(arguments[0], 60)", "args": []})

    def asked(self, text):
        """The messages of the request that a question becomes, with the stand-in."""
        before = self.browser.js("return exchanges.length")
        self.ask(text)
        self.browser.wait(f"return exchanges.length > {before}", "the request")
        return [message["content"] for message in self.browser.js("return exchanges.at(-1).body.messages")]

    def downloaded(self, name):
        path = os.path.join(self.downloads, name)
        deadline = time.monotonic() + 10
        while not os.path.exists(path):
            assert time.monotonic() < deadline, f"{name} was not saved; there are {os.listdir(self.downloads)}"
            time.sleep(0.02)
        with open(path, encoding="utf-8") as file:
            return file.read()

    def at_width(self, width, height=850):
        self.browser.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                              mobile=width < 500)  # fmt: skip

    def in_colours(self, scheme):
        self.browser.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def picture(self, name):
        if self.pictures:
            time.sleep(0.3)  # transitions
            self.browser.picture(os.path.join(self.pictures, name + ".png"))

    def focused(self):
        return self.browser.js(
            "const at = document.activeElement;"
            "return at === document.body ? 'body' : at.id || at.ariaLabel || at.textContent.trim() || at.tagName"
        )

    def require_access(self, state):
        if not self.axe:
            return
        found = self.browser.call("POST", "/execute/async", {"script": """
            const [done] = arguments;
            axe.run(document, {resultTypes: ['violations']}).then(({violations}) => done(violations.map(
                ({id, nodes}) => `${id}: ${nodes.map(node => node.html + ' ' + node.failureSummary).join('; ')}`)));""",
            "args": []}) if self.browser.js(self.axe + "; return true") else None  # fmt: skip
        assert found == [], f"{state}: " + "\n".join(found)


def test_writes_and_streams(page):
    page.open(settings={"max_tokens": 120})
    assert page.focused() == "text"
    page.ask("Tell me a story about a lighthouse.")
    lengths = set()
    while page.is_running():
        lengths.add(len("".join(page.answers())))
        assert page.shown("#send") == ["Stop"] or not page.is_running()
    assert len(lengths) > 2, f"it came in parts: {lengths}"
    assert page.shown("#send") == ["Send"]
    took = page.shown(".took")[0]
    assert re.fullmatch(r"\d+ tokens · \d+\.\d tokens/s · \d+\.\d\d tokens per pass · \d+ drafted", took), took
    assert page.shown("h1") == ["Tell me a story about a lighthouse."]
    assert page.browser.js("return document.querySelector('#status').textContent").startswith("Answer: ")
    [chat] = page.kept()
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant"]
    resources = page.browser.js("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((page.url, "data:")) for name in resources), resources


def test_stops_and_keeps_what_came(page):
    page.open(settings={"max_tokens": 2000, "temperature": 1})
    page.ask("Write a long story about the sea.")
    page.browser.wait("return document.querySelector('.answer > .text')?.innerText.length > 20", "some text")
    page.browser.click("#send")
    page.wait_for_end()
    [text] = page.answers()
    assert len(text) > 20
    time.sleep(0.2)
    assert page.answers() == [text]
    assert page.kept()[0]["messages"][1]["content"].strip() != ""
    assert page.shown(".error") == []


def test_regenerates_edits_and_outlives_a_reload(page):
    page.open(settings={"max_tokens": 24})
    page.ask("Name three colours.")
    page.wait_for_end()
    first = page.answers()
    page.browser.click(".again")
    page.wait_for_end()
    assert page.answers() == first, "greedily, the same"
    page.ask("And three more.")
    page.wait_for_end()
    assert len(page.answers()) == 2
    page.browser.click(".message.user .edit")
    assert page.focused() == "Edit the message"
    page.browser.js("document.activeElement.value = ''")
    page.browser.type(".editor textarea", "Name three animals.")
    page.browser.press(ENTER)
    page.wait_for_end()
    assert page.questions() == ["Name three animals."]
    answers = page.answers()
    assert len(answers) == 1 and answers != first
    took = page.shown(".took")
    page.browser.call("POST", "/refresh")
    assert page.questions() == ["Name three animals."] and page.answers() == answers and page.shown(".took") == took
    assert page.shown("#chats .name") == ["Name three colours."]


def test_renames_exports_and_deletes(page):
    page.open(chats=[["one", "1"], ["two", "**2**"]])
    browser = page.browser
    assert page.shown("#chats .name") == ["Chat 1", "Chat 0"], "the last one first"

    browser.click("#open-c1")
    assert page.answers() == ["2"]
    browser.click("#more-c1")
    page.require_access("the menu")
    browser.click("#export_markdown")
    assert page.downloaded("Chat-1.md") == "# Chat 1\n\n## You\n\ntwo\n\n## Answer\n\n**2**\n"
    browser.click("#more-c1")
    browser.click("#export_json")
    assert json.loads(page.downloaded("Chat-1.json"))["messages"][1] == {"role": "assistant", "content": "**2**"}
    browser.click("#export_all")
    assert [chat["name"] for chat in json.loads(page.downloaded("chats.json"))] == ["Chat 1", "Chat 0"]

    browser.click("#more-c0")
    browser.click("#rename")
    page.require_access("renaming")
    browser.js("document.querySelector('#name').value = ''")
    browser.type("#name", "Numbers")
    browser.press(ENTER)
    browser.wait("return document.querySelector('#chats').innerText.includes('Numbers')", "the new name")
    assert {chat["name"] for chat in page.kept()} == {"Numbers", "Chat 1"}

    browser.click("#more-c1")
    browser.click("#delete")
    assert page.shown("#chats .name") == ["Numbers"] and page.questions() == []
    assert len(page.kept()) == 1
    browser.click("#notice button")
    assert page.questions() == ["two"] and len(page.kept()) == 2
    browser.click("#new")
    assert page.questions() == [] and len(page.shown("#chats .name")) == 2


def test_shows_html_as_text(page):
    page.open(chats=[["Hack me.", HOSTILE]], stand_in=True)
    for way in ("kept", "streamed"):
        if way == "streamed":
            page.asked("Again.")
            page.exchange("one.begin()")
            for i in range(0, len(HOSTILE), 40):
                page.browser.js("exchanges.at(-1).text(arguments[0])", HOSTILE[i : i + 40])
            page.exchange("one.end()")
            page.wait_for_end()
        text = page.answers()[-1]
        for part in ('<b id="bold">bold</b>', "<img src=x", "<script>window.hacked = 2</script>", "<iframe", "<svg",
                     "<script>window.hacked = 6</script>"):  # fmt: skip
            assert part in text, f"{way}: {part} is not shown in {text}"
    time.sleep(0.2)
    assert page.browser.js("return window.hacked") is None
    assert (
        page.browser.js(
            "return document.querySelectorAll('#chat :is(img, script, iframe, svg, b, [id], [onerror])').length"
        )
        == 0
    )
    links = page.browser.js("return [...document.querySelectorAll('#chat a')].map(link => link.getAttribute('href'))")
    assert {link for link in links if link} == {"https://elsewhere.example/x.png", "https://elsewhere.example/"}, links
    resources = page.browser.js("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((page.url, "data:")) for name in resources), resources


def test_shows_markdown_with_copies(page):
    page.open(
        chats=[["How do I read a file?", {"role": "assistant", "content": RICH, "reasoning": "A simple question.\n"}]]
    )
    browser = page.browser
    assert page.shown(".code .head span") == ["python"]
    assert browser.js("return document.querySelectorAll('#chat :is(table, ol, ul, blockquote, h3)').length") == 5
    assert browser.js("return document.querySelector('.thinking').open") is False
    browser.click("summary")
    assert "A simple question." in page.shown(".thinking .text")[0]
    browser.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    read = "const [done] = arguments; navigator.clipboard.readText().then(done, error => done(String(error)))"
    for selector, text in (
        (".code button", RICH.split("```")[1].removeprefix("python\n")),
        (".answer > footer button", RICH),
    ):
        browser.click(selector)
        browser.wait(f"return document.querySelector('{selector}').innerText === 'Copied'", "the copy")
        assert browser.call("POST", "/execute/async", {"script": read, "args": []}) == text
    # Where a page may not use the clipboard by its newer way.
    browser.js("navigator.clipboard.writeText = async () => { throw new Error('denied'); }")
    browser.click(".user > footer button:last-of-type")
    browser.wait(
        "return document.querySelector('.user > footer button:last-of-type').innerText === 'Copied'", "the copy"
    )
    assert browser.call("POST", "/execute/async", {"script": read, "args": []}) == "How do I read a file?"


def test_shows_what_goes_round_in_circles(page):
    page.open(chats=[["Go on.", ">" * 4000], ["Go on.", "**a " * 6000], ["Go on.", "1. " * 3000]])
    for chat, part in (("c0", ">>>>"), ("c1", "**a **a"), ("c2", "1. 1. 1.")):
        begin = time.monotonic()
        page.browser.click("#open-" + chat)
        assert part in page.answers()[0], chat
        assert time.monotonic() - begin < 5, chat


def test_marks_drafted_tokens(page):
    page.open(settings={"max_tokens": 120})
    page.browser.click("#drafted")
    assert "drafted" in page.shown("#legend")[0]
    page.ask("Count from one to thirty.")
    page.wait_for_end()
    [answer] = page.kept()[0]["messages"][1:]
    tokens = answer["tokens"]
    assert "".join(text for text, _ in tokens) == answer["content"]
    marks = page.shown(".answer mark.drafted")
    assert marks and len(marks) == sum(drafted for _, drafted in tokens)
    assert 0 <= len(marks) - answer["took"]["draft_n_accepted"] <= 1
    page.picture("drafted")
    page.browser.click("#drafted")
    assert page.shown(".answer mark.drafted") == [] and len(page.answers()[0]) > 20
    page.browser.click("#drafted")
    assert page.shown(".answer mark.drafted") == marks


def test_sends_what_the_settings_say(page):
    page.open(stand_in=True, settings={"top_k": 40})
    browser = page.browser
    browser.click("#open_settings")
    page.picture("settings")
    assert browser.js("return document.querySelector('#top_k').value") == "40"
    browser.type("#system", "Be brief.")
    browser.type("#temperature", "0.7")
    browser.type("#seed", "-3")
    browser.click("#settings_dialog .main")
    assert browser.js("return document.querySelector('#settings_dialog').open"), "a wrong seed is not saved"
    browser.js("document.querySelector('#seed').value = ''")
    browser.type("#seed", "7")
    browser.js("document.querySelector('#theme').value = 'dark'")
    browser.click("#settings_dialog .main")
    assert page.asked("Hi") == ["Be brief.", "Hi"]
    body = browser.js("return exchanges.at(-1).body")
    assert (body["temperature"], body["top_k"], body["seed"], body["stream"]) == (0.7, 40, 7, True), body
    assert browser.js("return exchanges.at(-1).headers['Content-Type']") == "application/json"
    browser.call("POST", "/refresh")
    browser.click("#open_settings")
    assert browser.js("return document.querySelector('#system').value") == "Be brief."
    assert browser.js("return getComputedStyle(document.body).colorScheme") == "dark"
    browser.click("#clear")
    browser.click("#settings_dialog .main")
    browser.wait("return localStorage['firp.settings'] === '{}'", "the defaults")


def test_failures(page):
    """With the stand-in: a conversation holds what was said, whatever fails."""
    page.open(stand_in=True)
    assert page.asked("too long") == ["too long"]
    page.exchange("""one.refuse(400, '{"error": {"message": "the prompt has 9 tokens"}}')""")
    assert page.shown(".error") == ["the prompt has 9 tokens"]
    assert page.typed() == "too long" and page.questions() == [] and page.kept() == []
    page.browser.js("document.querySelector('#text').value = ''")

    assert page.asked("one") == ["one"], "what failed is not sent again"
    page.browser.type("#text", "two")
    page.exchange("one.refuse(502, '<html>Bad gateway</html>')")
    assert page.typed() == "two", "what was typed meanwhile stays"
    assert page.shown(".unsent") == ["one"]
    assert "status 502" in page.shown(".error")[0]
    page.browser.js("document.querySelector('#text').value = ''")

    page.asked("one")
    page.exchange("one.begin(); one.text('1')")
    page.browser.type("#text", "typed meanwhile")
    page.browser.press(ENTER)
    assert page.browser.js("return exchanges.at(-1).open"), "Enter does not stop it"
    assert page.typed() == "typed meanwhile"
    page.exchange("one.fail(new TypeError('network error'))")
    assert re.search("server cannot be reached.*network error", page.shown(".error")[0])
    assert page.answers() == ["1"], "what came stays"
    page.browser.js("document.querySelector('#text').value = ''")
    assert page.asked("two") == ["one", "1", "two"]
    page.exchange("one.begin(); one.event({error: {message: 'out of memory'}})")
    assert not page.browser.js("return exchanges.at(-1).open")
    assert page.shown(".error") == ["out of memory"] and page.typed() == "two"
    page.browser.js("document.querySelector('#text').value = ''")

    # An edit and a new answer that fail leave all as it was.
    page.browser.click(".again")
    page.exchange("one.refuse(500, '')")
    assert page.answers() == ["1"]
    page.browser.click(".edit")
    page.browser.type(".editor textarea", " more")
    page.browser.press(ENTER)
    page.exchange("one.refuse(500, '')")
    assert page.browser.js("return document.querySelector('.editor textarea').value") == "one more"
    page.browser.press(ESCAPE)
    assert page.questions() == ["one"] and page.answers() == ["1"]

    # A question that is stopped before its answer begins is back in the box.
    page.asked("a story")
    page.browser.press(ESCAPE)
    page.wait_for_end()
    assert page.typed() == "a story" and page.shown(".error") == []

    # An input method's Enter does not send.
    count = page.browser.js("""
        const box = document.querySelector('#text');
        for (const more of [{isComposing: true}, {keyCode: 229}]) {
          box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, ...more}));
        }
        return exchanges.length;""")
    assert page.browser.js("return exchanges.length") == count and not page.is_running()


def test_answers_stay_in_their_chats(page):
    page.open(stand_in=True)
    page.asked("a story")
    page.exchange("one.begin(); one.text('Once')")
    page.browser.click("#new")
    assert page.questions() == [] and page.shown("#send") == ["Send"]
    assert page.asked("hello") == ["hello"]
    page.exchange("one.text(' upon a time'); one.end()", 0)
    assert page.shown("#send") == ["Stop"] and page.questions() == ["hello"], "the other answer's end"
    page.exchange("one.answer('hi')")
    assert page.answers() == ["hi"]
    page.browser.js("[...document.querySelectorAll('#chats .name')].find(row => row.innerText === 'a story').click()")
    assert page.answers() == ["Once upon a time"]
    assert page.asked("and then?") == ["a story", "Once upon a time", "and then?"]


def test_works_where_nothing_is_kept(page):
    deny = "for (const name of ['localStorage', 'sessionStorage']) {" \
           "  Object.defineProperty(window, name, {get() { throw new Error('denied'); }}); }"  # fmt: skip
    page.open()
    added = page.browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=deny)
    try:
        page.browser.go(page.url)
        page.browser.js(STAND_IN)
        page.asked("one")
        page.exchange("one.answer('1')")
        assert page.answers() == ["1"]
        assert "keeps nothing" in page.shown("#nothing_kept")[0]
        page.browser.click("#new")
        page.browser.click("#chats .name")
        assert page.answers() == ["1"], "as long as the page"
    finally:
        page.browser.devtools("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])


def test_is_used_by_keyboard_alone(page):
    page.open(chats=[["How do I read a file?", RICH], ["two", "2"]])
    browser = page.browser
    browser.js("""document.activeElement.blur();
        window.wanted = new Set([...document.querySelectorAll('a[href], button, input, textarea, summary, [tabindex="0"]')]
            .filter(element => element.checkVisibility({visibilityProperty: true}) && !element.closest('dialog')));
        window.unmarked = [];""")
    count = browser.js("return wanted.size")
    for _ in range(count + 3):
        browser.press(TAB)
        browser.js("""
            const at = document.activeElement, style = getComputedStyle(at);
            if (at.id !== 'text' && at !== document.body && style.outlineStyle === 'none') unmarked.push(at.outerHTML);
            wanted.delete(at);""")
    left = browser.js("return [...wanted].map(element => element.outerHTML)")
    assert left == [], left
    assert browser.js("return unmarked") == [], "the focus is seen"

    browser.js("document.querySelector('.skip').focus()")
    browser.press(ENTER)
    assert page.focused() == "text"
    browser.press(UP)
    assert page.focused() == "Edit the message"
    browser.press(ESCAPE)
    assert page.focused() == "Edit"

    # The menu of a chat, there and back.
    browser.js("document.querySelector('#more-c1').focus()")
    browser.press(ENTER)
    assert page.focused() == "rename"
    browser.press(DOWN)
    browser.press(DOWN)
    browser.press(UP)
    assert page.focused() == "export_markdown"
    browser.press(ESCAPE)
    assert page.focused() == "more-c1"

    browser.js("document.querySelector('#open_settings').focus()")
    browser.press(ENTER)
    assert browser.js("return document.querySelector('#settings_dialog').open")
    browser.press(ESCAPE)
    assert page.focused() == "open_settings"

    browser.click("#new")
    assert page.focused() == "text"
    browser.type("#text", "one")
    browser.press(SHIFT, ENTER)
    browser.type("#text", "two")
    assert page.typed() == "one\ntwo"
    browser.press(ENTER)
    browser.wait("return document.querySelector('.answer > .text')?.innerText.length > 0", "an answer")
    assert page.focused() == "text"
    browser.press(ESCAPE)
    page.wait_for_end()
    assert page.questions() == ["one\ntwo"]


def test_fits_a_phone(page):
    page.open(chats=[["How do I read a file? " + "long" * 40, RICH + "\n" + "x" * 300, "Next.", HOSTILE]])
    page.at_width(320, 640)
    try:

        def require_fit(state):
            widest = page.browser.js("return document.documentElement.scrollWidth")
            assert widest <= 320, f"{state} is {widest} wide"

        require_fit("a chat")
        page.picture("phone")
        page.require_access("a phone")
        page.browser.click("#menu")
        assert page.focused() == "new"
        page.picture("phone_chats")
        page.require_access("a phone's chats")
        require_fit("the chats")
        page.browser.press(ESCAPE)
        assert page.focused() == "menu"
        hidden = "return !document.querySelector('#new').checkVisibility({visibilityProperty: true})"
        page.browser.wait(hidden, "the chats are away")
        page.browser.click("#open_settings")
        page.picture("phone_settings")
        require_fit("the settings")
        page.browser.press(ESCAPE)
        page.browser.click("#menu")
        page.browser.wait("return document.querySelector('#sidebar').getBoundingClientRect().left === 0", "the chats")
        page.browser.click("#new")
        require_fit("an empty chat")
        page.picture("phone_empty")
    finally:
        page.at_width(1200)


def test_lets_everybody_in(page):
    """axe-core finds nothing, in light and dark."""
    tokens = [["One", False], [", two", True], [", three", True], [".", False]]
    took = {"predicted_n": 212, "predicted_per_second": 61.24, "tokens_per_forward_pass": 2.31, "draft_n_accepted": 120}
    answer = {"role": "assistant", "content": RICH, "reasoning": "A simple question.", "took": took}
    counted = {"role": "assistant", "content": "One, two, three.", "tokens": tokens, "took": took}
    for scheme in ("light", "dark"):
        page.in_colours(scheme)
        page.open(chats=[["How do I read a file in Python?", answer, "Count to three.", counted],
                         ["Why is the sea salty?", "Rivers bring it."], ["A poem about a lighthouse, please", "No."]])  # fmt: skip
        page.browser.js("scrollTo(0, 0)")
        page.picture(f"chat_{scheme}")
        page.require_access(f"a chat, {scheme}")
        page.browser.click("#drafted")
        page.browser.js("document.querySelector('summary').click(); scrollTo(0, 9999)")
        page.picture(f"tokens_{scheme}")
        page.require_access(f"tokens, {scheme}")
        page.browser.click("#drafted")
        page.browser.click(".message.user .edit")
        page.require_access(f"an edit, {scheme}")
        page.browser.click("#open_settings")
        page.browser.js("document.querySelector('#settings_dialog details').open = true")
        page.picture(f"settings_{scheme}")
        page.require_access(f"the settings, {scheme}")
        page.browser.press(ESCAPE)
        page.browser.click("#new")
        page.picture(f"empty_{scheme}")
        page.require_access(f"an empty chat, {scheme}")
    page.in_colours("light")


def test_asks_for_the_key(page):
    page.open(url=page.locked)
    browser = page.browser
    browser.wait("return document.querySelector('#key_dialog').open", "the question for the key")
    page.require_access("the question for the key")
    page.picture("key")
    browser.type("#key", "wrong")
    browser.press(ENTER)
    browser.wait("return document.querySelector('.error')", "the refusal")
    assert browser.js("return sessionStorage.getItem('key')") is None, "a wrong key is not kept"
    page.ask("Hi")
    browser.wait("return document.querySelector('#key_dialog').open", "the question for the key")
    browser.type("#key", " secret ")
    browser.press(ENTER)
    browser.wait("return document.querySelector('.took')?.innerText", "the answer")
    page.ask("Hi again")
    browser.wait("return document.querySelectorAll('.answer').length === 2", "the second answer")
    page.wait_for_end()
    assert not browser.js("return document.querySelector('#key_dialog').open")
    assert browser.js("return sessionStorage.getItem('key')") == "secret"


def test_chooses_a_model(page):
    page.open(url=page.several)
    browser = page.browser
    browser.wait("return !document.querySelector('#models').hidden", "the choice of a model")
    assert browser.js("return [...document.querySelectorAll('#models option')].map(each => each.value)") == ["one", "two"]
    page.require_access("the choice of a model")
    page.picture("models")
    browser.js("models.value = 'two'; models.dispatchEvent(new Event('change'))")
    page.ask("Hi")
    browser.wait("return document.querySelector('.took')?.innerText", "the answer")
    loaded = browser.js("return fetch('models').then(reply => reply.json()).then(({data}) => data.map(each => each.status.value))")
    assert loaded == ["unloaded", "loaded"], loaded
    browser.go(page.several)
    browser.wait("return document.querySelector('#models').value === 'two'", "the choice is kept")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--axe")
    parser.add_argument("--pictures")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    for there, what in ((chromium, "chromium"), (driver, "chromedriver"), (os.path.exists(args.model), args.model)):
        if not there:
            print(f"skipped: there is no {what} (scripts/setup.sh tests installs it)")
            raise SystemExit(77)
    axe = None
    if args.axe and os.path.exists(args.axe):
        with open(args.axe, encoding="utf-8") as file:
            axe = file.read()
    if args.pictures:
        os.makedirs(args.pictures, exist_ok=True)

    tests = [(name.removeprefix("test_"), test) for name, test in globals().items() if name.startswith("test_")]
    tests = [(name, test) for name, test in tests if args.only in name]
    command = [args.firp, "serve", args.model, "-c", 2048]
    failed = 0
    with tempfile.TemporaryDirectory() as downloads:
        models = pathlib.Path(downloads, "models")
        models.mkdir()
        for name in "one", "two":
            (models / f"{name}.gguf").symlink_to(os.path.abspath(args.model))
        servers = [
            Served(*command),
            Served(*command, "--api-key", "secret", "-n", 8),
            Served(args.firp, "serve", "--models-dir", models, "-c", 2048, "-n", 8),
        ]
        browser = Browser(driver, chromium, downloads)
        try:
            page = Page(
                browser, *(f"http://127.0.0.1:{server.port}/" for server in servers), downloads, axe, args.pictures
            )
            for name, test in tests:
                begin = time.monotonic()
                try:
                    test(page)
                    problems = browser.problems()
                    assert not problems, problems
                except Exception:
                    failed += 1
                    print(f"FAILED: {name}\n{traceback.format_exc()}")
                    page.picture("failed_" + name)
                print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
        finally:
            browser.end()
            for server in servers:
                server.end()
    print(f"{len(tests)} tests, {failed} failed")
    if not axe and not failed:
        print("skipped: the search for what keeps people out; there is no axe-core (scripts/setup.sh tests fetches it)")
        raise SystemExit(77)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
