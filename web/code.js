// The dialog with code to copy.

import { announce, byId, tabs } from "./dom.js";

const LANGUAGES = ["curl", "python", "javascript"];
let shown = null;
let language = "curl";

export function prepareCode() {
  const dialog = byId("code");
  tabs(dialog.querySelector("[role=tablist]"), (id) => {
    language = LANGUAGES.find((each) => id === `code-${each}`);
    byId("code-panel").setAttribute("aria-labelledby", id);
    show();
  });
  byId("code-close").addEventListener("click", () => dialog.close());
  byId("code-copy").addEventListener("click", copy);
}

/** `snippets`: the code for each language. */
export function showCode(snippets) {
  shown = snippets;
  show();
  byId("code").showModal();
}

function show() {
  byId("code-text").textContent = shown[language];
  const key = shown.keyed ? ", and the key from OPENAI_API_KEY" : "";
  byId("code-hint").textContent = `Audio is read from the current directory${key}.`;
  named("Copy");
}

async function copy() {
  try {
    await navigator.clipboard.writeText(shown[language]);
    named("Copied");
    announce("Copied");
  } catch {
    getSelection().selectAllChildren(byId("code-text")); // no clipboard on a plain http page: theirs to press Ctrl-C
    named("Selected");
  }
}

const named = (word) => (byId("code-copy").querySelector("span").textContent = word);
