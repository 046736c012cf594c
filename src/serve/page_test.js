// Runs what of the page's scripts needs no browser, with a stand-in for the server and for what a browser
// keeps. Usage: node page_test.js (scripts/page_in_browser.py has the rest)
const assert = require('assert');
const {readFileSync} = require('fs');
const {join} = require('path');

const script = ['server.js', 'chats.js'].map(name => readFileSync(join(__dirname, 'page', name), 'utf8')).join('');

class Storage {
  getItem(name) { return this[name] ?? null; }
  setItem(name, text) { this[name] = text; }
  removeItem(name) { delete this[name]; }
}

// A page whose server gives these replies in turn, and whose reader these keys.
function page({replies = [], keys = [], kept = new Storage(), session = new Storage()} = {}) {
  const asked = [], told = {prompts: 0};
  const fetch = async (path, options = {}) => {
    asked.push({path, ...options, body: options.body && JSON.parse(options.body)});
    const reply = replies.shift();
    if (reply instanceof Error) throw reply;
    return reply;
  };
  const ask_for_key = async () => {
    assert(++told.prompts < 10, 'asks for the key for ever');
    return keys.shift() ?? null;
  };
  const names = ['ask', 'write_answer', 'explain', 'request_of', 'new_chat', 'chat_of', 'read_chat', 'keep_chat',
                 'remove_chat', 'kept_chats', 'name_of', 'as_markdown', 'as_json', 'file_name', 'settings_of'];
  const functions = new Function('fetch', 'ask_for_key', 'localStorage', 'sessionStorage',
                                 `"use strict"; ${script}; return {${names}};`)(fetch, ask_for_key, kept, session);
  return {...functions, asked, told, kept, session};
}

// A reply whose body comes in these pieces.
function stream(...pieces) {
  const bytes = pieces.map(piece => typeof piece === 'string' ? new TextEncoder().encode(piece) : piece);
  return new Response(new ReadableStream({
    start(to) {
      bytes.forEach(piece => to.enqueue(piece));
      to.close();
    },
  }));
}
const event = data => `data: ${JSON.stringify(data)}\n\n`;
const part = (delta, more = {}) => event({choices: [{delta, ...more}]});
const kDone = 'data: [DONE]\n\n';

// What is there of an answer at its end, and what it failed with.
async function written(...pieces) {
  const {write_answer, explain} = page({replies: [stream(...pieces)]});
  const answer = {role: 'assistant', content: ''};
  try {
    await write_answer({}, answer, undefined, () => {});
    return {answer};
  } catch (error) {
    return {answer, failure: explain(error)};
  }
}

