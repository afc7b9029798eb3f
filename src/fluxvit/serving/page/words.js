/** The forms that take words: search and questions. */

import { clock, el } from "./dom.js";

/**
 * Runs `act(signal)` when the form of a section is submitted, and shows its error there.
 *
 * A new submission aborts the one before. `unauthorized` is called if the server does not accept the token.
 */
export function onSubmit(section, act, unauthorized) {
  const error = section.querySelector(".error");
  let running = null;
  section.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    const mine = (running = new AbortController());
    error.textContent = "";
    section.setAttribute("aria-busy", true);
    try {
      await act(mine.signal);
    } catch (failure) {
      if (failure.status === 401) unauthorized();
      else if (!mine.signal.aborted) error.textContent = failure.message;
    } finally {
      if (running === mine) section.setAttribute("aria-busy", false);
    }
  });
}

/** Found moments of videos: name and folder, from when to when, and score. */
export function fillHits(list, hits) {
  const rows = hits.map(({ video, start, end, score }) => {
    const cut = Math.max(video.lastIndexOf("/"), video.lastIndexOf("\\")) + 1;
    const name = el("span", { class: "label", title: video }, el("b", { text: video.slice(cut) }));
    if (cut) name.append(" ", el("small", { text: video.slice(0, cut) }));
    return el(
      "li",
      {},
      name,
      el("span", { class: "span", text: `${clock(start, true)} to ${clock(end, true)}` }),
      el("span", { class: "score", text: score.toFixed(2) }),
    );
  });
  list.replaceChildren(...rows);
}
