// The ranking as it stands: places from best to worst, the tray of invalid answers, and what to do next.

import { button } from "./cards.js";
import { appendText, make } from "./markdown.js";
import { say, sayRank } from "./words.js";

// Characters of an answer that stand beside its number.
const SNIPPET = 90;

const byId = (id) => document.getElementById(id);

export function showBoard(page, ranking, canGoBack, actions) {
  byId("ask").textContent = question(ranking);
  showPlaces(page, ranking, actions);
  showInvalid(page, ranking, actions);
  const isComplete = ranking.open.length === 0;
  const canGoOn = isComplete || putsLast(ranking);
  const next = byId("next");
  next.replaceChildren(
    putsLast(ranking) && !isComplete ? say("next_last", { number: ranking.open[0] + 1 }) : say("next"),
    make("kbd", "", "↵"),
  );
  next.setAttribute("aria-disabled", String(!canGoOn));
  next.classList.toggle("is-ready", canGoOn);
  const undo = byId("undo");
  const goesBack = ranking.isEmpty && ranking.pending === null;
  undo.replaceChildren(say(goesBack ? "undo_prompt" : "undo"), make("kbd", "", "⌫"));
  undo.disabled = goesBack && !canGoBack;
  const tie = byId("tie");
  tie.replaceChildren(say("tie"), make("kbd", "", "="));
  tie.setAttribute("aria-pressed", String(ranking.pending === "tie"));
  byId("skip").replaceChildren(say("skip"), make("kbd", "", "s"));
}

// Whether the one answer that is left may be put last by going on.
export function putsLast(ranking) {
  return ranking.open.length === 1 && ranking.pending === null && !ranking.isEmpty;
}

function question(ranking) {
  if (ranking.pending === "tie") return say("ask_tie", { number: ranking.lastPlaced + 1 });
  if (ranking.pending === "invalid") return say("ask_invalid");
  if (ranking.open.length === 0) return say("ask_done");
  if (putsLast(ranking)) return say("ask_last", { number: ranking.open[0] + 1 });
  return say(ranking.groups.length === 0 ? "ask_best" : "ask_next");
}

function showPlaces(page, ranking, actions) {
  const list = byId("ranks");
  list.replaceChildren();
  list.setAttribute("aria-label", say("ranking"));
  ranking.groups.forEach((group, place) => {
    list.append(gap(place));
    const row = make("li", "rank");
    row.dataset.drop = `place:${place}`;
    row.append(make("span", "rank-name", sayRank(place + 1)));
    const chips = make("div", "chips");
    group.forEach((answer, index) => {
      if (index > 0) {
        const untie = button("equals", () => actions.untie(answer));
        untie.textContent = "=";
        untie.setAttribute("aria-label", say("untie", { number: answer + 1 }));
        untie.title = say("untie", { number: answer + 1 });
        chips.append(untie);
      }
      chips.append(chip(page, answer, actions));
    });
    row.append(chips);
    if (place < ranking.groups.length - 1) {
      const tie = button("tie-below quiet", () => actions.joinPlaces(place));
      tie.textContent = "=";
      tie.setAttribute("aria-label", say("tie_these", { rank: sayRank(place + 1) }));
      tie.title = say("tie_these", { rank: sayRank(place + 1) });
      row.append(tie);
    }
    list.append(row);
  });
  const rest = gap(ranking.groups.length);
  if (ranking.open.length > 0) {
    rest.classList.add("is-open");
    rest.append(
      make("span", "rank-name", sayRank(ranking.groups.length + (ranking.pending === "tie" ? 0 : 1))),
      make("span", "hint", say("empty_rank")),
    );
  }
  list.append(rest);
}

function gap(place) {
  const element = make("li", "gap");
  element.dataset.drop = `gap:${place}`;
  return element;
}

function chip(page, answer, actions) {
  const element = make("span", "chip");
  element.dataset.answer = answer;
  const text = page.answers[answer].map((part) => part.text).join(" ").replace(/\s+/g, " ").trim();
  const snippet = make("span", "snippet");
  snippet.dir = "auto";
  appendText(snippet, [...text.slice(0, 2 * SNIPPET)].slice(0, SNIPPET).join("") || say("empty"));
  const out = button("out quiet", () => actions.takeOut(answer));
  out.textContent = "×";
  out.setAttribute("aria-label", say("take_out", { number: answer + 1 }));
  element.append(make("span", "number", String(answer + 1)), snippet, out);
  return element;
}

function showInvalid(page, ranking, actions) {
  const tray = byId("invalid");
  tray.setAttribute("aria-label", say("invalid_tray"));
  tray.replaceChildren(make("span", "rank-name", say("invalid")), make("kbd", "", "0"));
  tray.classList.toggle("is-pending", ranking.pending === "invalid");
  tray.classList.toggle("is-empty", ranking.invalid.length === 0);
  const chips = make("div", "chips");
  for (const answer of ranking.invalid) chips.append(chip(page, answer, actions));
  tray.append(chips);
}
