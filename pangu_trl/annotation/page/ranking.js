// The ranking of one prompt while it is being made: groups of equals from best to worst, and invalid answers.
// Answers are numbered from 0 in the order shown. Nothing here knows of the page.

export class Ranking {
  constructor(numAnswers) {
    this.numAnswers = numAnswers;
    this.groups = [];
    this.invalid = [];
    // What the next number means: null, "tie" or "invalid".
    this.pending = null;
    this.history = [];
  }

  // Ranks as the server keeps them; null for invalid ones.
  get ranks() {
    const ranks = new Array(this.numAnswers).fill(null);
    this.groups.forEach((group, place) => group.forEach((answer) => (ranks[answer] = place + 1)));
    return ranks;
  }

  set ranks(ranks) {
    this.groups = [];
    this.invalid = [];
    ranks.forEach((rank, answer) => {
      if (rank === null) this.invalid.push(answer);
      else (this.groups[rank - 1] ??= []).push(answer);
    });
  }

  get open() {
    return [...Array(this.numAnswers).keys()].filter((answer) => !this.isPlaced(answer) && !this.isInvalid(answer));
  }

  get isEmpty() {
    return this.groups.length === 0 && this.invalid.length === 0;
  }

  get lastPlaced() {
    return this.groups.at(-1)?.at(-1) ?? null;
  }

  isPlaced(answer) {
    return this.rankOf(answer) !== null;
  }

  isInvalid(answer) {
    return this.invalid.includes(answer);
  }

  rankOf(answer) {
    const place = this.groups.findIndex((group) => group.includes(answer));
    return place < 0 ? null : place + 1;
  }

  // Does with an answer what the next number means. Returns the word of what was done, or null if nothing could be.
  take(answer) {
    if (this.pending === "invalid") return this.markInvalid(answer);
    if (this.isPlaced(answer) || this.isInvalid(answer)) return null;
    this.remember();
    const isTie = this.pending === "tie" && this.groups.length > 0;
    this.pending = null;
    if (isTie) this.groups.at(-1).push(answer);
    else this.groups.push([answer]);
    return isTie ? "tied" : "placed";
  }

  markInvalid(answer) {
    this.remember();
    this.pending = null;
    if (this.isInvalid(answer)) {
      this.remove(answer);
      return "valid";
    }
    this.remove(answer);
    this.invalid.push(answer);
    return "invalid";
  }

  // The next answer is as good as the last one; with none left, the last two places become one, or two again.
  tie() {
    if (this.pending === "tie") {
      this.pending = null;
      return true;
    }
    if (this.open.length > 0) {
      if (this.groups.length === 0) return false;
      this.pending = "tie";
      return true;
    }
    if (this.groups.length < 2) return false;
    this.joinPlaces(this.groups.length - 2);
    return true;
  }

  joinPlaces(place) {
    this.remember();
    this.groups.splice(place, 2, [...this.groups[place], ...this.groups[place + 1]]);
  }

  // Behind the others of its place.
  untie(answer) {
    this.remember();
    const place = this.rankOf(answer) - 1;
    this.groups[place] = this.groups[place].filter((other) => other !== answer);
    this.groups.splice(place + 1, 0, [answer]);
  }

  takeOut(answer) {
    this.remember();
    this.remove(answer);
  }

  // Moves an answer to where it was dropped: "gap:2" between places, "place:1" as an equal, "invalid" or "out".
  drop(answer, target) {
    const [kind, number] = target.split(":");
    this.remember();
    this.pending = null;
    const place = Number(number);
    // By what stands there, as places move when the answer leaves its own.
    const equals = kind === "place" ? this.groups[place].filter((other) => other !== answer) : [];
    const behind = this.groups.slice(place).flat().filter((other) => other !== answer);
    this.remove(answer);
    if (kind === "invalid") this.invalid.push(answer);
    if (kind === "place") {
      if (equals.length > 0) this.groups[this.rankOf(equals[0]) - 1].push(answer);
      else this.groups.splice(place, 0, [answer]);
    }
    if (kind === "gap") {
      const before = behind.length > 0 ? this.rankOf(behind[0]) - 1 : this.groups.length;
      this.groups.splice(before, 0, [answer]);
    }
  }

  undo() {
    if (this.pending !== null) {
      this.pending = null;
      return true;
    }
    const before = this.history.pop();
    if (before === undefined) {
      if (this.isEmpty) return false;
      // What an earlier visit left: the last that was placed goes first.
      this.remove(this.lastPlaced ?? this.invalid.at(-1));
      return true;
    }
    this.groups = before.groups;
    this.invalid = before.invalid;
    return true;
  }

  remember() {
    this.history.push({ groups: this.groups.map((group) => [...group]), invalid: [...this.invalid] });
  }

  remove(answer) {
    this.groups = this.groups.map((group) => group.filter((other) => other !== answer)).filter((group) => group.length);
    this.invalid = this.invalid.filter((other) => other !== answer);
  }
}
