// Talks to the server: what was done here is sent until the server says that it is kept.

const WAITS = [300, 700, 1500, 3000, 5000];

export class Refused extends Error {
  constructor(status, content) {
    super(content.error ?? String(status));
    this.status = status;
    this.content = content;
  }
}

// A word of its own for each decision, by which the server knows one that comes twice.
export function newRequest() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Asks until there is an answer; onWait is told when it takes more than one call, and onReached when that is over.
export async function ask(path, body, { onWait = () => {}, onReached = () => {} } = {}) {
  for (let attempt = 0; ; attempt += 1) {
    let response = null;
    try {
      response = await fetch(`api/${path}`, options(body));
    } catch {
      // Not reached: it is being restarted, or the network is gone.
    }
    if (response !== null && response.status < 500) {
      if (attempt > 0) onReached();
      const isJson = response.headers.get("content-type")?.startsWith("application/json");
      const content = isJson ? await response.json() : { error: await response.text() };
      if (!response.ok) throw new Refused(response.status, content);
      return content;
    }
    onWait();
    await new Promise((resolve) => setTimeout(resolve, WAITS[Math.min(attempt, WAITS.length - 1)]));
  }
}

function options(body) {
  if (body === undefined) return { cache: "no-store" };
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}
