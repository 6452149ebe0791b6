// The server's API: what is asked of it, and its errors in its own words. Knows nothing of the page.

export const BASE = new URL("v1", document.baseURI).href;

/** `param` names the place, and `status` is 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export class Api {
  constructor(key = "") {
    this.key = key;
  }

  async models() {
    return (await (await this.#fetch("/models")).json()).data;
  }

  /** Yields the chunks of a streamed completion. */
  async *chat(body, signal) {
    const headers = { "content-type": "application/json" };
    const answer = await this.#fetch("/chat/completions", {
      method: "POST",
      headers,
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, answer.status, chunk.error.param);
      yield chunk;
    }
    throw new ApiError("The connection ended in the middle of the answer.");
  }

  /** `task`: transcriptions or translations. */
  async transcribe(task, file, fields, signal) {
    const form = new FormData();
    for (const [name, value] of fields) form.append(name, value);
    form.append("file", file, file.name);
    return (await this.#fetch(`/audio/${task}`, { method: "POST", body: form, signal })).json();
  }

  async #fetch(path, { headers = {}, ...options } = {}) {
    const authorization = this.key ? { authorization: `Bearer ${this.key}` } : {};
    let answer;
    try {
      answer = await fetch(BASE + path, { ...options, headers: { ...headers, ...authorization } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached.");
    }
    if (!answer.ok) throw await refused(answer);
    return answer;
  }
}

async function refused(answer) {
  const body = await answer.json().catch(() => null);
  const { message, param } = body?.error ?? {};
  return new ApiError(message ?? `The server answered with status ${answer.status}.`, answer.status, param);
}

/** The `data` of each server-sent event of a byte stream, wherever its chunks are cut. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
