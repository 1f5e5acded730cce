// Time spent on a prompt; pauses, and a window that nobody looks at, do not count.

// After so long without a key or a movement somebody has left; in milliseconds.
const IDLE = 180_000;

export class Clock {
  constructor(onIdle) {
    this.counted = 0;
    this.since = null;
    this.lastSign = performance.now();
    const sign = () => (this.lastSign = performance.now());
    for (const kind of ["keydown", "pointermove", "pointerdown", "wheel", "touchmove"]) {
      addEventListener(kind, sign, { passive: true, capture: true });
    }
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.goOn()));
    setInterval(() => {
      if (this.since !== null && performance.now() - this.lastSign > IDLE) {
        this.stop(this.lastSign);
        onIdle();
      }
    }, 5000);
    this.isPaused = false;
  }

  get seconds() {
    return (this.counted + (this.since === null ? 0 : performance.now() - this.since)) / 1000;
  }

  start(seconds) {
    this.counted = seconds * 1000;
    this.since = null;
    this.goOn();
  }

  pause() {
    this.isPaused = true;
    this.stop();
  }

  resume() {
    this.isPaused = false;
    this.lastSign = performance.now();
    this.goOn();
  }

  goOn() {
    if (!this.isPaused && !document.hidden && this.since === null) this.since = performance.now();
  }

  stop(at = performance.now()) {
    if (this.since !== null) this.counted += Math.max(at - this.since, 0);
    this.since = null;
  }
}
