// What a key means on the page.

// Action of each key; digits are apart.
const ACTIONS = {
  "=": "tie",
  0: "invalid",
  Enter: "next",
  Backspace: "undo",
  s: "skip",
  j: "down",
  k: "up",
  " ": "take",
  f: "fold",
  d: "differences",
  r: "raw",
  c: "comment",
  p: "pause",
  "?": "keys",
};

// For the dialog: keys, and the word for what they do.
export const KEYS = [
  [["1", "…", "9"], "key_digit"],
  [["="], "key_tie"],
  [["0"], "key_invalid"],
  [["Enter"], "key_next"],
  [["Backspace"], "key_undo"],
  [["s"], "key_skip"],
  [["j", "k"], "key_move"],
  [["Space"], "key_space"],
  [["f"], "key_fold"],
  [["d"], "key_differences"],
  [["r"], "key_raw"],
  [["c"], "key_comment"],
  [["p"], "key_pause"],
  [["?"], "key_keys"],
];

// Calls actions[name]() and actions.digit(number) as keys are pressed, while `areOn()`.
export function listenToKeys(actions, areOn) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (target.matches?.("textarea, input:not([type=radio]):not([type=checkbox]), select")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    // A control that was come to by Tab does what Enter and the space bar do everywhere.
    const own = event.key === "Enter" ? "button, a, summary" : event.key === " " ? "button, a, summary, input" : null;
    if (own !== null && target.closest?.(own)) return;
    const key = keyOf(event);
    if (key === "Escape") actions.cancel();
    if (!areOn() && key.length === 1) return;
    // A key that is held would go through prompt after prompt.
    if (event.repeat && !["j", "k"].includes(key)) return void (key in ACTIONS && event.preventDefault());
    if (/^[1-9]$/.test(key)) actions.digit(Number(key));
    else if (Object.hasOwn(ACTIONS, key)) actions[ACTIONS[key]]();
    else return;
    event.preventDefault();
  });
}

function keyOf(event) {
  const key = event.key.normalize("NFKC");
  // Layouts on which digits need Shift, as the French one has them.
  if (!event.shiftKey && !/^\d$/.test(key) && /^Digit\d$/.test(event.code)) return event.code.at(-1);
  return key.length === 1 ? key.toLowerCase() : key;
}
