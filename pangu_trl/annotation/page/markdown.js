// Texts of strangers as elements of the page. Only createElement and textContent: whatever a text holds, it stays text.
//
// The Markdown that models write: headings, paragraphs, lists, quotes, tables, code, emphasis. No HTML, no pictures,
// and no links that lead anywhere: their addresses are shown. Every step takes time in proportion to the text.

// Characters that would be unseen, or turn the order of others around, or mean something to a terminal.
const UNSEEN =
  /([\u0000-\u0008\u000b\u000c\u000d-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}])\1*/gu;
const DEEPEST = 6;
const LONGEST_SPAN = 1000;
const SPANS = new RegExp(
  [
    "(?<escape>\\\\[\\\\`*_{}\\[\\]()#+\\-.!|~>])",
    "(?<ticks>`{1,3})(?<code>[^`](?:[^`]|(?<!`)`(?!`)){0,LONGEST}?)\\k<ticks>(?!`)",
    "\\*\\*(?=\\S)(?<strong>[^*](?:[^*]|\\*(?!\\*)){0,LONGEST}?)(?<=\\S)\\*\\*",
    "~~(?=\\S)(?<struck>[^~]{1,LONGEST})~~",
    "\\*(?=[^\\s*])(?<stressed>[^*]{1,LONGEST})(?<=\\S)\\*",
    "(?<![\\p{L}\\p{N}_])_(?=[^\\s_])(?<underlined>[^_]{1,LONGEST})(?<=\\S)_(?![\\p{L}\\p{N}_])",
    "(?<picture>!?)\\[(?<label>[^\\[\\]\\n]{1,300})\\]\\((?<address>[^()\\s]{1,1000})\\)",
  ].join("|").replaceAll("LONGEST", LONGEST_SPAN),
  "gu",
);

// Appends a text, with the characters that nobody would see made visible.
export function appendText(parent, text) {
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match[0].startsWith("\r") && match[0].length === 1 && text[match.index + 1] === "\n") continue;
    parent.append(text.slice(end, match.index), unseen(match[0], match[1]));
    end = match.index + match[0].length;
  }
  parent.append(text.slice(end));
}

function unseen(run, character) {
  const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const times = run.length / character.length;
  const element = make("span", "unseen-character");
  element.textContent = times > 1 ? `${code}×${times}` : code;
  return element;
}

export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// A text as it is, with its line ends.
export function plain(text) {
  const element = make("div", "plain");
  appendText(element, text);
  return element;
}

// A text as formatted Markdown.
export function markdown(text) {
  const element = make("div", "formatted");
  blocks(element, text.replaceAll("\r\n", "\n").split("\n"), 0);
  return element;
}

function blocks(parent, lines, depth) {
  let index = 0;
  let paragraph = [];
  const endParagraph = () => {
    if (paragraph.length > 0) parent.append(withSpans("p", paragraph.join("\n")));
    paragraph = [];
  };
  while (index < lines.length) {
    const line = lines[index];
    const block = depth < DEEPEST ? blockAt(lines, index, depth, paragraph.length > 0) : null;
    if (block !== null) {
      endParagraph();
      parent.append(block.element);
      index = block.next;
    } else {
      if (line.trim() === "") endParagraph();
      else paragraph.push(line);
      index += 1;
    }
  }
  endParagraph();
}

