// The page: shows what the server deals, and sends what was decided on it.

import { putsLast, showBoard } from "./board.js";
import { fillCard, makeCard, showPrompt, toggleFold, updateCard } from "./cards.js";
import { Clock } from "./clock.js";
import { enableDragging } from "./dragging.js";
import { KEYS, listenToKeys } from "./keys.js";
import { make } from "./markdown.js";
import { Ranking } from "./ranking.js";
import { ask, newRequest, Refused } from "./server.js";
import { loadWords, otherLanguage, say, sayRank, setLanguage } from "./words.js";

const THEMES = ["auto", "light", "dark"];
const byId = (id) => document.getElementById(id);

let config = null;
let state = null;
// Of the prompt on the page.
let ranking = null;
let scores = {};
let compared = null;
let isRaw = localStorage.getItem("raw") === "yes";
let isBusy = false;
const clock = new Clock(() => pause());

// --- What the page shows ---------------------------------------------------------------------------------------------

function show(newState, announcement = null) {
  state = newState;
  ranking = null;
  compared = null;
  byId("work").hidden = state.page === null;
  byId("done").hidden = state.page !== null;
  setBanner("changed", state.file_changed ? say("error_changed", { file: state.file }) : null);
  showBar();
  if (state.page === null) {
    clock.stop();
    showDone();
    return;
  }
  restoreDraft();
  build();
  scrollTo(0, 0);
  byId("cards").focus({ preventScroll: true });
  announce(announcement ?? say("say_new_prompt", { count: ranking.numAnswers }));
}

// All that depends on the language or on the prompt.
function build() {
  byId("cards").replaceChildren(
    ...state.page.answers.map((_, answer) => makeCard(state.page, answer, config.attributes, actions)),
  );
  showPrompt(byId("prompt-text"), state.page, isRaw);
  fillCards();
  update();
}

function fillCards() {
  for (const card of cards()) fillCard(card, state.page, isRaw, compared);
  byId("raw").setAttribute("aria-pressed", String(isRaw));
  byId("differences").setAttribute("aria-pressed", String(compared !== null));
  const note = byId("compared");
  note.hidden = compared === null;
  note.textContent = compared === null ? "" : say("compared", { number: compared + 1 });
}

function update() {
  for (const card of cards()) updateCard(card, ranking);
  showBoard(state.page, ranking, state.last !== null, actions);
  saveDraft();
}

function showBar() {
  byId("file").textContent = state.file;
  byId("annotator").textContent = state.annotator;
  const done = state.ranked + state.skipped;
  const bar = byId("progress");
  bar.setAttribute("aria-valuemax", done + state.left);
  bar.setAttribute("aria-valuenow", done);
  byId("progress-done").style.width = `${(100 * done) / Math.max(done + state.left, 1)}%`;
  const figures = [say("ranked", { count: state.ranked }), say("left", { count: state.left })];
  if (state.skipped > 0) figures.splice(1, 0, say("skipped", { count: state.skipped }));
  if (state.pace !== null) {
    figures.push(say("pace", { seconds: state.pace < 10 ? state.pace.toFixed(1) : Math.round(state.pace) }));
    if (state.left > 0) figures.push(say("minutes", { minutes: Math.max(1, Math.ceil((state.pace * state.left) / 60)) }));
  }
  byId("figures").textContent = figures.join(" · ");
  bar.setAttribute("aria-label", byId("figures").textContent);
  document.title = `${say("left", { count: state.left })} · ${state.file}`;
}

function showDone() {
  byId("done-title").textContent = say("done_title");
  byId("done-text").textContent = say("done_text", state);
  byId("done-undo").textContent = say("undo_prompt");
  byId("done-undo").disabled = state.last === null;
  byId("done-skipped").textContent = say("show_skipped");
  byId("done-skipped").hidden = state.skipped === 0;
  announce(say("done_title"));
}

function cards() {
  return [...byId("cards").children];
}

function announce(text) {
  byId("announcer").textContent = text;
}

// What is wrong, by its cause; the last of them stands there.
const banners = new Map();

function setBanner(cause, text) {
  if (text === null) banners.delete(cause);
  else banners.set(cause, text);
  byId("banner").hidden = banners.size === 0;
  byId("banner").textContent = [...banners.values()].at(-1) ?? "";
}

// --- What was begun is here after a reload ---------------------------------------------------------------------------

function draftKey() {
  return `draft ${state.annotator} ${state.page.id}`;
}

