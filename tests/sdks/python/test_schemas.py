"""That `schemas.py` bites: good requests and answers fit, and each with one mistake does not, where the mistake is."""

import copy
import json
import pathlib
import tempfile
import unittest

import schemas
from schemas import Misfit, Report, check_answer, check_frames, check_golden, check_request, check_stream, operation

GOLDEN = pathlib.Path(__file__).parents[3] / "client/dialects/golden"


def golden(name):
    """Path, query and body of a request that a translation makes."""
    head, body = (GOLDEN / name).read_text().split("\n\n", 1)
    path, _, query = head.split("\n")[0].removeprefix("POST ").partition("?")
    return path, query, json.loads(body)


def edited(body, *steps):
    """A copy with a value put somewhere: keys and indices, then the value; `None` takes the last one away."""
    *way, last, value = steps
    new = copy.deepcopy(body)
    at = new
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return new


class SchemasTest(unittest.TestCase):
    def refused(self, check, *args):
        with self.assertRaises(Misfit) as caught:
            check(*args)
        return str(caught.exception)

    def test_requests_with_one_mistake(self):
        table = [
            ("openai", "requests/tools/anthropic-to-openai.txt", [
                (("unknown", 1), "unknown: "),
                (("messages", None), "messages: "),
                (("messages", 0, "role", "king"), "messages[0]"),
                (("messages", 1, "content", 0, "typo", 1), "messages[1].content[0].typo: "),
                (("tools", 0, "function", "name", None), "tools[0].function.name: "),
                (("max_completion_tokens", "256"), "max_completion_tokens: "),
            ]),
            ("anthropic", "requests/tools/openai-to-anthropic.txt", [
                (("max_tokens", None), "max_tokens: "),
                (("messages", 0, "content", 0, "type", "texts"), "messages[0].content[0]"),
                (("messages", 0, "content", 1, "source", "media_type", "image/bmp"), "messages[0].content[1].source"),
                (("tools", 0, "input_schema", None), "tools[0].input_schema: "),
                (("temperature", "hot"), "temperature: "),
                (("stream", "yes"), "stream: "),
            ]),
            ("gemini", "requests/tools/openai-to-gemini.txt", [
                (("contents", None), "contents: "),
                (("contents", 0, "parts", 0, "texts", "x"), "contents[0].parts[0].texts: "),
                (("generationConfig", "max_tokens", 1), "generationConfig.max_tokens: "),
                (("generationConfig", "maxOutputTokens", "256"), "generationConfig.maxOutputTokens: "),
                (("toolConfig", "functionCallingConfig", "mode", "SOMETIMES"), "toolConfig.functionCallingConfig.mode: "),
            ]),
            ("bedrock", "requests/tools/openai-to-bedrock.txt", [
                (("modelId", "b"), "modelId: "),
                (("messages", 0, "role", "king"), "messages[0].role: "),
                (("messages", 0, "content", 0, "image", {}), "messages[0].content[0]"),
                (("inferenceConfig", "maxTokens", 0), "inferenceConfig.maxTokens: "),
                (("toolConfig", "tools", []), "toolConfig.tools: "),
                (("toolConfig", "tools", 0, "toolSpec", "name", None), "toolConfig.tools[0].toolSpec.name: "),
            ]),
        ]
        for dialect, name, mistakes in table:
            path, query, body = golden(name)
            self.assertEqual(operation(path, query)[0], dialect)
            check_request(path, query, schemas.OLDER, json.dumps(body))
            for steps, where in mistakes:
                with self.subTest(name=name, steps=steps):
                    wrong = json.dumps(edited(body, *steps))
                    said = self.refused(check_request, path, query, schemas.OLDER, wrong)
                    self.assertTrue(said.startswith(where), said)

    def test_sampling_is_of_the_older_version_only(self):
        path, query, body = golden("requests/tools/openai-to-anthropic.txt")
        self.assertIn("temperature", body)
        said = self.refused(check_request, path, query, "2026-10-21", json.dumps(body))
        self.assertTrue(said.startswith("temperature: "), said)

    def test_answers_with_one_mistake(self):
        table = [
            ("answers/tools/anthropic-to-openai.txt", "/v1/chat/completions", [
                (("choices", 0, "finish_reason", "end_turn"), "choices[0].finish_reason: "),
                (("choices", 0, "message", "text", "x"), "choices[0].message.text: "),
                (("usage", "prompt_tokens", None), "usage.prompt_tokens: "),
            ]),
            ("answers/tools/openai-to-anthropic.txt", "/v1/messages", [
                (("stop_reason", "stop"), "stop_reason: "),
                (("content", 0, "kind", "x"), "content[0].kind: "),
                (("usage", None), "usage: "),
            ]),
            ("answers/tools/openai-to-gemini.txt", "/v1beta/models/g:generateContent", [
                (("candidates", 0, "finishReason", "stop"), "candidates[0].finishReason: "),
                (("usageMetadata", "promptTokens", 1), "usageMetadata.promptTokens: "),
            ]),
            ("answers/tools/openai-to-bedrock.txt", "/model/b/converse", [
                (("metrics", None), "metrics: "),
                (("stopReason", "stop"), "stopReason: "),
                (("output", "message", "content", 0, "texts", "x"), "output.message.content[0]"),
            ]),
        ]
        for name, path, mistakes in table:
            body = json.loads((GOLDEN / name).read_text().split("\n\n", 1)[1])
            check_answer(operation(path), 200, json.dumps(body))
            for steps, where in mistakes:
                with self.subTest(name=name, steps=steps):
                    said = self.refused(check_answer, operation(path), 200, json.dumps(edited(body, *steps)))
                    self.assertTrue(said.startswith(where), said)

    def test_streams_and_errors_with_one_mistake(self):
        for name, path, right, wrong in [
            ("openai-to-anthropic", "/v1/messages", '"type":"text_delta"', '"type":"text_deltas"'),
            ("anthropic-to-openai", "/v1/chat/completions", '"object":"chat.completion.chunk"', '"object":"chunk"'),
            ("openai-to-gemini", "/v1beta/models/g:streamGenerateContent", '"parts":', '"part":'),
        ]:
            text = (GOLDEN / f"streams/tools/{name}.txt").read_text().split("# Outcome")[0]
            check_stream(operation(path), text)
            self.assertIn(right, text)
            self.refused(check_stream, operation(path), text.replace(right, wrong, 1))
            self.refused(check_stream, operation(path), "")
        entry = operation("/model/b/converse-stream")
        check_frames(entry, ['messageStop {"stopReason":"end_turn"}'])
        self.refused(check_frames, entry, ['messageStop {"stopReason":"stop"}'])
        self.refused(check_frames, entry, ['messageEnd {"stopReason":"end_turn"}'])
        for path, error in [
            ("/v1/chat/completions", {"error": {"message": "m", "type": "t", "param": None, "code": None}}),
            ("/v1/messages", {"type": "error", "error": {"type": "api_error", "message": "m"}}),
            ("/v1beta/models/g:generateContent", {"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}),
            ("/model/b/converse", {"message": "m"}),
        ]:
            inner = error.get("error", error)
            check_answer(operation(path), 400, json.dumps(error))
            inner["message"] = 7
            self.refused(check_answer, operation(path), 400, json.dumps(error))

    def test_a_wrong_golden_file_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            for case in ["requests/tools", "answers/tools", "streams/tools", "errors", "responses"]:
                for path in (GOLDEN / case).iterdir():
                    new = pathlib.Path(folder) / path.relative_to(GOLDEN)
                    new.parent.mkdir(parents=True, exist_ok=True)
                    new.write_text(path.read_text())
            report = Report()
            check_golden(folder, report)
            self.assertEqual(report.misfits, [])
            wrong = pathlib.Path(folder) / "requests/tools/gemini-to-openai.txt"
            wrong.write_text(wrong.read_text().replace('"role": "user"', '"role": "human"', 1))
            report = Report()
            check_golden(folder, report)
            self.assertEqual(len(report.misfits), 1)
            self.assertTrue(report.misfits[0].startswith("requests/tools/gemini-to-openai.txt: messages["), report.misfits)


if __name__ == "__main__":
    unittest.main()
