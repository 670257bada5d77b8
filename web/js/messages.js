// @ts-check
/** What the page says, in the user's language: `locales/<language>/main.json`, key `omnirefiner`. */

import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

/** @type {Record<string, string>} */
let texts = {};

/** Loads the texts of the language that is set in ComfyUI, English where one is missing. */
export async function loadMessages() {
  try {
    const all = await (await api.fetchApi("/i18n")).json();
    const locale = String(
      app.extensionManager?.setting?.get?.("Comfy.Locale") ?? navigator.language,
    );
    texts = { ...all.en?.omnirefiner, ...all[locale.split("-")[0]]?.omnirefiner, ...all[locale]?.omnirefiner };
  } catch (error) {
    console.warn("OmniRefiner: no translations", error);
  }
}

/**
 * The text called `key`, with {names} replaced.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function say(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}
