// JavaScript `@anthropic-ai/sdk`, unmodified.

import assert from "node:assert/strict";
import test from "node:test";

import Anthropic from "@anthropic-ai/sdk";

import {
  CHAT, KEY, LONG, PLACE, SHORT, TIME, TWO_CALLS, URL_ROOT, WEATHER, checkPlace, checkWeather, collect, fault, needs,
  refused,
} from "./common.mjs";

const client = new Anthropic({ baseURL: URL_ROOT, apiKey: KEY, maxRetries: 0, timeout: LONG });
const ask = (content) => [{ role: "user", content }];
const TOOLS = [
  { name: "get_weather", input_schema: WEATHER },
  { name: "get_time", input_schema: TIME },
];
const create = (more = {}, options) =>
  client.messages.create({ model: CHAT, max_tokens: 100, messages: ask("hello there"), ...more }, options);
const textOf = (message) => message.content.filter((block) => block.type === "text").map((block) => block.text).join("");

test("chat", async () => {
  const answer = await create({ system: "Be brief.", max_tokens: 20 });
  assert.ok(textOf(answer).startsWith("You asked: hello there"));
  assert.equal(answer.stop_reason, "max_tokens");
  assert.equal(answer.usage.output_tokens, 20);
});

test("stream", async () => {
  const whole = await create();
  const events = await collect(await create({ stream: true }));
  assert.equal(events[0].type, "message_start");
  assert.equal(events.at(-1).type, "message_stop");
  const deltas = events.filter((event) => event.type === "content_block_delta").map((event) => event.delta.text);
  assert.equal(deltas.join(""), textOf(whole));
  const final = await client.messages.stream({ model: CHAT, max_tokens: 100, messages: ask("hello there") }).finalMessage();
  assert.equal(textOf(final), textOf(whole));
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test("tools in parallel and their results", async () => {
  const messages = ask(TWO_CALLS);
  const answer = await create({ messages, tools: TOOLS });
  const calls = answer.content.filter((block) => block.type === "tool_use");
  assert.deepEqual(calls.map((call) => call.name), ["get_weather", "get_time"]);
  assert.equal(answer.stop_reason, "tool_use");
  checkWeather(calls[0].input);
  messages.push({ role: "assistant", content: answer.content });
  messages.push({ role: "user", content: calls.map((call) => ({ type: "tool_result", tool_use_id: call.id, content: "sunny" })) });
  assert.match(textOf(await create({ messages, tools: TOOLS })), /sunny/);
});

test("tools streamed", async () => {
  const stream = client.messages.stream({ model: CHAT, max_tokens: 100, messages: ask(TWO_CALLS), tools: TOOLS });
  const calls = (await stream.finalMessage()).content.filter((block) => block.type === "tool_use");
  assert.deepEqual(calls.map((call) => call.name), ["get_weather", "get_time"]);
  checkWeather(calls[0].input);
});

test("tool choice", async () => {
  const names = async (tool_choice, text) => {
    const answer = await create({ messages: ask(text), tools: TOOLS, tool_choice });
    return answer.content.filter((block) => block.type === "tool_use").map((block) => block.name);
  };
  assert.deepEqual(await names({ type: "none" }, TWO_CALLS), []);
  assert.deepEqual(await names({ type: "any" }, "hello"), ["get_weather"]);
  assert.deepEqual(await names({ type: "tool", name: "get_time" }, "hello"), ["get_time"]);
});

test("thinking with its signature", needs("thinking"), async () => {
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const messages = ask("get_weather please");
  const final = await client.messages.stream({ model: CHAT, max_tokens: 2048, messages, tools: TOOLS, thinking }).finalMessage();
  assert.deepEqual(final.content.map((block) => block.type), ["thinking", "text", "tool_use"]);
  messages.push({ role: "assistant", content: final.content });
  messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: final.content[2].id, content: "sunny" }] });
  assert.match(textOf(await create({ messages, tools: TOOLS, thinking, max_tokens: 2048 })), /sunny/);
});

test("structured output", needs("schema"), async () => {
  const output_config = { format: { type: "json_schema", schema: PLACE } };
  checkPlace(JSON.parse(textOf(await create({ messages: ask("a place"), output_config }))));
});

test("count tokens", needs("count_tokens"), async () => {
  const count = await client.messages.countTokens({ model: CHAT, messages: ask("hello there") });
  assert.equal(count.input_tokens, 2);
});

for (const [name, kind, status] of [
  ["400", Anthropic.BadRequestError, 400],
  ["401", Anthropic.AuthenticationError, 401],
  ["429", Anthropic.RateLimitError, 429],
  ["500", Anthropic.InternalServerError, 500],
  ["503", Anthropic.InternalServerError, undefined],
]) {
  // Not every vendor says 401 to a wrong key.
  test(`error ${name}`, needs(...(name === "401" ? ["status_401"] : [])), async () => {
    for (const stream of [false, true]) {
      const error = await refused(kind, status, () => create({ model: fault(name), stream }));
      assert.equal(error.error.type, "error");
      if (name === "429") assert.equal(error.headers.get("retry-after"), "1");
    }
  });
}

test("unknown model, and a mistake", async () => {
  await refused(Anthropic.NotFoundError, 404, () => create({ model: "no-such-model" }));
  await refused(Anthropic.BadRequestError, 400, () => create({ messages: [{ role: "king", content: "x" }] }));
});

test("timeout", async () => {
  const slow = () => create({ model: fault("slow") }, { timeout: SHORT });
  await refused(Anthropic.APIConnectionTimeoutError, undefined, slow);
});

test("cancel", async () => {
  const stream = await create({ model: fault("slow-stream"), stream: true });
  for await (const _ of stream) break;
  const abort = new AbortController();
  const waiting = refused(Anthropic.APIUserAbortError, undefined, () => create({ model: fault("slow") }, { signal: abort.signal }));
  setTimeout(() => abort.abort(), 300);
  await waiting;
  await create();
});

test("an error amid a stream, and a stream that breaks off", async () => {
  for (const name of ["error-mid-stream", "close-mid-stream"]) {
    await refused(Error, undefined, () => create({ model: fault(name), stream: true }));
  }
});