const cases = {
  async 'an answer is its parts, and says what it took'() {
    const timings = {predicted_n: 2, predicted_per_second: 50.5, tokens_per_forward_pass: 2, draft_n_accepted: 1};
    const {answer} = await written(part({role: 'assistant', content: ''}), part({content: 'a'}), part({content: 'b'}),
                                   event({choices: [{delta: {}}], timings: {...timings, prompt_n: 3}}), kDone);
    assert.deepEqual(answer, {role: 'assistant', content: 'ab', took: timings});
  },
  async 'what a model thinks first is told apart'() {
    const {answer} = await written(part({reasoning_content: 'Hm'}), part({reasoning_content: '.'}),
                                   part({content: 'Yes'}), kDone);
    assert.equal(answer.reasoning, 'Hm.');
    assert.equal(answer.content, 'Yes');
  },
  async 'tokens say whether they were drafted, and may end within a character'() {
    const logprobs = {content: [{bytes: [97]}, {bytes: [0xe2, 0x82], drafted: true}, {bytes: [0xac], drafted: true}]};
    const {answer} = await written(part({content: 'a€'}, {logprobs}), kDone);
    assert.deepEqual(answer.tokens, [['a', false], ['', true], ['€', true]]);
  },
  async 'events may come in pieces, with comments and CR LF between'() {
    const bytes = new TextEncoder().encode(
        ': waiting\n\ndata:{"choices":[{"delta":{"content":"é"}}]}\r\n\r\ndata: [DONE]\n\n');
    for (let cut = 1; cut < bytes.length; ++cut) {
      const {answer, failure} = await written(bytes.slice(0, cut), bytes.slice(cut));
      assert.equal(failure, undefined);
      assert.equal(answer.content, 'é');
    }
  },
  async 'a stream that ends without [DONE] is broken off, and what came stays'() {
    const {answer, failure} = await written(part({content: '1'}));
    assert.match(failure, /connection.*lost/);
    assert.equal(answer.content, '1');
  },
  async 'an error in the stream is told'() {
    const {failure} = await written(part({content: '1'}), event({error: {message: 'out of memory'}}));
    assert.equal(failure, 'out of memory');
  },
  async 'a refusal is told by its message, an error page of something between by its status'() {
    const {ask} = page({replies: [new Response('{"error": {"message": "the prompt has 9 tokens"}}', {status: 400}),
                                  new Response('<html>Bad gateway</html>', {status: 502})]});
    await assert.rejects(ask('x'), {message: 'the prompt has 9 tokens'});
    await assert.rejects(ask('x'), /status 502/);
  },
  async 'a server that cannot be reached is named'() {
    const {ask, explain} = page({replies: [new TypeError('Failed to fetch')]});
    assert.match(await ask('x').catch(explain), /server cannot be reached.*Failed to fetch/);
  },
  async 'a wrong key is asked for once a request, and is not kept'() {
    const refused = () => new Response('{"error": {"message": "the API key is wrong"}}', {status: 401});
    const {ask, told, session} = page({replies: [refused(), refused()], keys: ['wrong', 'wrong']});
    await assert.rejects(ask('x'), {message: 'the API key is wrong'});
    assert.equal(told.prompts, 1);
    assert.deepEqual({...session}, {});
  },
  async 'the right key is kept'() {
    const {ask, told, asked} = page({replies: [new Response('{}', {status: 401}), new Response(), new Response()],
                                     keys: [' secret ']});
    await ask('x');
    await ask('y');
    assert.deepEqual(asked.map(({headers}) => headers.Authorization), [undefined, 'Bearer secret', 'Bearer secret']);
    assert.equal(told.prompts, 1);
  },
  async 'a request has the system prompt, what was said, and the sampling that is set'() {
    const {request_of} = page();
    const messages = [{role: 'user', content: 'a'}, {role: 'assistant', content: 'b', reasoning: 'c', took: {}},
                      {role: 'user', content: 'd'}];
    assert.deepEqual(request_of(messages, {system: 'S', top_k: 3}, true), {
      messages: [{role: 'system', content: 'S'}, {role: 'user', content: 'a'}, {role: 'assistant', content: 'b'},
                 {role: 'user', content: 'd'}],
      stream: true, top_k: 3, logprobs: true,
    });
    assert.deepEqual(request_of([], {}, false), {messages: [], stream: true});
  },
  async 'settings are what is understood of what was kept'() {
    const {settings_of} = page();
    assert.deepEqual(settings_of('{"system": "S", "temperature": 0, "top_k": "3", "stream": 0}'),
                     {system: 'S', temperature: 0});
    for (const text of [null, '', 'null', '3', '{"system": " "}']) assert.deepEqual(settings_of(text), {});
  },
  async 'chats are kept by their ids, the last one first'() {
    const {keep_chat, kept_chats, read_chat, remove_chat, kept} = page();
    const chat = (id, changed) => ({id, name: id, changed, messages: [{role: 'user', content: 'a'}]});
    assert(keep_chat({...chat('one', 1), running: {}}));
    assert(keep_chat(chat('two', 2)));
    kept.setItem('firp.chat.bad', '{"id": "bad"}');
    kept.setItem('other', 'x');
    assert.deepEqual(kept_chats(), [chat('two', 2), chat('one', 1)]);
    assert.equal(read_chat('bad'), null);
    remove_chat('two');
    assert.deepEqual(kept_chats(), [chat('one', 1)]);
  },
  async 'a browser that keeps nothing, or has no room, keeps chats as long as the page'() {
    const denied = new Proxy({}, {get() { throw new Error('denied'); }, ownKeys() { throw new Error('denied'); }});
    const full = new Storage();
    Object.defineProperty(full, 'setItem', {value() { throw new Error('full'); }});
    for (const kept of [denied, full]) {
      const {keep_chat, kept_chats, read_chat, remove_chat} = page({kept});
      const chat = {id: 'one', name: 'One', changed: 1, messages: []};
      assert.equal(keep_chat(chat), false);
      assert.deepEqual(read_chat('one'), chat);
      assert.deepEqual(kept_chats(), [chat]);
      remove_chat('one');
      assert.deepEqual(kept_chats(), []);
    }
  },
  async 'a chat is named by its first words'() {
    const {name_of} = page();
    assert.equal(name_of('  Why is\tthe sea salty?\nTell me.'), 'Why is the sea salty?');
    assert.equal(name_of('word '.repeat(30)), 'word word word word word word word word word …');
    assert.equal(name_of('x'.repeat(100)).length, 50);
  },
  async 'chats are exported as Markdown and as JSON'() {
    const {as_markdown, as_json, file_name} = page();
    const chat = {id: 'c', name: 'Sea: why?', changed: 0, running: null,
                  messages: [{role: 'user', content: 'Why?'}, {role: 'assistant', content: '**Salt**\n', took: {}}]};
    assert.equal(as_markdown(chat), '# Sea: why?\n\n## You\n\nWhy?\n\n## Answer\n\n**Salt**\n');
    assert.deepEqual(JSON.parse(as_json(chat)),
                     {name: chat.name, changed: '1970-01-01T00:00:00.000Z', messages: chat.messages});
    assert.equal(file_name(chat, 'md'), 'Sea-why.md');
    assert.equal(file_name({name: '??'}, 'md'), 'chat.md');
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
