// What the page says, in the language that was chosen; English and Chinese.

let all = null;
let language = "en";

export async function loadWords() {
  all = await (await fetch("words.json")).json();
  const wanted = localStorage.getItem("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  setLanguage(wanted in all ? wanted : "en");
}

export function setLanguage(name) {
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
}

export function otherLanguage() {
  return language === "en" ? "zh" : "en";
}

// The text of a word, with {names} filled in.
export function say(word, values = {}) {
  const text = all[language][word];
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

export function sayRank(rank) {
  return say(rank <= 3 ? `rank_${rank}` : "rank_n", { rank });
}
