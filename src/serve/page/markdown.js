// Markdown as HTML. Nothing that a model writes runs, or fetches anything: its HTML is shown as text, its
// pictures are links, and what comes out is cut to a few elements.

const kAllowed = {
  ALLOWED_TAGS: ['p', 'br', 'hr', 'h3', 'h4', 'h5', 'h6', 'ul', 'ol', 'li', 'blockquote', 'pre', 'code', 'strong',
                 'em', 'del', 'a', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ALLOWED_ATTR: ['href', 'start', 'align', 'class'],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = text => text.replace(/[&<>"']/g, character => `&#${character.charCodeAt(0)};`);

const markdown = new marked.Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({text, block}) => block ? `<p class="source">${escaped(text.trimEnd())}</p>` : escaped(text),
    image: ({href, text}) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({checked}) => checked ? '☑ ' : '☐ ',
    heading({tokens, level}) {
      const text = this.parser.parseInline(tokens);
      return level ? `<h${level}>${text}</h${level}>` : `<p><strong>${text}</strong></p>`;
    },
  },
});

// Emphasis costs the square of a paragraph's length, and models go round in circles: what is longer than
// any that a reader would want is plain text.
const kMostCharacters = 3000;
class Lexer extends marked.Lexer {
  inlineTokens(text, tokens = []) {
    if (text.length <= kMostCharacters) return super.inlineTokens(text, tokens);
    tokens.push({type: 'text', raw: text, text, escaped: false});
    return tokens;
  }
}

// The blocks of a text; show_block() shows one.
function blocks_of(text) {
  const blocks = new Lexer(markdown.defaults).lex(text).filter(block => block.type !== 'space');
  let level = 2;  // the page has an h1, each message an h2, and no level is left out
  for (const block of blocks) {
    if (block.type === 'heading') level = block.level = Math.min(block.depth + 2, level + 1, 6);
  }
  return blocks;
}

function show_block(block, box) {
  box.replaceChildren(DOMPurify.sanitize(markdown.parser([block]), kAllowed));
  for (const link of box.querySelectorAll('a')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer';
  }
  for (const table of box.querySelectorAll('table')) {
    const frame = made('div', 'wide', {tabIndex: 0, role: 'group', ariaLabel: 'Table'});
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const pre of box.querySelectorAll('pre')) {
    const language = pre.querySelector('code')?.className.replace('language-', '') ?? '';
    const frame = made('div', 'code'), head = made('div', 'head');
    head.append(made('span', '', {textContent: language || 'text'}),
                copy_button('Copy code', () => pre.textContent));
    pre.replaceWith(frame);
    Object.assign(pre, {tabIndex: 0, role: 'group', ariaLabel: `Code${language && ', ' + language}`});
    frame.append(head, pre);
  }
}

// Shows a text that grows. Blocks that are as they were stay, with what is selected in them.
function show_markdown(text, box) {
  try {
    const blocks = blocks_of(text);
    blocks.forEach((block, i) => {
      let part = box.children[i];
      if (part?.source === block.raw) return;
      if (!part) {
        part = made('div', '', {dir: 'auto'});
        box.append(part);
      }
      part.source = block.raw;
      show_block(block, part);
    });
    while (box.children.length > blocks.length) box.lastChild.remove();
  } catch {  // thousands of quotes or lists in each other
    box.replaceChildren(made('p', 'source', {textContent: text}));
  }
}
