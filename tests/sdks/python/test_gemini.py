"""Python `google-genai`, unmodified."""

import asyncio
import json
import unittest

from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from common import (
    CHAT, DIRECT, EMBED, KEY, LONG, PIXEL, SHORT, TIME, TWO_CALLS, URL, WEATHER, check_weather, fault, needs, within,
)


class Place(BaseModel):
    name: str
    inhabitants: int
    capital: bool


def declared(name, schema):
    return types.FunctionDeclaration(name=name, description=name, parameters_json_schema=schema)


TOOLS = [types.Tool(function_declarations=[declared("get_weather", WEATHER), declared("get_time", TIME)])]


def options(timeout=LONG):
    return types.HttpOptions(
        base_url=URL, timeout=int(timeout * 1000), retry_options=types.HttpRetryOptions(attempts=1)
    )


class GeminiTest(unittest.TestCase):
    def setUp(self):
        self.client = genai.Client(api_key=KEY, vertexai=False, http_options=options())
        self.addCleanup(self.client.close)

    def generate(self, contents="hello there", model=CHAT, **config):
        return self.client.models.generate_content(
            model=model, contents=contents, config=types.GenerateContentConfig(**config)
        )

    def stream(self, contents="hello there", model=CHAT, **config):
        return self.client.models.generate_content_stream(
            model=model, contents=contents, config=types.GenerateContentConfig(**config)
        )

    def test_chat(self):
        answer = self.generate(system_instruction="Be brief.", max_output_tokens=20, temperature=0.5)
        self.assertTrue(answer.text.startswith("You asked: hello there"))
        self.assertEqual(answer.candidates[0].finish_reason, types.FinishReason.MAX_TOKENS)
        usage = answer.usage_metadata
        self.assertEqual((usage.prompt_token_count, usage.candidates_token_count), (4, 20))
        self.assertEqual(self.generate().candidates[0].finish_reason, types.FinishReason.STOP)

    def test_conversation(self):
        chat = self.client.chats.create(model=CHAT)
        chat.send_message("hello there")
        self.assertTrue(chat.send_message("and again").text.startswith("You asked: and again"))

    def test_stop_sequence(self):
        self.assertEqual(self.generate(stop_sequences=["there"]).text, "You asked: hello ")

    def test_stream(self):
        whole = self.generate()
        chunks = list(self.stream())
        self.assertEqual("".join(c.text or "" for c in chunks), whole.text)
        self.assertGreater(len(chunks), 10)
        self.assertEqual(chunks[-1].candidates[0].finish_reason, types.FinishReason.STOP)
        self.assertEqual(chunks[-1].usage_metadata.total_token_count, whole.usage_metadata.total_token_count)

    @needs("images")
    def test_image(self):
        import base64

        image = types.Part.from_bytes(data=base64.b64decode(PIXEL), mime_type="image/png")
        self.assertIn("[image]", self.generate(["what is this", image]).text)

    def test_tools_in_parallel_and_their_results(self):
        question = types.Content(role="user", parts=[types.Part(text=TWO_CALLS)])
        answer = self.generate([question], tools=TOOLS)
        calls = answer.function_calls
        self.assertEqual([c.name for c in calls], ["get_weather", "get_time"])
        check_weather(self, calls[0].args)
        results = [types.Part.from_function_response(name=c.name, response={"result": "sunny"}) for c in calls]
        # Some ways name calls by ids; the SDK's users hand them back.
        for part, call in zip(results, calls):
            part.function_response.id = call.id
        contents = [question, answer.candidates[0].content, types.Content(role="user", parts=results)]
        self.assertIn("sunny", self.generate(contents, tools=TOOLS).text)

    def test_tools_streamed(self):
        calls = [call for chunk in self.stream(TWO_CALLS, tools=TOOLS) for call in chunk.function_calls or []]
        self.assertEqual([c.name for c in calls], ["get_weather", "get_time"])
        check_weather(self, calls[0].args)

    def test_tool_choice(self):
        def calls(mode, text="hello", **more):
            calling = types.FunctionCallingConfig(mode=mode, **more)
            config = types.ToolConfig(function_calling_config=calling)
            answer = self.generate(text, tools=TOOLS, tool_config=config)
            return [call.name for call in answer.function_calls or []]

        self.assertEqual(calls("AUTO"), [])
        self.assertEqual(calls("NONE", TWO_CALLS), [])
        self.assertEqual(calls("ANY"), ["get_weather"])
        self.assertEqual(calls("ANY", allowed_function_names=["get_time"]), ["get_time"])

    @needs("response_schema")
    def test_automatic_function_calling(self):
        def get_weather(city: str) -> str:
            """Weather of a city."""
            return f"sunny in {city}"

        answer = self.generate("get_weather please", tools=[get_weather])
        self.assertIn("sunny", answer.text)

    @needs("thinking")
    def test_thoughts(self):
        thinking = types.ThinkingConfig(include_thoughts=True, thinking_budget=1024)
        answer = self.generate(thinking_config=thinking)
        parts = answer.candidates[0].content.parts
        self.assertTrue(parts[0].thought and not parts[1].thought)
        self.assertGreater(answer.usage_metadata.thoughts_token_count, 0)

    @needs("schema")
    def test_structured_output(self):
        answer = self.generate("a place", response_mime_type="application/json", response_schema=Place)
        self.assertIsInstance(answer.parsed, Place)
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        answer = self.generate("a number", response_mime_type="application/json", response_json_schema=schema)
        self.assertIsInstance(json.loads(answer.text)["n"], int)

    @needs("embeddings")
    def test_embeddings(self):
        config = types.EmbedContentConfig(output_dimensionality=64)
        answer = self.client.models.embed_content(model=EMBED, contents=["the red house", "a barn"], config=config)
        self.assertEqual([len(e.values) for e in answer.embeddings], [64, 64])

    @needs("count_tokens")
    def test_count_tokens(self):
        self.assertEqual(self.client.models.count_tokens(model=CHAT, contents="hello there").total_tokens, 2)

    @needs("gemini_models")
    def test_models(self):
        self.assertIn(f"models/{CHAT}", [model.name for model in self.client.models.list()])

    def test_errors_are_typed(self):
        table = [
            ("400", errors.ClientError, 400),
            ("429", errors.ClientError, 429),
            ("500", errors.ServerError, 500),
            ("503", errors.ServerError, 503),
        ]
        for name, kind, status in table:
            with self.subTest(name=name), self.assertRaises(kind) as caught:
                self.generate(model=fault(name))
            self.assertEqual(caught.exception.code, status)
            self.assertTrue(caught.exception.status and caught.exception.message)
            with self.subTest(name=name, stream=True), self.assertRaises(kind):
                list(self.stream(model=fault(name)))

    def test_unknown_model(self):
        with self.assertRaises(errors.ClientError) as caught:
            self.generate(model="no-such-model")
        self.assertEqual(caught.exception.code, 404)

    def test_a_mistake_is_named(self):
        with self.assertRaises(errors.ClientError) as caught:
            self.generate(temperature=7)
        self.assertEqual((caught.exception.code, caught.exception.status), (400, "INVALID_ARGUMENT"))

    def test_timeout(self):
        with genai.Client(api_key=KEY, vertexai=False, http_options=options(SHORT)) as client:
            with within(self, SHORT * 3), self.assertRaises(Exception) as caught:
                client.models.generate_content(model=fault("slow"), contents="hi")
        self.assertIn("Timeout", type(caught.exception).__name__)

    def test_cancel(self):
        with within(self, LONG):
            stream = self.stream(model=fault("slow-stream"))
            next(stream)
            stream.close()
        self.generate()

    def test_a_stream_that_breaks_off(self):
        with self.assertRaises(Exception) as caught:
            list(self.stream(model=fault("close-mid-stream")))
        self.assertNotIsInstance(caught.exception, AssertionError)

    def test_async_in_parallel(self):
        async def run():
            async with genai.Client(api_key=KEY, vertexai=False, http_options=options()).aio as client:
                ask = lambda n: client.models.generate_content(model=CHAT, contents=f"number {n}")
                return await asyncio.gather(*(ask(n) for n in range(8)))

        for n, answer in enumerate(asyncio.run(run())):
            self.assertIn(f"number {n}", answer.text)

    def array(self, model):
        """A stream as Google's REST API gives it without `alt=sse`."""
        import httpx2

        body = {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}]}
        with httpx2.Client(headers={"x-goog-api-key": KEY}, timeout=LONG) as client:
            return client.post(f"{URL}/v1beta/models/{model}:streamGenerateContent", json=body)

    def test_a_stream_as_one_array(self):
        answer = self.array(CHAT)
        self.assertEqual(answer.headers["content-type"].split(";")[0], "application/json")
        chunks = [types.GenerateContentResponse.model_validate(item) for item in answer.json()]
        self.assertGreater(len(chunks), 10)
        self.assertEqual("".join(c.text or "" for c in chunks), self.generate().text)
        self.assertEqual(chunks[-1].candidates[0].finish_reason, types.FinishReason.STOP)

    @unittest.skipIf(DIRECT, "what the adapter does")
    def test_an_array_that_breaks_says_so(self):
        for name, status in [("error-mid-stream", 200), ("close-mid-stream", 200), ("429", 429)]:
            with self.subTest(name=name):
                answer = self.array(fault(name))
                self.assertEqual(answer.status_code, status)
                self.assertTrue(answer.json()[-1]["error"]["status"])

    @unittest.skipUnless(DIRECT, "the provider's own answers")
    def test_answers_fit_the_vendors_models(self):
        # The vendor's models are open: what counts is that no field is one they do not know.
        import httpx2

        path = f"{URL}/v1beta/models/{CHAT}"
        body = {"contents": [{"role": "user", "parts": [{"text": "hi get_time"}]}],
                "generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
        with httpx2.Client(headers={"x-goog-api-key": KEY}) as client:
            whole = client.post(f"{path}:generateContent", json=body).json()
            stream = client.post(f"{path}:streamGenerateContent", json=body).json()
        for answer in [whole, *stream]:
            parsed = types.GenerateContentResponse.model_validate(answer)
            said = parsed.model_dump(mode="json", by_alias=True, exclude_none=True)
            self.assertEqual(set(said), set(answer))
            self.assertEqual(set(said["usageMetadata"]), set(answer["usageMetadata"]))


if __name__ == "__main__":
    unittest.main()
