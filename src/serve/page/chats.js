// Conversations and settings, and where the browser keeps them.

// A browser that keeps nothing for the page throws at the mention of its storage, and one that is full
// when something is written. What it does not keep lasts as long as the page.
class Kept {
  constructor(storage) {
    this.storage = storage;
    this.in_page = new Map();
  }
  names() {
    let names = [];
    try { names = Object.keys(this.storage()); } catch { }
    return [...new Set([...names, ...this.in_page.keys()])];
  }
  read(name) {
    if (this.in_page.has(name)) return this.in_page.get(name);
    try { return this.storage().getItem(name); } catch { return null; }
  }
  // Whether the browser keeps it.
  write(name, text) {
    try {
      this.storage().setItem(name, text);
      this.in_page.delete(name);
      return true;
    } catch {
      this.in_page.set(name, text);
      return false;
    }
  }
  remove(name) {
    this.in_page.delete(name);
    try { this.storage().removeItem(name); } catch { }
  }
}
const session = new Kept(() => sessionStorage);
const browser = new Kept(() => localStorage);

const kPrefix = 'firp.chat.';

// A chat: {id, name, changed (milliseconds since 1970), messages}. A message: {role, content}; an answer
// may have more (write_answer).
function new_chat() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return {id, name: '', changed: Date.now(), messages: []};
}

// Of what was kept, or another page of this origin left there: a chat, or null.
function chat_of(text) {
  try {
    const {id, name, changed, messages} = JSON.parse(text);
    const complete = typeof id === 'string' && typeof name === 'string' && Number.isFinite(changed) &&
        messages.every(({role, content}) => ['user', 'assistant'].includes(role) && typeof content === 'string');
    return complete ? {id, name, changed, messages} : null;
  } catch {
    return null;
  }
}

function read_chat(id) { return chat_of(browser.read(kPrefix + id)); }
function keep_chat({id, name, changed, messages}) {
  return browser.write(kPrefix + id, JSON.stringify({id, name, changed, messages}));
}
function remove_chat(id) { browser.remove(kPrefix + id); }

// All that are kept, the one that changed last first.
function kept_chats() {
  return browser.names().filter(name => name.startsWith(kPrefix))
      .map(name => chat_of(browser.read(name))).filter(chat => chat !== null)
      .sort((one, other) => other.changed - one.changed);
}

// The first words of a text.
function name_of(text) {
  const line = text.trim().split('\n')[0].replace(/\s+/g, ' ');
  if (line.length <= 48) return line;
  const words = line.slice(0, 48).replace(/\s\S*$/, '');
  return words + ' …';
}

function as_markdown(chat) {
  const parts = chat.messages.map(
      ({role, content}) => `## ${role === 'user' ? 'You' : 'Answer'}\n\n${content.trim()}\n`);
  return `# ${chat.name}\n\n${parts.join('\n')}`;
}
function as_json(chat) {
  const {name, changed, messages} = chat;
  return JSON.stringify({name, changed: new Date(changed).toISOString(), messages}, null, 2) + '\n';
}
function file_name(chat, ending) {
  const name = chat.name.replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '');
  return `${name || 'chat'}.${ending}`;
}

// What requests bring, each a number but `system`; what is not there is as the server has it.
const kNumbers = ['temperature', 'top_p', 'top_k', 'min_p', 'repeat_penalty', 'max_tokens', 'seed'];
function settings_of(text) {
  const settings = {};
  try {
    const kept = JSON.parse(text ?? '{}');
    if (typeof kept.system === 'string' && kept.system.trim() !== '') settings.system = kept.system;
    for (const name of kNumbers) {
      if (Number.isFinite(kept[name])) settings[name] = kept[name];
    }
  } catch { }
  return settings;
}