function restoreDraft() {
  ranking = new Ranking(state.page.answers.length);
  const stored = sessionStorage.getItem(draftKey());
  const draft = stored === null ? state.page.draft : JSON.parse(stored);
  if (draft?.ranks) ranking.ranks = draft.ranks;
  if (draft?.groups) Object.assign(ranking, { groups: draft.groups, invalid: draft.invalid });
  scores = draft?.attributes ?? {};
  byId("comment").value = draft?.comment ?? "";
  clock.start(draft?.seconds ?? 0);
}

function saveDraft() {
  if (state?.page == null || ranking === null) return;
  const draft = {
    groups: ranking.groups,
    invalid: ranking.invalid,
    attributes: scores,
    comment: byId("comment").value,
    seconds: clock.seconds,
  };
  sessionStorage.setItem(draftKey(), JSON.stringify(draft));
}

// --- What is sent ----------------------------------------------------------------------------------------------------

async function send(path, said, announcement) {
  if (isBusy) return;
  isBusy = true;
  document.body.classList.add("is-busy");
  let next = null;
  try {
    next = await ask(path, { annotator: state.annotator, ...said }, {
      onWait: () => setBanner("unreached", say("error_unreached")),
      onReached: () => setBanner("unreached", null),
    });
    setBanner("refused", null);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    next = refused(error);
  } finally {
    isBusy = false;
    document.body.classList.remove("is-busy");
  }
  if (next === null) return;
  if (state.page !== null) sessionStorage.removeItem(draftKey());
  show(next, announcement);
}

// Says what the server said; returns what there is to show now, if it told.
function refused(error) {
  if (error.status === 403) setBanner("refused", say("error_closed"));
  else if (error.content.signed_in_as) setBanner("refused", say("error_signed_in", { name: error.content.signed_in_as }));
  else if (error.status === 409) setBanner("refused", say("error_elsewhere"));
  else setBanner("refused", say("error_refused", { message: error.message }));
  return error.content.state ?? null;
}

function decide(ranks) {
  return send("decision", {
    request: newRequest(),
    page: state.page.id,
    ranks,
    comment: byId("comment").value,
    attributes: scores,
    seconds: clock.seconds,
  }, ranks === null ? say("say_skipped") : null);
}

// --- What keys and buttons do ----------------------------------------------------------------------------------------

function changed(announcement) {
  update();
  announce(announcement);
}

function current() {
  const card = document.activeElement?.closest?.(".card");
  return card ? Number(card.dataset.answer) : null;
}