function blockAt(lines, index, depth, inParagraph) {
  const line = lines[index];
  const fence = /^\s{0,3}(`{3,}|~{3,})\s*([\p{L}\p{N}+#.-]{0,30})\s*$/u.exec(line);
  if (fence) return codeBlock(lines, index, fence[1], fence[2]);
  const heading = /^(#{1,6})\s+(\S.*)$/u.exec(line);
  if (heading) return { element: withSpans(`h${Math.min(heading[1].length + 2, 6)}`, heading[2]), next: index + 1 };
  if (/^\s{0,3}([-*_])(?:\s*\1){2,}\s*$/u.test(line)) return { element: make("hr"), next: index + 1 };
  if (/^\s{0,3}>/u.test(line)) return quote(lines, index, depth);
  if (/^\s{0,3}(?:[-*+]|\d{1,9}[.)])\s+\S/u.test(line) && !(inParagraph && /^\s{0,3}\d/u.test(line) && !/^\s{0,3}1[.)]/u.test(line))) {
    return list(lines, index, depth);
  }
  if (line.includes("|") && isRule(lines[index + 1] ?? "")) return table(lines, index);
  return null;
}

function codeBlock(lines, index, fence, language) {
  const code = make("code");
  const element = make("pre", "", code);
  if (language) element.dataset.language = language;
  let next = index + 1;
  const closes = (line) => line.trim().startsWith(fence) && line.trim().replaceAll(fence[0], "") === "";
  while (next < lines.length && !closes(lines[next])) next += 1;
  appendText(code, lines.slice(index + 1, next).join("\n"));
  element.tabIndex = 0;
  return { element, next: next + 1 };
}

function quote(lines, index, depth) {
  let next = index;
  while (next < lines.length && /^\s{0,3}>/u.test(lines[next])) next += 1;
  const element = make("blockquote");
  blocks(element, lines.slice(index, next).map((line) => line.replace(/^\s{0,3}> ?/u, "")), depth + 1);
  return { element, next };
}

function list(lines, index, depth) {
  const first = /^(\s{0,3})([-*+]|(\d{1,9})[.)])(\s+)/u.exec(lines[index]);
  const isOrdered = first[3] !== undefined;
  const element = make(isOrdered ? "ol" : "ul");
  if (isOrdered) element.start = Number(first[3]);
  const marker = isOrdered ? /^\s{0,3}\d{1,9}[.)]\s+/u : /^\s{0,3}[-*+]\s+/u;
  let next = index;
  while (next < lines.length && marker.test(lines[next])) {
    const width = Math.min(marker.exec(lines[next])[0].length, 6);
    const item = [lines[next].replace(marker, "")];
    next += 1;
    // What is indented belongs to the item; a blank line does if such a line follows.
    for (; next < lines.length; next += 1) {
      const line = lines[next];
      const isIndented = /^(?: {2,}|\t)/u.test(line);
      const goesOn = line.trim() === "" && /^(?: {2,}|\t)\s*\S/u.test(lines[next + 1] ?? "");
      if (!isIndented && !goesOn) break;
      item.push(line.replace(new RegExp(`^(?:\\t| {0,${width}})`, "u"), ""));
    }
    if (next + 1 < lines.length && lines[next].trim() === "" && marker.test(lines[next + 1])) next += 1;
    const entry = make("li");
    blocks(entry, item, depth + 1);
    element.append(entry);
  }
  return { element, next };
}

function isRule(line) {
  return line.includes("-") && line.includes("|") && line.length < 1000 && /^[\s|:-]+$/u.test(line);
}

function table(lines, index) {
  const cells = (line) => line.trim().replace(/^\|/u, "").replace(/\|$/u, "").split("|").slice(0, 50);
  const row = (line, tag) => make("tr", "", ...cells(line).map((cell) => withSpans(tag, cell.trim())));
  const body = make("tbody");
  let next = index + 2;
  for (; next < lines.length && lines[next].includes("|"); next += 1) body.append(row(lines[next], "td"));
  const element = make("table", "", make("thead", "", row(lines[index], "th")), body);
  return { element: make("div", "table", element), next };
}

function withSpans(tag, text) {
  const element = make(tag);
  spans(element, text, 0);
  return element;
}

function spans(parent, text, depth) {
  let end = 0;
  for (const match of depth < DEEPEST ? text.matchAll(SPANS) : []) {
    appendText(parent, text.slice(end, match.index));
    parent.append(span(match.groups, depth));
    end = match.index + match[0].length;
  }
  appendText(parent, text.slice(end));
}

function span(found, depth) {
  if (found.escape !== undefined) return found.escape.slice(1);
  if (found.code !== undefined) {
    const code = make("code");
    appendText(code, found.code);
    return code;
  }
  if (found.label !== undefined) {
    const address = make("span", "address");
    appendText(address, ` (${found.address})`);
    const label = make("span", "link");
    appendText(label, found.picture ? `![${found.label}]` : found.label);
    return make("span", "", label, address);
  }
  const [tag, inner] =
    found.strong !== undefined ? ["strong", found.strong]
    : found.struck !== undefined ? ["s", found.struck]
    : ["em", found.stressed ?? found.underlined];
  const element = make(tag);
  spans(element, inner, depth + 1);
  return element;
}
