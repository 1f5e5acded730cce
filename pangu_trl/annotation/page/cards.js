// The prompt, and a card for each answer.

import { differences } from "./differences.js";
import { appendText, make, markdown, plain } from "./markdown.js";
import { ask } from "./server.js";
import { say, sayRank } from "./words.js";

// Texts that are higher are folded; in pixels, as page.css has it.
const FOLDED_HEIGHT = 420;
const PIECE = 100_000;
const ROLES = ["user", "assistant", "system", "developer", "tool", "reasoning_content", "thinking", "tool_calls", "function_call"];

// Shows a prompt in its section, long ones folded.
export function showPrompt(place, page, isRaw) {
  place.replaceChildren(textOf(page, -1, page.prompt, isRaw));
  foldIfLong(place);
}

export function makeCard(page, answer, attributes, actions) {
  const number = answer + 1;
  const card = make("article", "card");
  card.tabIndex = -1;
  card.dataset.answer = answer;
  card.setAttribute("aria-labelledby", `card-${answer}`);
  const title = make("h3", "card-title", make("span", "number", String(number)));
  title.id = `card-${answer}`;
  title.setAttribute("aria-label", say("answer", { number }));
  const badge = make("span", "badge");
  const place = button("place", () => actions.take(answer));
  if (number < 10) place.setAttribute("aria-keyshortcuts", String(number));
  const invalid = button("invalid-button quiet", () => actions.markInvalid(answer));
  const grip = make("span", "grip", "⠿");
  grip.title = say("drag");
  grip.setAttribute("aria-hidden", "true");
  const head = make("header", "card-head", grip, title, badge, make("span", "space"), invalid, place);
  const same = page.answers.findIndex((other) => JSON.stringify(other) === JSON.stringify(page.answers[answer]));
  if (same < answer) head.querySelector(".space").append(make("span", "same", say("same_text", { number: same + 1 })));
  card.append(head, make("div", "card-text"));
  for (const attribute of attributes) card.append(scoreField(attribute, answer, actions));
  return card;
}

// Fills the card's text: formatted, as it is, or with what differs from another answer.
export function fillCard(card, page, isRaw, compared) {
  const answer = Number(card.dataset.answer);
  const text = card.querySelector(".card-text");
  const isUnfolded = text.classList.contains("unfolded");
  const others = compared === null || compared === answer ? null : page.answers[compared];
  text.replaceChildren(
    others === null ? textOf(page, answer, page.answers[answer], isRaw) : marked(others, page.answers[answer]),
  );
  text.className = "card-text";
  card.querySelector(".unfold")?.remove();
  foldIfLong(text);
  if (isUnfolded) toggleFold(card);
}

// Shows where the ranking has the answer, and what its button does now.
export function updateCard(card, ranking) {
  const answer = Number(card.dataset.answer);
  const rank = ranking.rankOf(answer);
  const isInvalid = ranking.isInvalid(answer);
  card.classList.toggle("is-placed", rank !== null);
  card.classList.toggle("is-invalid", isInvalid);
  card.querySelector(".badge").textContent = isInvalid ? say("invalid") : rank === null ? "" : sayRank(rank);
  const place = card.querySelector(".place");
  place.replaceChildren(make("span", "", placeWord(ranking)));
  if (answer < 9) place.append(make("kbd", "", String(answer + 1)));
  place.hidden = (rank !== null || isInvalid) && ranking.pending !== "invalid";
  place.setAttribute("aria-label", `${say("answer", { number: answer + 1 })}: ${placeWord(ranking)}`);
  const invalid = card.querySelector(".invalid-button");
  invalid.textContent = say(isInvalid ? "valid_again" : "mark_invalid");
  invalid.setAttribute("aria-pressed", String(isInvalid));
  invalid.setAttribute("aria-label", `${say("answer", { number: answer + 1 })}: ${invalid.textContent}`);
}

