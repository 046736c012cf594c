// Runs the script of page.html with a stand-in for the browser and for the server: what is sent, and what
// does a person see? Usage: node page_test.js PAGE.html
const assert = require('assert');
const {readFileSync} = require('fs');

const script = readFileSync(process.argv[2], 'utf8').match(/<script>([\s\S]*)<\/script>/)[1];

function element() {
  return {
    className: '', textContent: '', value: '', children: [],
    append(child) { this.children.push(child); },
    replaceChildren() { this.children = []; },
    scrollIntoView() {},
    requestSubmit() { this.onsubmit({preventDefault() {}, submitter: null}); },
  };
}

// A request of the page, answered by the test.
class Exchange {
  constructor(path, options) {
    Object.assign(this, {path, headers: options.headers, open: true});
    this.messages = options.body && JSON.parse(options.body).messages;
    this.response = new Promise((resolve, reject) => Object.assign(this, {resolve, reject}));
    this.stream = new ReadableStream({start: to => { this.to = to; }, cancel: () => { this.open = false; }});
    options.signal?.addEventListener('abort', () => this.lose(new DOMException('aborted', 'AbortError')));
  }
  refuse(status, body) { this.resolve(new Response(body, {status})); }
  begin() { this.resolve(new Response(this.stream)); }
  write(text) { this.to.enqueue(new TextEncoder().encode(text)); }
  event(data) { this.write(`data: ${JSON.stringify(data)}\n\n`); }
  text(content) { this.event({choices: [{delta: {content}}]}); }
  lose(error) {
    if (!this.open) return;
    this.open = false;
    this.reject(error);
    try { this.to.error(error); } catch { }
  }
  end() {
    this.open = false;
    this.to.close();
  }
  answer(content) {
    this.begin();
    if (content !== '') this.text(content);
    this.write('data: [DONE]\n\n');
    this.end();
  }
}

class Browser {
  constructor({storage = {}, keys = []} = {}) {
    Object.assign(this, {storage, keys, elements: {}, exchanges: [], prompts: 0});
    const document = {
      title: '',
      getElementById: id => this.elements[id] ??= element(),
      createElement: element,
    };
    const fetch = (path, options = {}) => {
      this.exchanges.push(new Exchange(path, options));
      return this.exchanges.at(-1).response;
    };
    const prompt = () => {
      assert(++this.prompts < 10, 'asks for the key for ever');
      return this.keys.shift() ?? null;
    };
    const window = {onscroll: null};
    new Function('document', 'window', 'sessionStorage', 'fetch', 'prompt', `with (window) { ${script} }`)(
        document, window, {
          getItem: name => this.storage[name] ?? null,
          setItem: (name, value) => { this.storage[name] = value; },
        }, fetch, prompt);
    this.exchanges.shift().resolve(new Response('{"data": [{"id": "smol"}]}'));
  }
  get last() { return this.exchanges.at(-1); }
  get typed() { return this.elements.text.value; }
  set typed(text) { this.elements.text.value = text; }
  shown(kind) {
    return this.elements.chat.children.filter(box => box.className.split(' ').includes(kind))
        .map(box => box.textContent);
  }
  async enter(text) {
    if (text !== undefined) this.typed = text;
    this.elements.text.onkeydown({key: 'Enter', preventDefault() {}});
    await settle();
  }
  async ask(text) {
    await this.enter(text);
    return this.last;
  }
  async stop() {
    assert.equal(this.elements.send.textContent, 'Stop');
    this.elements.form.onsubmit({preventDefault() {}, submitter: this.elements.send});
    await settle();
  }
  async new_chat() {
    this.elements.reset.onclick();
    await settle();
  }
}

// What is on its way through promises and streams arrives.
async function settle() {
  for (let i = 0; i < 50; ++i) await new Promise(next => setImmediate(next));
}

