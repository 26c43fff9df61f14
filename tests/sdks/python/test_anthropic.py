"""Python `anthropic`, unmodified."""

import asyncio
import json
import unittest

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from common import (
    CHAT, DIRECT, KEY, LACKS, LONG, PIXEL, SHORT, TIME, TWO_CALLS, URL, WEATHER, check_weather, fault, needs, within,
)

TOOLS = [
    {"name": "get_weather", "description": "Weather", "input_schema": WEATHER},
    {"name": "get_time", "input_schema": TIME},
]
HELLO = [{"role": "user", "content": "hello there"}]
#: The version of the API that has sampling parameters.
OLDER = {"anthropic-version": "2023-06-01"}


class Place(BaseModel):
    name: str
    inhabitants: int
    capital: bool


def ask(text):
    return [{"role": "user", "content": text}]


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


class AnthropicTest(unittest.TestCase):
    def setUp(self):
        self.client = Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=LONG)
        self.addCleanup(self.client.close)

    def create(self, model=CHAT, messages=None, max_tokens=100, **more):
        return self.client.messages.create(model=model, max_tokens=max_tokens, messages=messages or HELLO, **more)

    def test_chat(self):
        answer = self.create(system="Be brief.", max_tokens=20, extra_body={"temperature": 0.5}, extra_headers=OLDER)
        self.assertTrue(text_of(answer).startswith("You asked: hello there"))
        self.assertEqual((answer.role, answer.type, answer.stop_reason), ("assistant", "message", "max_tokens"))
        self.assertEqual((answer.usage.input_tokens, answer.usage.output_tokens), (4, 20))
        self.assertEqual(self.create().stop_reason, "end_turn")

    def test_stop_sequence(self):
        answer = self.create(stop_sequences=["there"])
        self.assertEqual(text_of(answer), "You asked: hello ")
        if DIRECT:
            self.assertEqual((answer.stop_reason, answer.stop_sequence), ("stop_sequence", "there"))

    def test_stream(self):
        whole = self.create(system=[{"type": "text", "text": "Be brief."}])
        events = list(self.create(system=[{"type": "text", "text": "Be brief."}], stream=True))
        kinds = [event.type for event in events]
        self.assertEqual((kinds[0], kinds[-2:]), ("message_start", ["message_delta", "message_stop"]))
        text = "".join(e.delta.text for e in events if e.type == "content_block_delta")
        self.assertEqual(text, text_of(whole))
        self.assertGreater(len(events), 10)
        self.assertEqual(events[-2].usage.output_tokens, whole.usage.output_tokens)

    def test_stream_helper(self):
        with self.client.messages.stream(model=CHAT, max_tokens=100, messages=HELLO) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual((text, final.stop_reason), (text_of(final), "end_turn"))

    @needs("images")
    def test_image(self):
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        parts = [{"type": "text", "text": "what is this"}, {"type": "image", "source": source}]
        self.assertIn("[image]", text_of(self.create(messages=ask(parts))))

    def test_tools_in_parallel_and_their_results(self):
        messages = ask(TWO_CALLS)
        answer = self.create(messages=messages, tools=TOOLS)
        calls = [block for block in answer.content if block.type == "tool_use"]
        self.assertEqual(([c.name for c in calls], answer.stop_reason), (["get_weather", "get_time"], "tool_use"))
        check_weather(self, calls[0].input)
        messages.append({"role": "assistant", "content": answer.content})
        results = [{"type": "tool_result", "tool_use_id": c.id, "content": "sunny at noon"} for c in calls]
        messages.append({"role": "user", "content": results})
        self.assertIn("sunny at noon", text_of(self.create(messages=messages, tools=TOOLS)))

    def test_tools_streamed(self):
        calls = {}
        for event in self.create(messages=ask(TWO_CALLS), tools=TOOLS, stream=True):
            if event.type == "content_block_start" and event.content_block.type == "tool_use":
                calls[event.index] = [event.content_block.name, ""]
            elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                calls[event.index][1] += event.delta.partial_json
            elif event.type == "message_delta":
                self.assertEqual(event.delta.stop_reason, "tool_use")
        names = [calls[index][0] for index in sorted(calls)]
        self.assertEqual(names, ["get_weather", "get_time"])
        check_weather(self, json.loads(calls[min(calls)][1]))

    def test_tool_choice(self):
        def calls(choice, text="hello"):
            answer = self.create(messages=ask(text), tools=TOOLS, tool_choice=choice)
            return [block.name for block in answer.content if block.type == "tool_use"]

        self.assertEqual(calls({"type": "auto"}), [])
        if "forbid_calls" not in LACKS:
            self.assertEqual(calls({"type": "none"}, TWO_CALLS), [])
        self.assertEqual(calls({"type": "any"}), ["get_weather"])
        self.assertEqual(calls({"type": "tool", "name": "get_time"}), ["get_time"])

    @needs("one_call")
    def test_one_call_at_a_time(self):
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        answer = self.create(messages=ask(TWO_CALLS), tools=TOOLS, tool_choice=choice)
        self.assertEqual(len([b for b in answer.content if b.type == "tool_use"]), 1)

    @needs("thinking")
    def test_thinking_with_its_signature(self):
        thinking = {"type": "enabled", "budget_tokens": 1024}
        messages = ask("get_weather please")
        answer = self.create(messages=messages, tools=TOOLS, thinking=thinking, max_tokens=2048)
        self.assertEqual([b.type for b in answer.content], ["thinking", "text", "tool_use"])
        self.assertTrue(answer.content[0].signature)
        result = {"type": "tool_result", "tool_use_id": answer.content[2].id, "content": "sunny"}
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        again = self.create(messages=messages, tools=TOOLS, thinking=thinking, max_tokens=2048)
        self.assertIn("sunny", text_of(again))
        forged = [block.model_copy() for block in answer.content]
        forged[0].signature = "AAAA"
        messages[1] = {"role": "assistant", "content": forged}
        with self.assertRaises(anthropic.BadRequestError):
            self.create(messages=messages, tools=TOOLS, thinking=thinking, max_tokens=2048)
        streamed = list(self.create(thinking=thinking, max_tokens=2048, stream=True))
        deltas = [e.delta.type for e in streamed if e.type == "content_block_delta"]
        self.assertEqual((deltas[0], "signature_delta" in deltas, deltas[-1]), ("thinking_delta", True, "text_delta"))

    @needs("schema")
    def test_structured_output(self):
        answer = self.client.messages.parse(model=CHAT, max_tokens=100, messages=ask("a place"), output_format=Place)
        self.assertIsInstance(answer.parsed_output, Place)

    @needs("caching")
    def test_cached_tokens_are_counted(self):
        system = [{"type": "text", "text": "one two three", "cache_control": {"type": "ephemeral"}}]
        usage = self.create(system=system).usage
        self.assertEqual((usage.cache_read_input_tokens, usage.input_tokens), (3, 2))

    @needs("count_tokens")
    def test_count_tokens(self):
        count = self.client.messages.count_tokens(model=CHAT, messages=HELLO, system="Be brief.")
        self.assertEqual(count.input_tokens, 4)

    @needs("anthropic_models")
    def test_models(self):
        self.assertIn(CHAT, [model.id for model in self.client.models.list()])

    def test_errors_are_typed(self):
        table = [
            ("400", anthropic.BadRequestError, 400),
            ("401", anthropic.AuthenticationError, 401),
            ("429", anthropic.RateLimitError, 429),
            ("500", anthropic.InternalServerError, 500),
            ("503", anthropic.InternalServerError, None),
        ]
        for name, kind, status in table:
            # Not every vendor says 401 to a wrong key.
            if name == "401" and "status_401" in LACKS:
                continue
            for stream in [False, True]:
                with self.subTest(name=name, stream=stream), self.assertRaises(kind) as caught:
                    self.create(model=fault(name), stream=stream)
                if status:
                    self.assertEqual(caught.exception.status_code, status)
                self.assertEqual(caught.exception.body["type"], "error")
                self.assertTrue(caught.exception.body["error"]["message"])

    def test_retry_after(self):
        with self.assertRaises(anthropic.RateLimitError) as caught:
            self.create(model=fault("429"))
        self.assertEqual(caught.exception.response.headers["retry-after"], "1")

    def test_unknown_model(self):
        with self.assertRaises(anthropic.NotFoundError):
            self.create(model="no-such-model")

    def test_a_mistake_is_named(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.create(extra_body={"temperature": 7})
        with self.assertRaises(anthropic.BadRequestError):
            self.create(messages=[{"role": "king", "content": "x"}])

    @needs("versions")
    def test_the_callers_version_goes_on(self):
        # Today's has no temperature any more; the one before goes on having it.
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.create(extra_body={"temperature": 0.5})
        self.assertIn("temperature: Extra inputs", caught.exception.message)

    @unittest.skipIf(DIRECT, "what the adapter does")
    def test_a_beta_that_cannot_go_on_is_refused_by_name(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.client.beta.messages.create(
                model=CHAT, max_tokens=9, messages=HELLO, betas=["interleaved-thinking-2025-05-14"]
            )
        self.assertIn("anthropic-beta", caught.exception.message)

    def test_timeout(self):
        client = self.client.with_options(timeout=SHORT)
        with within(self, SHORT * 3), self.assertRaises(anthropic.APITimeoutError):
            client.messages.create(model=fault("slow"), max_tokens=9, messages=HELLO)

    def test_cancel(self):
        with within(self, LONG):
            stream = self.create(model=fault("slow-stream"), stream=True)
            next(iter(stream))
            stream.close()
        self.create()

    def test_an_error_amid_a_stream(self):
        with self.assertRaises(anthropic.APIError):
            for _ in self.create(model=fault("error-mid-stream"), stream=True):
                pass

    def test_a_stream_that_breaks_off(self):
        with self.assertRaises(Exception) as caught:
            for _ in self.create(model=fault("close-mid-stream"), stream=True):
                pass
        self.assertNotIsInstance(caught.exception, AssertionError)

    def test_async_in_parallel_and_cancelled(self):
        async def run():
            async with AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=LONG) as client:
                one = lambda n: client.messages.create(model=CHAT, max_tokens=99, messages=ask(f"number {n}"))
                answers = await asyncio.gather(*(one(n) for n in range(8)))
                slow = asyncio.create_task(client.messages.create(model=fault("slow"), max_tokens=9, messages=HELLO))
                await asyncio.sleep(0.3)
                slow.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await slow
                return answers

        for n, answer in enumerate(asyncio.run(run())):
            self.assertIn(f"number {n}", text_of(answer))

    @unittest.skipUnless(DIRECT, "the provider's own answers")
    def test_answers_fit_the_vendors_models(self):
        raw = self.client.messages.with_raw_response
        thinking = {"type": "enabled", "budget_tokens": 1024}
        for more in [{}, {"messages": ask(TWO_CALLS), "tools": TOOLS}, {"thinking": thinking, "max_tokens": 2000}]:
            arguments = {"model": CHAT, "max_tokens": 100, "messages": HELLO} | more
            Message.model_validate_json(raw.create(**arguments).read())
            event = TypeAdapter(RawMessageStreamEvent)
            with self.client.messages.with_streaming_response.create(**arguments, stream=True) as response:
                data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
            for line in data:
                if json.loads(line)["type"] != "ping":
                    event.validate_json(line)
        MessageTokensCount.model_validate_json(raw.count_tokens(model=CHAT, messages=HELLO).read(), strict=True)


if __name__ == "__main__":
    unittest.main()
