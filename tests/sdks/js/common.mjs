// What the suites share. The same variables as in ../python/common.py.

import assert from "node:assert/strict";

export const URL_ROOT = process.env.SDK_URL.replace(/\/$/, "");
const PREFIX = process.env.SDK_PREFIX ?? "";
const LACKS = new Set((process.env.SDK_LACKS ?? "").split(",").filter(Boolean));
export const KEY = process.env.SDK_KEY ?? "any-word-will-do";

export const CHAT = `${PREFIX}demo-chat`;
export const EMBED = `${PREFIX}demo-embed`;
export const SHORT = 2_000;
export const LONG = 60_000;

export const fault = (name) => `${PREFIX}fault-${name}`;

/** Options of a test that needs features. */
export const needs = (...features) => {
  const missing = features.filter((feature) => LACKS.has(feature));
  return missing.length ? { skip: `not on this way: ${missing}` } : {};
};

export const WEATHER = {
  type: "object",
  properties: {
    city: { type: "string", description: "Where" },
    days: { type: "integer", minimum: 1, maximum: 7 },
  },
  required: ["city", "days"],
  additionalProperties: false,
};
export const TIME = {
  type: "object",
  properties: { zone: { type: "string", enum: ["UTC", "CET"] } },
  required: ["zone"],
  additionalProperties: false,
};
export const TWO_CALLS = "Please use get_weather and get_time.";
export const PLACE = {
  type: "object",
  properties: { name: { type: "string" }, inhabitants: { type: "integer" } },
  required: ["name", "inhabitants"],
  additionalProperties: false,
};

export function checkWeather(given) {
  assert.deepEqual(Object.keys(given).sort(), ["city", "days"]);
  assert.equal(typeof given.city, "string");
  assert.ok(given.days >= 1 && given.days <= 7);
}

export function checkPlace(given) {
  assert.equal(typeof given.name, "string");
  assert.ok(Number.isInteger(given.inhabitants));
}

export const collect = async (stream) => {
  const all = [];
  for await (const item of stream) all.push(item);
  return all;
};

/** The error that a promise or a stream ends with, of this class and status. */
export async function refused(kind, status, ask) {
  let caught;
  try {
    const answer = await ask();
    if (answer?.[Symbol.asyncIterator]) await collect(answer);
  } catch (error) {
    caught = error;
  }
  assert.ok(caught, "no error");
  assert.ok(caught instanceof kind, `${caught?.constructor?.name}: ${caught}`);
  if (status) assert.equal(caught.status, status);
  return caught;
}
