// The page itself. The chat on the screen may be another one than those whose answers are being written:
// each answer keeps the chat that it was asked in.

const at = id => document.getElementById(id);
function made(tag, className, more = {}) {
  return Object.assign(document.createElement(tag), {className, ...more});
}
function made_button(label, className, onclick) {
  return made('button', className, {type: 'button', textContent: label, onclick});
}

// ---- What the reader is told

// For screen readers, which get an answer when it is complete and not each token.
function say(text) { at('status').textContent = text; }

// Stays until the next one, or until its reader has done with it.
function notify(text, action, on_action) {
  const close = () => at('notice').replaceChildren();
  at('notice').replaceChildren(made('span', '', {textContent: text}));
  if (action) {
    at('notice').append(made_button(action, 'quiet', () => {
      close();
      on_action();
    }));
  }
  at('notice').append(made_button('Close', 'quiet', () => {
    close();
    at('text').focus();
  }));
}

// The value of the button that a dialog was closed by; '' where it was left.
function answer_of(dialog) {
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise(closed => { dialog.onclose = () => closed(dialog.returnValue); });
}

for (const button of document.querySelectorAll('.cancel')) {
  button.onclick = () => button.closest('dialog').close();
}

// Requests that are refused at the same time ask once.
let key_asked = null;
function ask_for_key() {
  if (!key_asked) at('key').value = '';
  key_asked ??= answer_of(at('key_dialog')).then(button => button === 'save' ? at('key').value : null)
      .finally(() => { key_asked = null; });
  return key_asked;
}

// New text is scrolled into view, unless its reader has scrolled up.
let following = true, scrolled = 0;
onscroll = () => {
  const at_end = innerHeight + scrollY > document.documentElement.scrollHeight - 100;
  following = at_end || (following && scrollY >= scrolled);
  scrolled = scrollY;
};
function follow() {
  if (following) scrollTo({top: document.documentElement.scrollHeight, behavior: 'instant'});
}