function move(step) {
  const from = current();
  const to = from === null ? (step > 0 ? 0 : ranking.numAnswers - 1) : from + step;
  const card = cards()[to];
  if (card) {
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
}

const actions = {
  take(answer) {
    if (answer >= ranking.numAnswers) return announce(say("say_no_answer", { number: answer + 1 }));
    const did = ranking.take(answer);
    const values = { number: answer + 1, rank: ranking.rankOf(answer) && sayRank(ranking.rankOf(answer)) };
    if (did === null) nudge(say("say_already", values));
    else changed(say(`say_${did}`, values));
  },
  markInvalid(answer) {
    ranking.pending = null;
    changed(say(`say_${ranking.markInvalid(answer)}`, { number: answer + 1 }));
  },
  takeOut(answer) {
    ranking.takeOut(answer);
    changed(say("say_undone"));
  },
  untie(answer) {
    ranking.untie(answer);
    changed(say("say_placed", { number: answer + 1, rank: sayRank(ranking.rankOf(answer)) }));
  },
  joinPlaces(place) {
    ranking.joinPlaces(place);
    changed(say("say_tied", { number: ranking.groups[place].at(-1) + 1, rank: sayRank(place + 1) }));
  },
  score: (name, answer) => scores[name]?.[answer] ?? null,
  setScore(name, answer, score) {
    scores[name] ??= new Array(ranking.numAnswers).fill(null);
    scores[name][answer] = score;
    saveDraft();
  },
};

const keyActions = {
  digit: (number) => isWorking() && actions.take(number - 1),
  tie() {
    if (!isWorking()) return;
    if (ranking.tie()) changed(byId("ask").textContent);
    else nudge(say("say_tie_first"));
  },
  invalid() {
    if (!isWorking()) return;
    ranking.pending = ranking.pending === "invalid" ? null : "invalid";
    update();
  },
  next() {
    if (!isWorking()) return;
    if (putsLast(ranking)) ranking.take(ranking.open[0]);
    if (ranking.open.length > 0) nudge(say("say_missing", { count: ranking.open.length }));
    else decide(ranking.ranks);
  },
  undo() {
    if (isBusy) return;
    if (state.page !== null && ranking.undo()) return changed(say("say_undone"));
    if (state.last === null) return nudge(say("say_nothing_before"));
    send("undo", { number: state.last }, say("say_back"));
  },
  skip: () => isWorking() && decide(null),
  down: () => isWorking() && move(1),
  up: () => isWorking() && move(-1),
  take() {
    if (isWorking() && current() !== null) actions.take(current());
  },
  fold() {
    if (!isWorking()) return;
    const card = cards()[current() ?? -1];
    if (card) toggleFold(card);
    else for (const each of [byId("prompt-text"), ...cards()]) toggleFold(each);
  },
  differences() {
    if (!isWorking()) return;
    const base = current() ?? (compared === null ? (ranking.groups[0]?.[0] ?? 0) : compared);
    compared = compared === base ? null : base;
    fillCards();
  },
  raw() {
    if (!isWorking()) return;
    isRaw = !isRaw;
    localStorage.setItem("raw", isRaw ? "yes" : "no");
    showPrompt(byId("prompt-text"), state.page, isRaw);
    fillCards();
  },
  comment: () => isWorking() && byId("comment").focus(),
  pause: () => isWorking() && pause(),
  keys: showKeys,
  cancel() {
    if (isWorking() && ranking.pending !== null) {
      ranking.pending = null;
      update();
    }
  },
};

function isWorking() {
  return !isBusy && state !== null && state.page !== null;
}

// Says why nothing happened, to eyes and ears.
function nudge(text) {
  announce(text);
  const line = byId("ask");
  line.textContent = text;
  line.classList.remove("is-nudged");
  requestAnimationFrame(() => line.classList.add("is-nudged"));
}

function pause() {
  clock.pause();
  saveDraft();
  byId("paused").showModal();
}

function showKeys() {
  byId("keys-list").replaceChildren(
    ...KEYS.map(([keys, word]) => make("div", "", make("dt", "", ...keys.map((key) => make("kbd", "", key))), make("dd", "", say(word)))),
  );
  byId("keys-dialog").showModal();
}

function showTheme() {
  const theme = localStorage.getItem("theme") ?? "auto";
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
  byId("theme").setAttribute("aria-label", say(`theme_${theme}`));
  byId("theme").title = say(`theme_${theme}`);
}

function showLanguage() {
  byId("language").textContent = say("other_language");
  byId("language").lang = otherLanguage();
}

function listen() {
  const onClick = (id, action) => byId(id).addEventListener("click", () => action());
  onClick("next", keyActions.next);
  onClick("undo", keyActions.undo);
  onClick("tie", keyActions.tie);
  onClick("skip", keyActions.skip);
  onClick("differences", keyActions.differences);
  onClick("raw", keyActions.raw);
  onClick("pause", keyActions.pause);
  onClick("show-keys", showKeys);
  onClick("done-undo", keyActions.undo);
  onClick("done-skipped", () => send("skipped", {}, null));
  onClick("theme", () => {
    const theme = THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "auto") + 1) % THEMES.length];
    localStorage.setItem("theme", theme);
    showTheme();
  });
  onClick("language", () => {
    localStorage.setItem("language", otherLanguage());
    setLanguage(otherLanguage());
    showTheme();
    showLanguage();
    showBar();
    if (state.page !== null) build();
    else showDone();
  });
  byId("paused").addEventListener("close", () => clock.resume());
  byId("comment").addEventListener("input", saveDraft);
  byId("single-keys").checked = localStorage.getItem("keys") !== "off";
  byId("single-keys").addEventListener("change", (event) => localStorage.setItem("keys", event.target.checked ? "on" : "off"));
  // A button that was clicked gives the keys back to the page; one that was come to by Tab keeps them.
  document.addEventListener("click", (event) => {
    if (event.detail > 0) event.target.closest?.("button")?.blur();
  });
  addEventListener("pagehide", saveDraft);
  enableDragging(".card-head, .chip", (answer, target) => {
    if (!isWorking()) return;
    if (target === "out" && !ranking.isPlaced(answer) && !ranking.isInvalid(answer)) return;
    ranking.drop(answer, target);
    const rank = ranking.rankOf(answer);
    changed(rank === null ? say("say_undone") : say("say_placed", { number: answer + 1, rank: sayRank(rank) }));
  });
  listenToKeys(keyActions, () => byId("single-keys").checked);
}

async function start() {
  await loadWords();
  showTheme();
  showLanguage();
  byId("cards").tabIndex = -1;
  const whileWaiting = {
    onWait: () => setBanner("unreached", say("error_unreached")),
    onReached: () => setBanner("unreached", null),
  };
  try {
    config = await ask("config", undefined, whileWaiting);
    const first = await ask("state", undefined, whileWaiting);
    listen();
    show(first);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    refused(error);
  }
}

start();
