// Requests to the server.

// What stands between page and server may answer with a page of its own.
async function refusal(reply) {
  const body = await reply.text();
  try {
    const {message} = JSON.parse(body).error;
    if (message) return message;
  } catch { }
  return `The server answered with status ${reply.status} ${reply.statusText}`.trim();
}

async function ask(path, options = {}) {
  const attempt = key => fetch(
      path, {...options, headers: {...options.headers, ...(key ? {Authorization: 'Bearer ' + key} : {})}});
  let reply = await attempt(session.read('key'));
  if (reply.status === 401) {
    const key = (await ask_for_key())?.trim();
    if (key) {
      reply = await attempt(key);
      if (reply.status !== 401) session.write('key', key);
    }
  }
  if (!reply.ok) throw new Error(await refusal(reply));
  return reply;
}

// The events of a stream. One that ends without a [DONE] is broken off.
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '', complete = false;
  for (;;) {
    const {value, done} = await reader.read();
    if (done && !complete) throw new Error('The connection to the server was lost');
    if (done) return;
    const lines = (held + value).split('\n');
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data:')) continue;
      const data = line.slice('data:'.length).trim();
      complete = data === '[DONE]';
      if (!complete) yield JSON.parse(data);
    }
  }
}

function explain(error) {
  // What browsers throw where there is no connection, or none any more.
  return error.name === 'TypeError' ? `The server cannot be reached. Is it running? (${error.message})`
                                    : error.message;
}

// What is asked for: the conversation so far, and what the settings say.
function request_of(messages, settings, tells_tokens) {
  const {system, ...sampling} = settings;
  return {
    messages: [
      ...(system ? [{role: 'system', content: system}] : []),
      ...messages.map(({role, content}) => ({role, content})),
    ],
    stream: true,
    ...sampling,
    ...(tells_tokens ? {logprobs: true} : {}),
  };
}

// Has an answer written into `answer`: its `content`, the `reasoning` before it, what it `took`, and where
// the request asks for them the `tokens` as [text, whether it was drafted]. on_part() is called for each
// part. Throws where the answer fails; what came until then is there.
async function write_answer(request, answer, signal, on_part) {
  const reply = await ask('v1/chat/completions', {
    method: 'POST',
    headers: {'Content-Type': 'application/json'},
    body: JSON.stringify(request),
    signal,
  });
  const characters = new TextDecoder();  // a token may end within one
  for await (const event of events(reply)) {
    if (event.error) throw new Error(event.error.message ?? 'The server reports an error');
    const choice = event.choices?.[0];
    answer.content += choice?.delta?.content ?? '';
    const reasoning = choice?.delta?.reasoning_content;
    if (reasoning) answer.reasoning = (answer.reasoning ?? '') + reasoning;
    for (const {bytes, drafted} of choice?.logprobs?.content ?? []) {
      (answer.tokens ??= []).push(
          [characters.decode(Uint8Array.from(bytes), {stream: true}), drafted === true]);
    }
    if (event.timings) {
      const {predicted_n, predicted_per_second, tokens_per_forward_pass, draft_n_accepted} = event.timings;
      answer.took = {predicted_n, predicted_per_second, tokens_per_forward_pass, draft_n_accepted};
    }
    on_part();
  }
}
