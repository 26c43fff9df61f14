"""Python `openai`, unmodified."""

import asyncio
import json
import unittest

import openai
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from common import (
    CHAT, DIRECT, EMBED, KEY, LACKS, LONG, PIXEL, SHORT, TIME, TWO_CALLS, URL, WEATHER, check_weather, fault, needs, within,
)

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER, "strict": True}},
    {"type": "function", "function": {"name": "get_time", "parameters": TIME}},
]
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]


class Place(BaseModel):
    name: str
    inhabitants: int
    capital: bool


def ask(text):
    return [{"role": "user", "content": text}]


class OpenAITest(unittest.TestCase):
    def setUp(self):
        self.client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=LONG)
        self.addCleanup(self.client.close)

    def test_chat(self):
        answer = self.client.chat.completions.create(model=CHAT, messages=HELLO, temperature=0.5, top_p=0.9, max_tokens=20)
        choice = answer.choices[0]
        self.assertTrue(choice.message.content.startswith("You asked: hello there"))
        self.assertEqual((choice.message.role, choice.finish_reason, answer.object), ("assistant", "length", "chat.completion"))
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (4, 20))
        self.assertEqual(answer.usage.total_tokens, 24)

    def test_stop_and_whole_answer(self):
        whole = self.client.chat.completions.create(model=CHAT, messages=HELLO)
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        cut = self.client.chat.completions.create(model=CHAT, messages=HELLO, stop=["there"])
        self.assertEqual((cut.choices[0].finish_reason, cut.choices[0].message.content), ("stop", "You asked: hello "))

    def test_stream(self):
        whole = self.client.chat.completions.create(model=CHAT, messages=HELLO)
        stream = self.client.chat.completions.create(
            model=CHAT, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertGreater(len(chunks), 10)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_stream_helper(self):
        with self.client.chat.completions.stream(model=CHAT, messages=HELLO) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertIn("content.delta", kinds)
        self.assertTrue(final.choices[0].message.content.startswith("You asked: hello there"))

    @needs("images")
    def test_image(self):
        url = f"data:image/png;base64,{PIXEL}"
        parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": url}}]
        answer = self.client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": parts}])
        self.assertIn("[image]", answer.choices[0].message.content)

    def test_tools_in_parallel_and_their_results(self):
        messages = ask(TWO_CALLS)
        answer = self.client.chat.completions.create(model=CHAT, messages=messages, tools=TOOLS)
        message = answer.choices[0].message
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        self.assertEqual([c.function.name for c in message.tool_calls], ["get_weather", "get_time"])
        self.assertEqual(len({c.id for c in message.tool_calls}), 2)
        check_weather(self, json.loads(message.tool_calls[0].function.arguments))
        messages.append(message)
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny at noon"})
        answer = self.client.chat.completions.create(model=CHAT, messages=messages, tools=TOOLS)
        self.assertIn("sunny at noon", answer.choices[0].message.content)

    def test_tools_streamed(self):
        stream = self.client.chat.completions.create(model=CHAT, messages=ask(TWO_CALLS), tools=TOOLS, stream=True)
        calls, finish = {}, None
        for chunk in stream:
            for delta in chunk.choices[0].delta.tool_calls or []:
                call = calls.setdefault(delta.index, {"name": "", "arguments": "", "id": ""})
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
            finish = chunk.choices[0].finish_reason or finish
        self.assertEqual((sorted(calls), finish), ([0, 1], "tool_calls"))
        self.assertEqual([calls[0]["name"], calls[1]["name"]], ["get_weather", "get_time"])
        check_weather(self, json.loads(calls[0]["arguments"]))
        self.assertIn(json.loads(calls[1]["arguments"])["zone"], ["UTC", "CET"])

    def test_tool_choice(self):
        def calls(choice, text="hello", **more):
            answer = self.client.chat.completions.create(
                model=CHAT, messages=ask(text), tools=TOOLS, tool_choice=choice, **more
            )
            return [call.function.name for call in answer.choices[0].message.tool_calls or []]

        self.assertEqual(calls("auto"), [])
        if "forbid_calls" not in LACKS:
            self.assertEqual(calls("none", TWO_CALLS), [])
        self.assertEqual(calls("required"), ["get_weather"])
        self.assertEqual(calls({"type": "function", "function": {"name": "get_time"}}), ["get_time"])

    @needs("one_call")
    def test_one_call_at_a_time(self):
        answer = self.client.chat.completions.create(
            model=CHAT, messages=ask(TWO_CALLS), tools=TOOLS, parallel_tool_calls=False
        )
        self.assertEqual(len(answer.choices[0].message.tool_calls), 1)

    @needs("schema")
    def test_structured_output(self):
        answer = self.client.chat.completions.parse(model=CHAT, messages=ask("a place"), response_format=Place)
        self.assertIsInstance(answer.choices[0].message.parsed, Place)

    @needs("json_object")
    def test_json_object(self):
        answer = self.client.chat.completions.create(
            model=CHAT, messages=ask("answer in json"), response_format={"type": "json_object"}
        )
        self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    @needs("reasoning")
    def test_reasoning_is_counted(self):
        answer = self.client.chat.completions.create(model=CHAT, messages=HELLO, reasoning_effort="low")
        self.assertGreater(answer.usage.completion_tokens_details.reasoning_tokens, 0)

    @needs("responses")
    def test_responses(self):
        answer = self.client.responses.create(model=CHAT, input="hello there", instructions="Be brief.")
        self.assertTrue(answer.output_text.startswith("You asked: hello there"))
        self.assertEqual(answer.status, "completed")
        self.assertGreater(answer.usage.output_tokens, 0)
        events = list(self.client.responses.create(model=CHAT, input="hello there", instructions="Be brief.", stream=True))
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        self.assertEqual((text, events[0].type, events[-1].type), (answer.output_text, "response.created", "response.completed"))
        self.assertEqual(events[-1].response.output_text, text)

    @needs("responses")
    def test_responses_tools_and_schema(self):
        tools = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}]
        first = self.client.responses.create(model=CHAT, input=ask("get_weather please"), tools=tools)
        call = next(item for item in first.output if item.type == "function_call")
        check_weather(self, json.loads(call.arguments))
        more = ask("get_weather please") + first.output
        more.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        second = self.client.responses.create(model=CHAT, input=more, tools=tools)
        self.assertIn("sunny", second.output_text)
        parsed = self.client.responses.parse(model=CHAT, input="a place", text_format=Place)
        self.assertIsInstance(parsed.output_parsed, Place)

    @needs("completions")
    def test_completions(self):
        answer = self.client.completions.create(model=CHAT, prompt="hello there", max_tokens=8)
        self.assertTrue(answer.choices[0].text.startswith("You asked: hello there"))
        chunks = list(self.client.completions.create(model=CHAT, prompt="hello there", max_tokens=8, stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), answer.choices[0].text)

    @needs("embeddings")
    def test_embeddings(self):
        texts = ["the red house", "the red barn", "quarterly tax form"]
        answer = self.client.embeddings.create(model=EMBED, input=texts, dimensions=64)
        vectors = [item.embedding for item in answer.data]
        dot = lambda a, b: sum(x * y for x, y in zip(a, b))
        self.assertEqual([len(v) for v in vectors], [64] * 3)
        self.assertGreater(dot(vectors[0], vectors[1]), dot(vectors[0], vectors[2]))
        plain = self.client.embeddings.create(model=EMBED, input=texts[0], dimensions=64, encoding_format="float")
        for a, b in zip(plain.data[0].embedding, vectors[0]):
            self.assertAlmostEqual(a, b, places=5)

    def test_models(self):
        self.assertIn(CHAT, [model.id for model in self.client.models.list()])

    def test_errors_are_typed(self):
        table = [
            ("400", openai.BadRequestError, 400),
            ("401", openai.AuthenticationError, 401),
            ("429", openai.RateLimitError, 429),
            ("500", openai.InternalServerError, 500),
            ("503", openai.InternalServerError, None),
        ]
        for name, kind, status in table:
            # Not every vendor says 401 to a wrong key.
            if name == "401" and "status_401" in LACKS:
                continue
            for stream in [False, True]:
                with self.subTest(name=name, stream=stream), self.assertRaises(kind) as caught:
                    self.client.chat.completions.create(model=fault(name), messages=HELLO, stream=stream)
                if status:
                    self.assertEqual(caught.exception.status_code, status)
                self.assertTrue(caught.exception.message)
                self.assertIsInstance(caught.exception.body, dict)

    def test_retry_after(self):
        with self.assertRaises(openai.RateLimitError) as caught:
            self.client.chat.completions.create(model=fault("429"), messages=HELLO)
        self.assertEqual(caught.exception.response.headers["retry-after"], "1")

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="no-such-model", messages=HELLO)

    def test_a_mistake_is_named(self):
        with self.assertRaises(openai.BadRequestError):
            self.client.chat.completions.create(model=CHAT, messages=HELLO, temperature=7)
        with self.assertRaises(openai.BadRequestError):
            self.client.chat.completions.create(model=CHAT, messages=[{"role": "king", "content": "x"}])

    @unittest.skipIf(DIRECT, "what the adapter does")
    def test_an_organization_that_does_not_pay_is_refused_by_name(self):
        client = self.client.with_options(organization="org-elsewhere")
        with self.assertRaises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=CHAT, messages=HELLO)
        self.assertIn("openai-organization", caught.exception.message)

    def test_timeout(self):
        with within(self, SHORT * 3), self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=SHORT).chat.completions.create(model=fault("slow"), messages=HELLO)

    def test_cancel(self):
        with within(self, LONG):
            stream = self.client.chat.completions.create(model=fault("slow-stream"), messages=HELLO, stream=True)
            next(iter(stream))
            stream.close()
        # The client is as good as before.
        self.client.chat.completions.create(model=CHAT, messages=HELLO)

    def test_an_error_amid_a_stream(self):
        with self.assertRaises(openai.APIError):
            for _ in self.client.chat.completions.create(model=fault("error-mid-stream"), messages=HELLO, stream=True):
                pass

    def test_a_stream_that_breaks_off(self):
        with self.assertRaises(Exception) as caught:
            for _ in self.client.chat.completions.create(model=fault("close-mid-stream"), messages=HELLO, stream=True):
                pass
        self.assertNotIsInstance(caught.exception, AssertionError)

    def test_async_in_parallel_and_cancelled(self):
        async def run():
            async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=LONG) as client:
                ask_for = lambda n: client.chat.completions.create(model=CHAT, messages=ask(f"number {n}"))
                answers = await asyncio.gather(*(ask_for(n) for n in range(8)))
                slow = asyncio.create_task(client.chat.completions.create(model=fault("slow"), messages=HELLO))
                await asyncio.sleep(0.3)
                slow.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await slow
                return answers

        for n, answer in enumerate(asyncio.run(run())):
            self.assertIn(f"number {n}", answer.choices[0].message.content)

    @unittest.skipUnless(DIRECT, "the provider's own answers")
    def test_answers_fit_the_vendors_models(self):
        create = self.client.chat.completions.with_raw_response.create
        for more in [{}, {"tools": TOOLS, "tool_choice": "required"}]:
            ChatCompletion.model_validate_json(create(model=CHAT, messages=HELLO, **more).content, strict=True)
        with self.client.chat.completions.with_streaming_response.create(
            model=CHAT, messages=ask(TWO_CALLS), tools=TOOLS, stream=True
        ) as response:
            lines = [line for line in response.iter_lines() if line]
        self.assertEqual(lines[-1], "data: [DONE]")
        for line in lines[:-1]:
            ChatCompletionChunk.model_validate_json(line.removeprefix("data: "), strict=True)
        from openai.types.responses import Response, ResponseStreamEvent
        from openai.types import Completion, CreateEmbeddingResponse
        from pydantic import TypeAdapter

        raw = self.client.responses.with_raw_response.create(model=CHAT, input="hi", reasoning={"effort": "low"})
        Response.model_validate_json(raw.content)
        event = TypeAdapter(ResponseStreamEvent)
        tools = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}]
        for text in ["hi", "get_weather"]:
            with self.client.responses.with_streaming_response.create(model=CHAT, input=text, tools=tools, stream=True) as r:
                data = [line.removeprefix("data: ") for line in r.iter_lines() if line.startswith("data: ")]
            for line in data:
                event.validate_json(line)
        raw = self.client.completions.with_raw_response.create(model=CHAT, prompt="hi")
        Completion.model_validate_json(raw.content, strict=True)
        raw = self.client.embeddings.with_raw_response.create(model=EMBED, input="hi", encoding_format="float")
        CreateEmbeddingResponse.model_validate_json(raw.content, strict=True)


if __name__ == "__main__":
    unittest.main()
