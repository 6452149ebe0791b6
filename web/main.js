// Puts the page together: tabs, theme, key, models, and where new audio goes.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { prepareCode } from "./code.js";
import { byId, el, tabs } from "./dom.js";
import { RecordButton, watchFiles } from "./intake.js";
import { Transcribe } from "./transcribe.js";

const KEY = "eardrum.key"; // in the tab's own storage, which goes with it
const THEME = "eardrum.theme";
const THEMES = ["system", "light", "dark"];
const PANELS = { "tab-chat": "chat", "tab-transcribe": "transcribe" };
const LOADING_MS = 2000; // until it is asked again what a model takes that is not loaded yet
const RECORDING_RATE = 16_000; // Hz, where the model does not tell its own

const api = new Api(sessionStorage.getItem(KEY) ?? "");
const models = new Map(); // by name
let open = "chat";

const settings = () => ({ api, model: byId("model").value });
const rate = () => models.get(byId("model").value)?.audio?.sampling_rate ?? RECORDING_RATE;
const views = { chat: new Chat(settings), transcribe: new Transcribe(settings) };

for (const [name, { tray }] of Object.entries(views)) {
  new RecordButton(byId(`${name}-record`), rate, (file) => tray.add([file], { recorded: true }), notice);
  byId(`${name}-files`).addEventListener("click", () => byId("picker").click());
}
watchFiles((files) => views[open].tray.add(files));
tabs(document.querySelector(".bar [role=tablist]"), show);
prepareCode();
prepareSettings();
prepareTheme();
prepareKey();
loadModels();

function show(tab) {
  open = PANELS[tab];
  document.body.dataset.open = open;
  for (const name of Object.values(PANELS)) {
    byId(name).hidden = name !== open;
    byId(`${name}-settings`).hidden = name !== open;
  }
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// -------------------------------------------------------------------------------------------------------------- models

async function loadModels() {
  let found;
  try {
    found = await api.models();
    notice("");
  } catch (error) {
    notice(error.message);
    if (error.status === 401) askForKey();
    return;
  }
  models.clear();
  for (const model of found) models.set(model.id, model);
  const list = byId("model");
  const chosen = list.value;
  list.replaceChildren(...found.map(({ id }) => el("option", { value: id }, id)));
  if (models.has(chosen)) list.value = chosen;
  describe();
  if (found.some(({ audio }) => !audio)) setTimeout(loadModels, LOADING_MS); // it tells once it is loaded
}

function describe() {
  const audio = models.get(byId("model").value)?.audio;
  byId("card").replaceChildren(
    ...(audio ? facts(audio).flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]) : []),
  );
}

function facts(audio) {
  const ways = { error: "refused", truncate: "cut", chunk: "in pieces" };
  const window = audio.max_seconds_per_window;
  return [
    ["At once", window ? `${window} s` : "any length"],
    ["Longer", window ? ways[audio.long_audio] : "–"],
    ["Clips", `up to ${audio.max_clips}`],
    ["Rate", `${audio.sampling_rate / 1000} kHz`],
  ];
}

// ------------------------------------------------------------------------------------------------- key, theme, settings

function prepareKey() {
  const field = byId("key");
  field.value = api.key;
  field.addEventListener("change", () => {
    api.key = field.value.trim();
    sessionStorage.setItem(KEY, api.key);
    loadModels();
  });
  byId("model").addEventListener("change", describe);
}

function askForKey() {
  openSettings(true);
  byId("key").focus();
}

function prepareTheme() {
  const button = byId("theme");
  const use = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.ariaLabel = button.title = `Theme: ${theme}`;
    localStorage.setItem(THEME, theme);
  };
  use(THEMES.find((theme) => theme === localStorage.getItem(THEME)) ?? "system");
  button.addEventListener("click", () =>
    use(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]),
  );
}

function openSettings(isOpen) {
  byId("settings").classList.toggle("open", isOpen);
  byId("open-settings").setAttribute("aria-expanded", String(isOpen));
}

function prepareSettings() {
  byId("open-settings").addEventListener("click", () => {
    openSettings(true);
    byId("close-settings").focus();
  });
  byId("close-settings").addEventListener("click", closeSettings);
  byId("settings").addEventListener("keydown", (event) => event.key === "Escape" && closeSettings());
  for (const form of document.querySelectorAll(".settings form")) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("invalid", () => openSettings(true), true); // a wrong value cannot be shown where it is hidden
  }
}

function closeSettings() {
  if (!byId("settings").classList.contains("open")) return;
  openSettings(false);
  byId("open-settings").focus();
}
