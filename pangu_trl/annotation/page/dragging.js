// Dragging answers into the ranking, by mouse, finger or pen.

// Pixels before a press is a drag, so that a click stays one.
const LEAST_MOVE = 6;
const EDGE = 70;

// Makes what matches `selector` draggable; it has data-answer, or is in something that has.
export function enableDragging(selector, onDrop) {
  document.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(selector);
    if (handle === null || event.button !== 0 || event.target.closest("button, input, label")) return;
    const owner = handle.closest("[data-answer]");
    if (owner !== null) watch(event, handle, Number(owner.dataset.answer), onDrop);
  });
}

function watch(start, handle, answer, onDrop) {
  let ghost = null;
  let target = null;
  let y = start.clientY;
  let frame = 0;

  const scroll = () => {
    if (y < EDGE) scrollBy(0, -14);
    if (y > innerHeight - EDGE) scrollBy(0, 14);
    frame = requestAnimationFrame(scroll);
  };
  const move = (event) => {
    if (event.pointerId !== start.pointerId) return;
    if (ghost === null) {
      if (Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) < LEAST_MOVE) return;
      ghost = document.createElement("div");
      ghost.className = "ghost";
      ghost.textContent = String(answer + 1);
      document.body.append(ghost);
      document.body.classList.add("is-dragging");
      getSelection()?.removeAllRanges();
      frame = requestAnimationFrame(scroll);
    }
    event.preventDefault();
    y = event.clientY;
    ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
    const found = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-drop]") ?? null;
    if (found !== target) {
      target?.classList.remove("is-target");
      found?.classList.add("is-target");
      target = found;
    }
  };
  const end = (event) => {
    if (event.pointerId !== undefined && event.pointerId !== start.pointerId) return;
    stop();
    if (ghost !== null && event.type === "pointerup") onDrop(answer, target?.dataset.drop ?? "out");
  };
  const cancel = (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    stop();
  };
  const stop = () => {
    cancelAnimationFrame(frame);
    ghost?.remove();
    target?.classList.remove("is-target");
    document.body.classList.remove("is-dragging");
    document.removeEventListener("pointermove", move);
    document.removeEventListener("pointerup", end);
    document.removeEventListener("pointercancel", end);
    document.removeEventListener("keydown", cancel, true);
  };
  document.addEventListener("pointermove", move, { passive: false });
  document.addEventListener("pointerup", end);
  document.addEventListener("pointercancel", end);
  document.addEventListener("keydown", cancel, true);
}