const user = content => ({role: 'user', content});
const assistant = content => ({role: 'assistant', content});
const cases = {
  async 'a conversation goes on with what was said'(page = new Browser()) {
    (await page.ask('one')).answer('1');
    await settle();
    const {messages} = await page.ask('two');
    assert.deepEqual(messages, [user('one'), assistant('1'), user('two')]);
    assert.deepEqual(page.shown('message'), ['one', '1', 'two', '']);
  },
  async 'a new chat holds nothing of the answer that was being written'(page = new Browser()) {
    const old = await page.ask('a story');
    old.begin();
    old.text('Once');
    await settle();
    await page.new_chat();
    assert.equal(old.open, false);
    assert.equal(page.elements.send.textContent, 'Send');
    assert.deepEqual(page.shown('message'), []);
    const {messages} = await page.ask('hello');
    assert.deepEqual(messages, [user('hello')]);
    assert.deepEqual(page.shown('message'), ['hello', '']);
  },
  async 'the end of an old chat\'s answer does not end the new chat\'s'(page = new Browser()) {
    await page.ask('a story');
    page.elements.reset.onclick();
    page.typed = 'hello';
    page.elements.form.onsubmit({preventDefault() {}, submitter: page.elements.send});
    const fresh = page.last;
    await settle();
    assert.equal(page.elements.send.textContent, 'Stop');
    fresh.answer('hi');
    await settle();
    assert.deepEqual((await page.ask('more')).messages, [user('hello'), assistant('hi'), user('more')]);
  },
  async 'a failed question is not sent again, and is back in the box'(page = new Browser()) {
    (await page.ask('too long')).refuse(400, '{"error": {"message": "the prompt has 9 tokens"}}');
    await settle();
    assert.equal(page.typed, 'too long');
    assert.deepEqual(page.shown('error'), ['the prompt has 9 tokens']);
    assert.deepEqual((await page.ask('short')).messages, [user('short')]);
  },
  async 'what was typed meanwhile is not overwritten by a failed question'(page = new Browser()) {
    const request = await page.ask('one');
    page.typed = 'two';
    request.refuse(500, '');
    await settle();
    assert.equal(page.typed, 'two');
    assert.deepEqual(page.shown('unsent'), ['one']);
  },
  async 'a stopped answer stays as far as it came'(page = new Browser()) {
    const request = await page.ask('a story');
    request.begin();
    request.text('Once');
    await settle();
    await page.stop();
    assert.equal(request.open, false);
    assert.deepEqual(page.shown('error'), []);
    assert.deepEqual((await page.ask('go on')).messages, [user('a story'), assistant('Once'), user('go on')]);
  },
  async 'a question stopped before its answer began is back in the box'(page = new Browser()) {
    await page.ask('a story');
    await page.stop();
    assert.equal(page.typed, 'a story');
    assert.deepEqual((await page.ask('hello')).messages, [user('hello')]);
  },
  async 'Enter leaves the running answer and the typed text alone'(page = new Browser()) {
    const request = await page.ask('a story');
    await page.enter('and then');
    assert.equal(request.open, true);
    assert.equal(page.exchanges.length, 1);
    assert.equal(page.typed, 'and then');
    request.answer('The end.');
    await settle();
    await page.enter();
    assert.deepEqual(page.last.messages, [user('a story'), assistant('The end.'), user('and then')]);
  },
  async 'an error in the stream is shown, and closes it'(page = new Browser()) {
    const request = await page.ask('one');
    request.begin();
    request.event({error: {message: 'out of memory'}});
    await settle();
    assert.equal(request.open, false);
    assert.deepEqual(page.shown('error'), ['out of memory']);
    assert.equal(page.typed, 'one');
    assert.deepEqual((await page.ask('two')).messages, [user('two')]);
  },
  async 'a server gone in mid-answer is told, and what came stays'(page = new Browser()) {
    const request = await page.ask('one');
    request.begin();
    request.text('1');
    await settle();
    request.lose(new TypeError('network error'));
    await settle();
    assert.match(page.shown('error')[0], /server cannot be reached.*network error/);
    assert.deepEqual((await page.ask('two')).messages, [user('one'), assistant('1'), user('two')]);
  },
  async 'a stream that ends without [DONE] is broken off'(page = new Browser()) {
    const request = await page.ask('one');
    request.begin();
    request.text('1');
    await settle();
    request.end();
    await settle();
    assert.match(page.shown('error')[0], /connection.*lost/);
  },
  async 'a server that cannot be reached is named'(page = new Browser()) {
    (await page.ask('one')).lose(new TypeError('Failed to fetch'));
    await settle();
    assert.match(page.shown('error')[0], /server cannot be reached/);
    assert.equal(page.typed, 'one');
  },
  async 'an empty answer is no part of the conversation'(page = new Browser()) {
    (await page.ask('one')).answer('');
    await settle();
    assert.deepEqual(page.shown('error'), ['The answer is empty']);
    assert.deepEqual((await page.ask('two')).messages, [user('two')]);
  },
  async 'an error page of something between is told by its status'(page = new Browser()) {
    (await page.ask('one')).refuse(502, '<html>Bad gateway</html>');
    await settle();
    assert.match(page.shown('error')[0], /status 502/);
  },
  async 'events may come in pieces, with comments and CR LF between'(page = new Browser()) {
    const request = await page.ask('one');
    request.begin();
    for (const piece of [': waiting\n\nda', 'ta:{"choices":[{"delta":{"content":"1"}}]}\r', '\n\r\ndata: [DO', 'NE]\n\n']) {
      request.write(piece);
      await settle();
    }
    request.end();
    await settle();
    assert.deepEqual(page.shown('error'), []);
    assert.deepEqual(page.shown('message'), ['one', '1']);
  },
  async 'a wrong key is asked for once a request, and is not kept'(page = new Browser({keys: ['wrong', 'wrong']})) {
    (await page.ask('one')).refuse(401, '{"error": {"message": "the API key is wrong"}}');
    await settle();
    page.last.refuse(401, '{"error": {"message": "the API key is wrong"}}');
    await settle();
    assert.equal(page.prompts, 1);
    assert.deepEqual(page.shown('error'), ['the API key is wrong']);
    assert.deepEqual(page.storage, {});
    assert.equal(page.typed, 'one');
  },
  async 'the right key is kept'(page = new Browser({keys: [' secret ']})) {
    (await page.ask('one')).refuse(401, '{}');
    await settle();
    assert.equal(page.last.headers.Authorization, 'Bearer secret');
    page.last.answer('1');
    await settle();
    assert.equal((await page.ask('two')).headers.Authorization, 'Bearer secret');
    assert.equal(page.prompts, 1);
  },
  async 'a browser that keeps nothing for pages can chat'() {
    const page = new Browser({storage: new Proxy({}, {get() { throw new Error('denied'); }})});
    (await page.ask('one')).answer('1');
    await settle();
    assert.deepEqual(page.shown('message'), ['one', '1']);
  },
  async 'requests say that they are JSON'(page = new Browser()) {
    assert.equal((await page.ask('one')).headers['Content-Type'], 'application/json');
  },
  async 'the Enter that ends a composition does not send'(page = new Browser()) {
    page.typed = 'に';
    page.elements.text.onkeydown({key: 'Enter', isComposing: true, preventDefault() {}});
    page.elements.text.onkeydown({key: 'Enter', keyCode: 229, preventDefault() {}});  // Safari
    await settle();
    assert.equal(page.exchanges.length, 0);
  },
};

(async () => {
  let failed = 0;
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run();
    } catch (error) {
      ++failed;
      console.log(`FAILED: ${name}\n  ${error.stack}`);
    }
  }
  console.log(`${Object.keys(cases).length} cases, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
})();
