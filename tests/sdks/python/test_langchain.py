"""Python `langchain-openai`, unmodified."""

import asyncio
import unittest

import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from common import CHAT, EMBED, KEY, LONG, SHORT, TWO_CALLS, URL, check_weather, fault, needs, within


class get_weather(BaseModel):
    """Weather of a city."""

    city: str
    days: int = Field(ge=1, le=7)


class get_time(BaseModel):
    """Time in a zone."""

    zone: str


class Place(BaseModel):
    """A place."""

    name: str
    inhabitants: int


def chat(model=CHAT, **more):
    arguments = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "timeout": LONG} | more
    return ChatOpenAI(model=model, **arguments)


class LangChainTest(unittest.TestCase):
    def test_chat(self):
        answer = chat(max_tokens=20).invoke([SystemMessage("Be brief."), HumanMessage("hello there")])
        self.assertTrue(answer.content.startswith("You asked: hello there"))
        self.assertEqual(answer.usage_metadata["total_tokens"], 24)
        self.assertEqual(answer.response_metadata["finish_reason"], "length")

    def test_stream(self):
        chunks = list(chat(stream_usage=True).stream("hello there"))
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        self.assertEqual(total.content, chat().invoke("hello there").content)
        self.assertGreater(total.usage_metadata["output_tokens"], 0)

    def test_tools_and_their_results(self):
        model = chat().bind_tools([get_weather, get_time])
        messages = [HumanMessage(TWO_CALLS)]
        answer = model.invoke(messages)
        self.assertEqual([call["name"] for call in answer.tool_calls], ["get_weather", "get_time"])
        check_weather(self, answer.tool_calls[0]["args"])
        messages += [answer, *(ToolMessage("sunny", tool_call_id=call["id"]) for call in answer.tool_calls)]
        self.assertIn("sunny", model.invoke(messages).content)

    def test_tools_streamed(self):
        chunks = list(chat().bind_tools([get_weather, get_time]).stream(TWO_CALLS))
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        self.assertEqual([call["name"] for call in total.tool_calls], ["get_weather", "get_time"])

    @needs("schema")
    def test_structured_output(self):
        model = chat().with_structured_output(Place, method="json_schema")
        self.assertIsInstance(model.invoke("a place"), Place)

    # It forbids parallel calls.
    @needs("one_call")
    def test_structured_output_by_calling(self):
        model = chat().with_structured_output(Place, method="function_calling")
        self.assertIsInstance(model.invoke("a place"), Place)

    @needs("responses")
    def test_responses(self):
        answer = chat(use_responses_api=True).invoke("hello there")
        self.assertTrue(answer.text.startswith("You asked: hello there"))

    @needs("embeddings")
    def test_embeddings(self):
        # The check of lengths would fetch a tokeniser's tables from elsewhere.
        model = OpenAIEmbeddings(
            model=EMBED, base_url=f"{URL}/v1", api_key=KEY, dimensions=64, check_embedding_ctx_length=False
        )
        vectors = model.embed_documents(["the red house", "a barn"])
        self.assertEqual([len(v) for v in vectors], [64, 64])

    def test_errors_are_typed(self):
        for name, kind in [("400", openai.BadRequestError), ("429", openai.RateLimitError), ("500", openai.InternalServerError)]:
            with self.subTest(name=name), self.assertRaises(kind):
                chat(fault(name)).invoke("hi")

    def test_timeout(self):
        with within(self, SHORT * 3), self.assertRaises(openai.APITimeoutError):
            chat(fault("slow"), timeout=SHORT).invoke("hi")

    def test_cancel(self):
        async def run():
            task = asyncio.create_task(chat(fault("slow")).ainvoke("hi"))
            await asyncio.sleep(0.3)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        asyncio.run(run())


if __name__ == "__main__":
    unittest.main()