export function toggleFold(card) {
  const text = card.matches("#prompt-text") ? card : card.querySelector(".card-text");
  const control = text.parentElement.querySelector(".unfold");
  if (control === null) return;
  const isUnfolded = text.classList.toggle("unfolded");
  control.textContent = say(isUnfolded ? "fold" : "unfold");
  control.setAttribute("aria-expanded", String(isUnfolded));
}

export function button(className, onClick) {
  const element = make("button", className);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

function placeWord(ranking) {
  if (ranking.pending === "invalid") return say("place_invalid");
  if (ranking.pending === "tie") return say("place_tie", { number: ranking.lastPlaced + 1 });
  return ranking.groups.length === 0 ? say("place_best") : say("place_next", { rank: sayRank(ranking.groups.length + 1) });
}

function scoreField(attribute, answer, actions) {
  const field = make("fieldset", "scores");
  const name = attribute.words[document.documentElement.lang.slice(0, 2)] ?? attribute.words.en ?? attribute.name;
  const legend = make("legend");
  appendText(legend, name);
  field.append(legend);
  for (let score = attribute.from - 1; score <= attribute.to; score += 1) {
    const isNone = score < attribute.from;
    const input = make("input");
    input.type = "radio";
    input.name = `score-${answer}-${attribute.name}`;
    input.value = isNone ? "" : String(score);
    input.checked = (actions.score(attribute.name, answer) ?? "") === (isNone ? "" : score);
    input.addEventListener("change", () => actions.setScore(attribute.name, answer, isNone ? null : score));
    const label = make("label", "", input, make("span", "", isNone ? "–" : String(score)));
    if (isNone) input.setAttribute("aria-label", say("no_score"));
    field.append(label);
  }
  return field;
}

function textOf(page, which, parts, isRaw) {
  const element = make("div", "parts");
  parts.forEach((part, index) => {
    const block = make("div", part.role ? `part role-${ROLES.includes(part.role) ? part.role : "other"}` : "part");
    if (part.role) block.append(make("div", "role", ROLES.includes(part.role) ? say(`role_${part.role}`) : part.role));
    const isCode = part.role === "tool_calls" || part.role === "function_call";
    const isWhole = part.shown >= part.length;
    const body = part.text === "" ? make("p", "empty", say("empty")) : isRaw || isCode || !isWhole ? plain(part.text) : markdown(part.text);
    body.dir = "auto";
    block.append(body);
    if (!isWhole) block.append(moreButton(page, which, index, part, body));
    element.append(block);
  });
  return element;
}

function moreButton(page, which, index, part, body) {
  let shown = part.shown;
  const more = button("more quiet", async () => {
    more.disabled = true;
    const { text } = await ask(`piece?${new URLSearchParams({ page: page.id, which, part: index, start: shown })}`);
    appendText(body, text);
    shown += [...text].length;
    name();
    more.disabled = false;
  });
  const name = () => {
    const format = new Intl.NumberFormat(document.documentElement.lang);
    const left = Math.min(part.length - shown, PIECE);
    more.textContent = say("more", { count: format.format(left), total: format.format(part.length) });
    more.hidden = left <= 0;
  };
  name();
  return more;
}

function marked(base, own) {
  const text = (parts) => parts.map((part) => (part.role ? `${part.role}: ${part.text}` : part.text)).join("\n\n");
  const element = make("div", "plain");
  element.dir = "auto";
  for (const piece of differences(text(base), text(own))) {
    const part = piece.kind === "same" ? make("span") : make(piece.kind === "new" ? "ins" : "del");
    appendText(part, piece.text);
    element.append(part);
  }
  return element;
}

// Called once the text is on the page, as its height is only known there.
function foldIfLong(text) {
  text.classList.remove("folded", "unfolded");
  text.parentElement.querySelector(".unfold")?.remove();
  if (!text.isConnected || text.scrollHeight <= FOLDED_HEIGHT) return;
  text.classList.add("folded");
  const owner = text.matches("#prompt-text") ? text : text.parentElement;
  const control = button("unfold quiet", () => toggleFold(owner));
  control.textContent = say("unfold");
  control.setAttribute("aria-expanded", "false");
  text.after(control);
}
