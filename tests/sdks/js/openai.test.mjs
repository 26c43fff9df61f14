// JavaScript `openai`, unmodified.

import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

import {
  CHAT, EMBED, KEY, LONG, PLACE, SHORT, TIME, TWO_CALLS, URL_ROOT, WEATHER, checkPlace, checkWeather, collect, fault,
  needs, refused,
} from "./common.mjs";

const client = new OpenAI({ baseURL: `${URL_ROOT}/v1`, apiKey: KEY, maxRetries: 0, timeout: LONG });
const HELLO = [{ role: "system", content: "Be brief." }, { role: "user", content: "hello there" }];
const ask = (content) => [{ role: "user", content }];
const TOOLS = [
  { type: "function", function: { name: "get_weather", parameters: WEATHER, strict: true } },
  { type: "function", function: { name: "get_time", parameters: TIME } },
];
const chat = (more = {}, options) => client.chat.completions.create({ model: CHAT, messages: HELLO, ...more }, options);

test("chat", async () => {
  const answer = await chat({ max_tokens: 20, temperature: 0.5 });
  assert.ok(answer.choices[0].message.content.startsWith("You asked: hello there"));
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.total_tokens, 24);
});

test("stream", async () => {
  const whole = await chat();
  const chunks = await collect(await chat({ stream: true, stream_options: { include_usage: true } }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.ok(chunks.length > 10);
  assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);
});

test("tools in parallel and their results", async () => {
  const messages = ask(TWO_CALLS);
  const { message, finish_reason } = (await chat({ messages, tools: TOOLS })).choices[0];
  assert.equal(finish_reason, "tool_calls");
  assert.deepEqual(message.tool_calls.map((call) => call.function.name), ["get_weather", "get_time"]);
  checkWeather(JSON.parse(message.tool_calls[0].function.arguments));
  messages.push(message);
  for (const call of message.tool_calls) messages.push({ role: "tool", tool_call_id: call.id, content: "sunny" });
  const after = await chat({ messages, tools: TOOLS });
  assert.match(after.choices[0].message.content, /sunny/);
});

test("tools streamed", async () => {
  const stream = client.chat.completions.stream({ model: CHAT, messages: ask(TWO_CALLS), tools: TOOLS });
  const final = await stream.finalChatCompletion();
  const calls = final.choices[0].message.tool_calls;
  assert.deepEqual(calls.map((call) => call.function.name), ["get_weather", "get_time"]);
  checkWeather(JSON.parse(calls[0].function.arguments));
});

test("tool choice", async () => {
  const names = async (tool_choice, text) => {
    const answer = await chat({ messages: ask(text), tools: TOOLS, tool_choice });
    return (answer.choices[0].message.tool_calls ?? []).map((call) => call.function.name);
  };
  assert.deepEqual(await names("none", TWO_CALLS), []);
  assert.deepEqual(await names("required", "hello"), ["get_weather"]);
  assert.deepEqual(await names({ type: "function", function: { name: "get_time" } }, "hello"), ["get_time"]);
});

test("structured output", needs("schema"), async () => {
  const response_format = { type: "json_schema", json_schema: { name: "place", schema: PLACE, strict: true } };
  const answer = await client.chat.completions.parse({ model: CHAT, messages: ask("a place"), response_format });
  checkPlace(JSON.parse(answer.choices[0].message.content));
});

test("responses", needs("responses"), async () => {
  const answer = await client.responses.create({ model: CHAT, input: "hello there" });
  assert.ok(answer.output_text.startsWith("You asked: hello there"));
  const events = await collect(await client.responses.create({ model: CHAT, input: "hello there", stream: true }));
  const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(text.join(""), answer.output_text);
  assert.equal(events.at(-1).type, "response.completed");
});

test("embeddings", needs("embeddings"), async () => {
  const answer = await client.embeddings.create({ model: EMBED, input: ["the red house", "a barn"], dimensions: 64 });
  assert.deepEqual(answer.data.map((item) => item.embedding.length), [64, 64]);
  const norm = answer.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
  assert.ok(Math.abs(norm - 1) < 1e-4);
});

test("models", async () => {
  const ids = (await collect(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(CHAT));
});

for (const [name, kind, status] of [
  ["400", OpenAI.BadRequestError, 400],
  ["401", OpenAI.AuthenticationError, 401],
  ["429", OpenAI.RateLimitError, 429],
  ["500", OpenAI.InternalServerError, 500],
  ["503", OpenAI.InternalServerError, undefined],
]) {
  // Not every vendor says 401 to a wrong key.
  test(`error ${name}`, needs(...(name === "401" ? ["status_401"] : [])), async () => {
    for (const stream of [false, true]) {
      const error = await refused(kind, status, () => chat({ model: fault(name), stream }));
      assert.ok(error.message);
      if (name === "429") assert.equal(error.headers.get("retry-after"), "1");
    }
  });
}

test("unknown model, and a mistake", async () => {
  await refused(OpenAI.NotFoundError, 404, () => chat({ model: "no-such-model" }));
  await refused(OpenAI.BadRequestError, 400, () => chat({ temperature: 7 }));
});

test("timeout", async () => {
  await refused(OpenAI.APIConnectionTimeoutError, undefined, () => chat({ model: fault("slow") }, { timeout: SHORT }));
});

test("cancel", async () => {
  const stream = await chat({ model: fault("slow-stream"), stream: true });
  for await (const _ of stream) break;
  const abort = new AbortController();
  const waiting = refused(OpenAI.APIUserAbortError, undefined, () => chat({ model: fault("slow") }, { signal: abort.signal }));
  setTimeout(() => abort.abort(), 300);
  await waiting;
  await chat();
});

test("an error amid a stream, and a stream that breaks off", async () => {
  for (const name of ["error-mid-stream", "close-mid-stream"]) {
    await refused(Error, undefined, () => chat({ model: fault(name), stream: true }));
  }
});
