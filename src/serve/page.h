#pragma once

#include <string_view>

namespace firp {

/// What a browser gets at /: a chat with the model, in one page that loads nothing else.
inline constexpr std::string_view kPage = R"html(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>FIRP</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --mine: #3b82f622; }
  body { margin: 0 auto; max-width: 48rem; min-height: 100vh; padding: 0 1rem; box-sizing: border-box;
         display: flex; flex-direction: column; font: 1rem/1.5 system-ui, sans-serif; }
  header { display: flex; gap: 1rem; align-items: baseline; padding: .75rem 0;
           border-bottom: 1px solid var(--line); }
  header b { flex: 1; overflow-wrap: anywhere; }
  main { flex: 1; padding: 1rem 0; }
  main > * { scroll-margin-bottom: 7rem; }
  .message { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 1rem; }
  .user { background: var(--mine); border-radius: .75rem; padding: .5rem .75rem; margin-left: 15%; }
  .took { color: #888; font-size: .8rem; margin: -.75rem 0 1rem; }
  .error { color: #dc2626; }
  form { display: flex; gap: .5rem; position: sticky; bottom: 0; background: Canvas; padding: .75rem 0; }
  textarea { flex: 1; font: inherit; resize: none; padding: .5rem; }
  button, input { font: inherit; }
  label { font-size: .9rem; }
  input { width: 4rem; }
</style>
<header>
  <b id="model">FIRP</b>
  <label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" placeholder="0"></label>
  <button id="reset" type="button">New chat</button>
</header>
<main id="chat"></main>
<form id="form">
  <textarea id="text" rows="2" placeholder="Ask something (Enter sends, Shift+Enter breaks the line)" autofocus></textarea>
  <button id="send">Send</button>
</form>
<script>
const at = id => document.getElementById(id);
let messages = [], running = null;

function show(kind, text) {
  const box = document.createElement('div');
  box.className = kind;
  box.textContent = text;
  at('chat').append(box);
  box.scrollIntoView({block: 'end'});
  return box;
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem('key');
  const headers = key ? {Authorization: 'Bearer ' + key} : {};
  const reply = await fetch(path, {...options, headers});
  if (reply.status === 401) {
    const given = prompt('API key');
    if (given) {
      sessionStorage.setItem('key', given);
      return ask(path, options);
    }
  }
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  return reply;
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (held + value).split('\n\n');
    held = parts.pop();
    for (const part of parts) {
      const data = part.slice('data: '.length);
      if (data !== '[DONE]') yield JSON.parse(data);
    }
  }
}

async function answer(question) {
  messages.push({role: 'user', content: question});
  show('message user', question);
  const box = show('message', '');
  let text = '', took = null;
  running = new AbortController();
  at('send').textContent = 'Stop';
  try {
    const body = {messages, stream: true};
    if (at('temperature').value !== '') body.temperature = Number(at('temperature').value);
    const reply = await ask('v1/chat/completions',
                            {method: 'POST', body: JSON.stringify(body), signal: running.signal});
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      text += event.choices[0]?.delta.content ?? '';
      box.textContent = text;
      took = event.timings ?? took;
      box.scrollIntoView({block: 'end'});
    }
  } catch (error) {
    if (error.name !== 'AbortError') show('message error', error.message);
  }
  running = null;
  at('send').textContent = 'Send';
  messages.push({role: 'assistant', content: text});
  if (took) {
    show('took', `${took.predicted_n} tokens, ${took.predicted_per_second.toFixed(1)} tokens/s, ` +
                 `${took.tokens_per_forward_pass.toFixed(2)} tokens per forward pass`);
  }
}

at('form').onsubmit = event => {
  event.preventDefault();
  if (running) return running.abort();
  const question = at('text').value.trim();
  if (question === '') return;
  at('text').value = '';
  answer(question);
};
at('text').onkeydown = event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at('form').requestSubmit();
  }
};
at('reset').onclick = () => {
  running?.abort();
  messages = [];
  at('chat').replaceChildren();
};
ask('v1/models').then(reply => reply.json()).then(list => {
  at('model').textContent = document.title = list.data[0].id;
}).catch(error => show('message error', error.message));
</script>
</html>
)html";

}  // namespace firp
