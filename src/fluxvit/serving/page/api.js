/** Requests to the server: the token, errors in plain words, and patience when the server is busy. */

const TOKEN = "fluxvit-token";
const TRIES = 8;
const LONGEST_WAIT_S = 30;

export class ApiError extends Error {
  constructor(status, message, kind = "") {
    super(message);
    Object.assign(this, { status, kind });
  }
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/**
 * The JSON answer of the server.
 *
 * @param {string} path relative, so that a prefix of a proxy is kept.
 * @param {{body?: FormData | object, signal?: AbortSignal, onwait?: (seconds: number, status: number) => void}} options
 *   `onwait` is called before each pause that a busy (429) or loading (503) server asks for.
 * @throws {ApiError} with the server's sentence; an AbortError when `signal` is aborted.
 */
export async function request(path, { body, signal, onwait } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  for (let left = TRIES; ; left--) {
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "The server cannot be reached. Check that it is running, then try again.");
    }
    if (response.ok) return response.json();
    const busy = response.status === 429 || response.status === 503;
    if (!busy || !left) throw await asError(response);
    const seconds = Math.min(LONGEST_WAIT_S, Number(response.headers.get("Retry-After")) || 2);
    onwait?.(seconds, response.status);
    await pause(seconds, signal);
  }
}

async function asError(response) {
  const content = await response.json().catch(() => null);
  const message = content?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(response.status, sentence(message), content?.error?.type);
}

/** Error messages of the server begin with a small letter and end without a full stop. */
function sentence(text) {
  const name = /^\S*[./\\_]/.test(text); // A file's name is left as it is.
  const begun = name ? text : text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