// ---- Copies

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { }
  // Browsers have no clipboard for pages that came from another machine without TLS.
  const area = made('textarea', 'unseen', {value: text}), focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return copied;
}
function copy_button(label, text) {
  const button = made_button('Copy', 'quiet', async () => {
    const copied = await copy(text());
    button.textContent = copied ? 'Copied' : 'Not copied';
    say(button.textContent);
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
  button.ariaLabel = label;
  return button;
}

function save_file(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], {type}));
  made('a', '', {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// ---- Messages

let settings = settings_of(browser.read('firp.settings'));
// Beside what is kept, a chat has `running`, the request whose answer is being written, and `notes`: what
// went wrong, as {kind, text}, until the next question.
let chat = opened(new_chat());
// By their ids: chats whose answers are being written, or that have notes.
const busy = new Map();

function opened(kept) { return {...kept, running: null, notes: []}; }

function took_text({predicted_n, predicted_per_second, tokens_per_forward_pass, draft_n_accepted}) {
  return `${predicted_n} tokens · ${predicted_per_second.toFixed(1)} tokens/s · ` +
      `${tokens_per_forward_pass.toFixed(2)} tokens per pass · ${draft_n_accepted} drafted`;
}

// What shows a message or note, one element for each as long as it is there.
const boxes = new WeakMap();
function box_of(message) {
  if (!boxes.has(message)) {
    const make = message.kind ? note_box : message.role === 'user' ? question_box : answer_box;
    boxes.set(message, make(message));
  }
  return boxes.get(message);
}

function note_box({kind, text}) {
  return made('p', kind, {textContent: text, role: kind === 'error' ? 'alert' : null, dir: 'auto'});
}

function question_box(message) {
  const box = made('article', 'message user');
  const actions = made('footer', '');
  actions.append(made_button('Edit', 'quiet edit', () => edit(message)),
                 copy_button('Copy the message', () => message.content));
  box.append(made('h2', 'unseen', {textContent: 'You'}),
             made('div', 'text', {textContent: message.content, dir: 'auto'}), actions);
  return box;
}

function answer_box(message) {
  const box = made('article', 'message answer');
  const thinking = made('details', 'thinking', {hidden: true});
  thinking.append(made('summary', '', {textContent: 'Thinking'}), made('div', 'text', {dir: 'auto'}));
  const actions = made('footer', '');
  actions.append(copy_button('Copy the answer', () => message.content),
                 made_button('Regenerate', 'quiet again', regenerate), made('span', 'took'));
  box.append(made('h2', 'unseen', {textContent: 'Answer'}), thinking, made('div', 'text'), actions);
  update(box, message);
  return box;
}

// Brings what shows an answer up to date.
function update(box, message) {
  const {content, reasoning, tokens, took} = message;
  const [, thinking, text, actions] = box.children;
  thinking.hidden = !reasoning;
  if (reasoning) thinking.lastChild.textContent = reasoning.trim();
  const as_tokens = at('drafted').checked && tokens !== undefined;
  if (text.classList.contains('tokens') !== as_tokens) text.replaceChildren();
  text.classList.toggle('tokens', as_tokens);
  if (as_tokens) {
    for (const [written, drafted] of tokens.slice(text.children.length)) {
      text.append(made(drafted ? 'mark' : 'span', drafted ? 'drafted' : '', {textContent: written}));
    }
  } else {
    show_markdown(content, text);
  }
  actions.lastChild.textContent = took ? took_text(took) : '';
}

// The chat as it is. What is on the screen already stays untouched.
function show_chat() {
  const wanted = [...chat.messages, ...chat.notes].map(box_of);
  for (const box of [...at('chat').children]) {
    if (!wanted.includes(box)) box.remove();
  }
  wanted.forEach((box, i) => {
    const there = at('chat').children[i];
    if (there !== box) at('chat').insertBefore(box, there ?? null);
  });
  at('chat').classList.toggle('running', chat.running !== null);
  at('empty').hidden = wanted.length > 0;
  at('send').textContent = chat.running ? 'Stop' : 'Send';
  at('title').textContent = chat.name || 'New chat';
  document.title = chat.name ? `${chat.name} – FIRP` : 'FIRP';
  follow();
}

// ---- Asking

// Has the last of `messages`, a question, answered in place of what the chat has. Where no answer comes,
// the chat is as before; returns why, or null.
async function answer(messages) {
  const asked_in = chat, before = chat.messages, request = new AbortController();
  const reply = {role: 'assistant', content: ''};
  const came = () => reply.content !== '' || reply.reasoning !== undefined;
  asked_in.messages = [...messages, reply];
  asked_in.notes = [];
  asked_in.running = request;
  asked_in.changed = Date.now();
  asked_in.name ||= name_of(messages[0].content);
  busy.set(asked_in.id, asked_in);
  session.write('chat', asked_in.id);
  following = true;
  show_chat();
  show_chats();
  const box = box_of(reply);
  box.ariaBusy = 'true';
  say('The answer is being written');

  let drawn = true, kept_at = Date.now();
  const on_part = () => {
    if (came() && Date.now() - kept_at > 1000) {
      keep(asked_in);
      kept_at = Date.now();
    }
    if (!drawn) return;
    drawn = false;
    requestAnimationFrame(() => {
      const begin = performance.now();
      update(box, reply);
      if (asked_in === chat) follow();
      setTimeout(() => { drawn = true; }, 2 * (performance.now() - begin));  // a third of the time at most
    });
  };
  let failure = null;
  try {
    const asked_for = at('models').hidden ? settings : {...settings, model: at('models').value};
    await write_answer(request_of(messages, asked_for, at('drafted').checked), reply, request.signal, on_part);
    if (!came()) failure = 'The answer is empty';
  } catch (error) {
    if (!request.signal.aborted) failure = explain(error);
  }
  request.abort();  // of an answer that failed here the rest is not wanted
  box.ariaBusy = 'false';
  asked_in.running = null;
  if (came()) {
    if (at('model').textContent === '' && at('models').hidden) show_model().catch(() => {});  // for which there was no key before
    box.querySelector('.answer > .text').replaceChildren();  // what came late may mean earlier blocks, too
    update(box, reply);
    if (busy.has(asked_in.id)) keep(asked_in);
  } else {
    asked_in.messages = before;
    if (before.length === 0) asked_in.name = '';
  }
  if (failure) asked_in.notes.push({kind: 'error', text: failure});
  if (asked_in.notes.length === 0 || asked_in === chat) busy.delete(asked_in.id);
  if (asked_in === chat) {
    show_chat();
    say(came() ? `Answer: ${box.querySelector('.answer > .text').textContent}` : failure ? '' : 'Stopped');
  } else if (failure) {
    notify(`An answer in “${asked_in.name || 'New chat'}” failed: ${failure}`);
  }
  show_chats();
  return came();
}

async function send(question) {
  const asked_in = chat;
  if (await answer([...chat.messages, {role: 'user', content: question}])) return;
  // Back into the box, unless something else was written there meanwhile.
  if (asked_in === chat && at('text').value === '') {
    at('text').value = question;
  } else {
    asked_in.notes.unshift({kind: 'unsent', text: question});
    busy.set(asked_in.id, asked_in);
    if (asked_in === chat) show_chat();
    show_chats();
  }
}

function regenerate() {
  if (chat.running) return;
  at('text').focus();  // the button goes with the answer
  answer(chat.messages.slice(0, -1));
}

// Opens a message of the reader's for change; what follows it is written anew.
function edit(message, text = message.content) {
  if (chat.running) return;
  const asked_in = chat, box = box_of(message);
  const form = made('form', 'editor');
  const area = made('textarea', '', {value: text, ariaLabel: 'Edit the message', dir: 'auto', rows: 3});
  const close = () => {
    form.remove();
    box.classList.remove('editing');
  };
  const cancel = () => {
    close();
    box.querySelector('.edit').focus();
  };
  form.onsubmit = async event => {
    event.preventDefault();
    const changed = area.value.trim();
    if (changed === '' || chat.running || asked_in !== chat) return;
    close();
    at('text').focus();
    const place = chat.messages.indexOf(message);
    const came = await answer([...chat.messages.slice(0, place), {role: 'user', content: changed}]);
    if (!came && asked_in === chat) edit(message, changed);
  };
  area.onkeydown = event => {
    if (event.key === 'Escape') cancel();
    if (sends(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  };
  const buttons = made('div', 'buttons');
  buttons.append(made_button('Cancel', '', cancel), made('button', 'main', {textContent: 'Send'}));
  form.append(area, buttons);
  box.querySelector('.editor')?.remove();
  box.classList.add('editing');
  box.append(form);
  area.focus();
}

// The Enter that ends an input method's composition is not a message's end; Safari tells it by 229.
function sends(event) {
  return event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

at('form').onsubmit = event => {
  event.preventDefault();
  if (chat.running) {
    if (event.submitter) chat.running.abort();  // the button says Stop; Enter has no button
    return;
  }
  const question = at('text').value.trim();
  if (question === '') return;
  at('text').value = '';
  send(question);
};
at('text').onkeydown = event => {
  if (sends(event)) {
    event.preventDefault();
    at('form').requestSubmit();
  } else if (event.key === 'Escape') {
    chat.running?.abort();
  } else if (event.key === 'ArrowUp' && at('text').value === '') {
    const last = chat.messages.findLast(message => message.role === 'user');
    if (!last) return;
    event.preventDefault();
    edit(last);
  }
};

// ---- Chats

let known = [];  // of the chats that are kept, the last state that is known here
function keep(one) {
  if (!keep_chat(one)) at('nothing_kept').hidden = false;
  known = [one, ...known.filter(({id}) => id !== one.id)];
  show_chats();
}

let listed = '';
function show_chats() {
  const all = new Map([...known, ...busy.values()].map(one => [one.id, one]));
  const rows = [...all.values()].sort((one, other) => other.changed - one.changed)
      .map(({id, name, running}) =>
               ({id, name: name || 'New chat', current: id === chat.id, running: running != null}));
  if (listed === JSON.stringify(rows)) return;
  listed = JSON.stringify(rows);
  const focused = at('chats').contains(document.activeElement) ? document.activeElement.id : '';
  at('chats').replaceChildren(...rows.map(chat_row));
  at(focused)?.focus();
  at('export_all').hidden = rows.length === 0;
}

function chat_row({id, name, current, running}) {
  const row = made('li', '');
  const open = made_button('', 'name', () => open_chat(busy.get(id) ?? opened(read_chat(id) ?? new_chat())));
  open.id = 'open-' + id;
  open.append(made('span', '', {textContent: name, dir: 'auto'}));
  if (current) open.ariaCurrent = 'true';
  if (running) open.append(made('span', 'dot', {role: 'img', ariaLabel: 'is being written'}));
  const more = made_button('', 'icon', () => show_menu(id));
  more.id = 'more-' + id;
  more.ariaLabel = `More for ${name}`;
  more.append(...[3, 8, 13].map(() => made('span', '')));
  row.append(open, more);
  return row;
}

function open_chat(other) {
  chat = other;
  session.write('chat', chat.id);
  following = true;
  close_sidebar();
  show_chat();
  show_drafted();
  show_chats();
  at('text').focus();
}
at('new').onclick = () => open_chat(opened(new_chat()));

let menu_of = null;  // the id of the chat that the menu is for
function show_menu(id) {
  menu_of = id;
  const menu = at('chat_menu'), place = at('more-' + id).getBoundingClientRect();
  menu.showPopover();
  menu.style.left = `${Math.max(8, Math.min(place.left, innerWidth - menu.offsetWidth - 8))}px`;
  menu.style.top = `${Math.max(8, Math.min(place.bottom + 4, innerHeight - menu.offsetHeight - 8))}px`;
  menu.querySelector('button').focus();
  menu.onbeforetoggle = event => {
    if (event.newState === 'closed' && menu.contains(document.activeElement)) at('more-' + id)?.focus();
  };
}
at('chat_menu').onkeydown = event => {
  const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (!step) return;
  event.preventDefault();
  const items = [...at('chat_menu').querySelectorAll('button')];
  items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
};
// What the menu's buttons do, with the chat that it is for.
function in_menu(name, action) {
  at(name).onclick = () => {
    at('chat_menu').hidePopover();
    const one = chat.id === menu_of ? chat : busy.get(menu_of) ?? opened(read_chat(menu_of) ?? new_chat());
    action(one);
  };
}
in_menu('rename', async one => {
  at('name').value = one.name;
  const button = await answer_of(at('rename_dialog'));
  const name = at('name').value.trim();
  if (button !== 'save' || name === '') return;
  one.name = name;
  keep(one);
  show_chat();
});
in_menu('export_markdown', one => save_file(file_name(one, 'md'), 'text/markdown', as_markdown(one)));
in_menu('export_json', one => save_file(file_name(one, 'json'), 'application/json', as_json(one)));
in_menu('delete', one => {
  busy.delete(one.id);
  one.running?.abort();
  remove_chat(one.id);
  known = known.filter(({id}) => id !== one.id);
  if (one.id === chat.id) at('new').click();
  show_chats();
  at('text').focus();
  notify(`“${one.name || 'New chat'}” was deleted.`, 'Undo', () => {
    keep(one);
    open_chat(one);
  });
});
at('export_all').onclick = () => {
  save_file('chats.json', 'application/json', `[${kept_chats().map(as_json).join(',\n')}]\n`);
};
// Another tab changed them.
onstorage = () => {
  known = kept_chats();
  show_chats();
};

// On a narrow screen the chats lie over the page while they are looked at.
function close_sidebar() {
  at('sidebar').classList.remove('open');
  at('menu').ariaExpanded = 'false';
  at('page').inert = false;
}
at('menu').onclick = () => {
  at('sidebar').classList.add('open');
  at('menu').ariaExpanded = 'true';
  at('page').inert = true;
  at('new').focus();
};
at('backdrop').onclick = close_sidebar;
at('sidebar').onkeydown = event => {
  if (event.key !== 'Escape' || !at('page').inert) return;
  close_sidebar();
  at('menu').focus();
};
matchMedia('(min-width: 50rem)').onchange = close_sidebar;

// ---- Settings

function show_settings(shown) {
  at('system').value = shown.system ?? '';
  for (const name of kNumbers) at(name).value = shown[name] ?? '';
}
function show_theme(theme) { document.documentElement.dataset.theme = theme; }

at('open_settings').onclick = async () => {
  show_settings(settings);
  at('theme').value = browser.read('firp.theme') ?? '';
  if (await answer_of(at('settings_dialog')) !== 'save') return;
  const written = {system: at('system').value};
  for (const name of kNumbers) {
    if (at(name).value !== '') written[name] = Number(at(name).value);
  }
  settings = settings_of(JSON.stringify(written));
  browser.write('firp.settings', JSON.stringify(settings));
  browser.write('firp.theme', at('theme').value);
  show_theme(at('theme').value);
};
at('clear').onclick = () => {
  show_settings({});
  at('theme').value = '';
  say('All settings are at their defaults');
};

at('drafted').onchange = () => {
  browser.write('firp.drafted', at('drafted').checked ? '1' : '');
  show_drafted();
};
function show_drafted() {
  at('legend').hidden = !at('drafted').checked;
  for (const message of chat.messages) {
    if (message.role === 'assistant') update(box_of(message), message);
  }
}

// ---- Begin

// A server of several models has a status of each, and wants to be told which one is to answer.
async function show_model() {
  const {data} = await (await ask('v1/models')).json();
  if (!data[0].status) {
    at('model').textContent = data[0].id;
    return;
  }
  const models = at('models'), last = browser.read('firp.model');
  models.replaceChildren(...data.map(({id}) => new Option(id)));
  if (data.some(({id}) => id === last)) models.value = last;
  models.hidden = false;
}
at('models').onchange = () => browser.write('firp.model', at('models').value);

show_theme(browser.read('firp.theme') ?? '');
at('drafted').checked = browser.read('firp.drafted') === '1';
const left = session.read('chat') && read_chat(session.read('chat'));
if (left) chat = opened(left);
known = kept_chats();
show_chat();
show_chats();
show_drafted();
onpagehide = () => {
  for (const one of busy.values()) {
    if (one.running && one.messages.at(-1).content !== '') keep_chat(one);
  }
};
show_model().catch(error => {
  chat.notes.push({kind: 'error', text: explain(error)});
  show_chat();
});
