"""Holds requests and answers against the vendors' own published types, which their SDKs bring along.

    python -B schemas.py golden FOLDER        the dialects' golden files: what translations make
    python -B schemas.py exchanges FILE       what reached a mock, and what it answered: lines of JSON

OpenAI and Anthropic: the SDKs' types of parameters (`TypedDict`) and answers (pydantic). Google: the SDK's models of the parts of
a request, put together as its converters do. AWS: the service description in `botocore`. Nothing of theirs is copied here.

Stricter than the SDKs: a field that a type does not know is a misfit, and so is a number in quotes. `test_schemas.py` shows that
each kind of mistake is found.
"""

import base64
import datetime
import enum
import functools
import gzip
import inspect
import json
import pathlib
import sys
import types as py
import typing
from typing import Any, Dict, List, Optional, Union

import anthropic.types as ant
import anthropic.types.beta as ant_beta
import botocore
import openai.types as oai
import pydantic
import typing_extensions
from anthropic.types.beta import message_count_tokens_params as beta_count, message_create_params as beta_messages
from botocore.eventstream import EventStreamBuffer
from google.genai import types as goog
from openai.types import chat, responses
from openai.types.shared import ErrorObject
from typing_extensions import NotRequired, Required, TypedDict


#: Fields beside the vendors' types, by the name of the type. Nothing else may be there.
EXTENSIONS = {
    # How servers that speak OpenAI's dialect show thinking, and how gateways hand over what must come back signed: DeepSeek's and
    # vLLM's name, and LiteLLM's.
    "ChatCompletionMessage": {"reasoning_content": Any, "thinking_blocks": Any},
    "ChoiceDelta": {"reasoning_content": Any, "thinking_blocks": Any},
    # SDKs hand back the message that they were given.
    "ChatCompletionAssistantMessageParam": {"annotations": Any, "reasoning_content": Any, "thinking_blocks": Any},
    # The reference of the REST API has it.
    "CountTokensResponse": {"promptTokensDetails": Any},
    # Asks for thinking in Anthropic's words, as LiteLLM has it.
    "CompletionCreateParamsNonStreaming": {"thinking": Any},
    "CompletionCreateParamsStreaming": {"thinking": Any},
    # DeepSeek's usage, in golden answers of a provider.
    "CompletionUsage": {"prompt_cache_hit_tokens": int, "prompt_cache_miss_tokens": int},
    # Padding, which hides the lengths of pieces: real answers have it, the description has not.
    **{name: {"p": str} for name in ("MessageStartEvent", "ContentBlockStartEvent", "ContentBlockDeltaEvent",
                                     "ContentBlockStopEvent", "MessageStopEvent", "ConverseStreamMetadataEvent")},
}
#: Fields that are more than their types say.
OVERRIDES = {
    # With `encoding_format` base64, which the SDK asks for and undoes.
    "Embedding": {"embedding": Union[List[float], bytes]},
    # In a stream there is none yet.
    "CompletionChoice": {"finish_reason": Optional[typing.Literal["stop", "length", "content_filter"]]},
}
#: Version 2026-10-21 of Anthropic's API, which today's types are of, has these no more; 2023-06-01 goes on having them.
SAMPLING = ("temperature", "top_p", "top_k")
OLDER = "2023-06-01"


class Misfit(Exception):
    """What does not fit, and where."""

    def __init__(self, path, why):
        super().__init__(f"{path or '(all of it)'}: {why}")
        self.depth = path.count(".") + path.count("[")


def fits(value, kind, path=""):
    """Raises `Misfit` unless a JSON value is of a type."""
    if kind in (Any, object, inspect.Parameter.empty) or isinstance(kind, typing.TypeVar):
        return
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Annotated, Required, NotRequired, typing_extensions.ReadOnly):
        fits(value, args[0], path)
    elif isinstance(kind, (typing_extensions.TypeAliasType, getattr(typing, "TypeAliasType", ()))):
        fits(value, kind.__value__, path)
    elif origin in (typing.Literal, typing_extensions.Literal):
        if not any(type(value) is type(one) and value == one for one in args):
            raise Misfit(path, f"{value!r} is none of {list(args)!r}")
    elif origin in (Union, py.UnionType):
        fits_one(value, args, path)
    elif kind in (None, type(None)):
        expect(value is None, path, "not null")
    elif kind is bool:
        expect(isinstance(value, bool), path, "not true or false")
    elif kind is int:
        expect(isinstance(value, int) and not isinstance(value, bool), path, "not a whole number")
    elif kind is float:
        expect(isinstance(value, (int, float)) and not isinstance(value, bool), path, "not a number")
    elif kind in (str, bytes, datetime.datetime, datetime.date):
        expect(isinstance(value, str), path, "not a string")
        if kind is bytes:
            expect(is_base64(value), path, "not base64")
    elif inspect.isclass(kind) and issubclass(kind, enum.Enum):
        expect(value in [one.value for one in kind], path, f"{value!r} is no {kind.__name__}")
    elif isinstance(kind, Shape):
        kind.fits(value, path)
    elif typing_extensions.is_typeddict(kind):
        fits_fields(value, typed_dict(kind), path, kind.__name__)
    elif inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel):
        fits_fields(value, model(kind), path, kind.__name__)
    elif kind in (dict, Dict) or (inspect.isclass(origin) and issubclass(origin, (dict, typing.Mapping))):
        expect(isinstance(value, dict), path, "not an object")
        for key, item in value.items():
            fits(item, args[1] if args else Any, f"{path}.{key}")
    elif is_list(kind, origin):
        expect(isinstance(value, list), path, "not an array")
        for at, item in enumerate(value):
            fits(item, args[0] if args else Any, f"{path}[{at}]")
    elif inspect.isclass(origin) and origin is type or not inspect.isclass(kind) or kind.__module__ == "PIL.Image":
        raise Misfit(path, f"{kind} cannot be said in JSON")
    else:
        raise Misfit(path, f"a value of {kind} cannot come by JSON")


def expect(good, path, why):
    if not good:
        raise Misfit(path, why)


def is_base64(text):
    try:
        # Google's bytes come in either alphabet.
        base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        return True
    except ValueError:
        return False


def is_list(kind, origin):
    if kind in (list, List):
        return True
    if origin is None:
        return False
    name = getattr(origin, "__name__", "")
    return name in ("list", "Iterable", "Sequence", "SequenceNotStr", "tuple", "set")


def fits_one(value, kinds, path):
    """One of several. Where a field tells which is meant, that one's misfit is told; else that of whichever fits furthest."""
    misfits = []
    for kind in kinds:
        try:
            return fits(value, kind, path)
        except Misfit as misfit:
            misfits.append((told_by(value, kind), misfit.depth, misfit))
    raise max(misfits, key=lambda one: one[:2])[2]


def told_by(value, kind):
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    fields = None
    if typing_extensions.is_typeddict(kind):
        fields = typed_dict(kind)
    elif inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel):
        fields = model(kind)
    if fields is None or not isinstance(value, dict):
        return False
    for name in ("type", "role"):
        if name in fields and name in value:
            literals = typing.get_args(strip(fields[name][0]))
            if value[name] in literals:
                return True
    return False


def strip(kind):
    while typing.get_origin(kind) in (typing.Annotated, Required, NotRequired):
        kind = typing.get_args(kind)[0]
    return kind


def fits_fields(value, fields, path, name):
    expect(isinstance(value, dict), path, f"not an object ({name})")
    more = EXTENSIONS.get(name, {})
    for key in value:
        expect(key in fields or key in more, f"{path}.{key}".lstrip("."), f"{name} has no such field")
    for key, (kind, required) in fields.items():
        if key in value:
            fits(value[key], kind, f"{path}.{key}".lstrip("."))
        else:
            expect(not required, f"{path}.{key}".lstrip("."), f"{name} must have it")


@functools.cache
def typed_dict(kind):
    """The fields that go into a body: name -> type, required."""
    out = {}
    for key, (hint, required) in all_fields(kind).items():
        name = alias_of(hint) or key
        # these are headers, which the SDKs take as parameters too
        if "-" not in name:
            out[name] = (hint, required)
    return out


@functools.cache
def all_fields(kind):
    out = {}
    for base in getattr(kind, "__orig_bases__", ()):
        if typing_extensions.is_typeddict(base):
            out.update(all_fields(base))
    for key, hint in typing_extensions.get_type_hints(kind, include_extras=True).items():
        known = out.get(key)
        required = known[1] if known else kind.__total__
        inner = hint
        while typing.get_origin(inner) in (typing.Annotated, Required, NotRequired):
            if typing.get_origin(inner) is not typing.Annotated:
                required = typing.get_origin(inner) is Required
            inner = typing.get_args(inner)[0]
        out[key] = (hint, required)
    return out


def alias_of(hint):
    while typing.get_origin(hint) in (typing.Annotated, Required, NotRequired):
        if typing.get_origin(hint) is typing.Annotated:
            for meta in typing.get_args(hint)[1:]:
                if getattr(meta, "alias", None):
                    return meta.alias
        hint = typing.get_args(hint)[0]
    return None


@functools.cache
def model(kind):
    out = {}
    for name, field in kind.model_fields.items():
        kind_and_need = OVERRIDES.get(kind.__name__, {}).get(name, field.annotation), field.is_required()
        out[field.alias or name] = kind_and_need
        # Google's JSON may be written in either way, and its SDK writes both.
        if kind.model_config.get("populate_by_name"):
            expect(not field.is_required(), name, "a field that is needed, and has two names")
            out[name] = kind_and_need
    return out


# Google: a request is put together from these, as `google.genai`'s converters do.
class GenerateContentRequest(TypedDict, total=False):
    contents: Required[List[goog.Content]]
    systemInstruction: goog.Content
    tools: List[goog.Tool]
    toolConfig: goog.ToolConfig
    safetySettings: List[goog.SafetySetting]
    generationConfig: goog.GenerationConfig
    cachedContent: str
    serviceTier: str


class CountTokensRequest(TypedDict, total=False):
    contents: List[goog.Content]
    generateContentRequest: GenerateContentRequest


class EmbedContentRequest(TypedDict, total=False):
    model: str
    content: Required[goog.Content]
    taskType: str
    title: str
    outputDimensionality: int


class BatchEmbedContentsRequest(TypedDict):
    requests: List[EmbedContentRequest]


class BatchEmbedContentsResponse(TypedDict, total=False):
    embeddings: Required[List[goog.ContentEmbedding]]
    usageMetadata: Dict[str, Any]


class EmbedContentResponse(TypedDict, total=False):
    embedding: Required[goog.ContentEmbedding]
    usageMetadata: Dict[str, Any]


class GoogleStatus(TypedDict, total=False):
    code: Required[int]
    message: Required[str]
    status: Required[str]
    details: List[Dict[str, Any]]


class GoogleError(TypedDict):
    error: GoogleStatus


class OpenAiError(TypedDict):
    error: ErrorObject


class OpenAiEventError(TypedDict):
    error: ErrorObject


class AwsError(TypedDict):
    message: str


class Ping(TypedDict):
    type: typing.Literal["ping"]


class Shape:
    """A shape of a service description of AWS."""

    def __init__(self, name):
        self.name = name

    @staticmethod
    @functools.cache
    def service():
        folder = pathlib.Path(botocore.__file__).parent / "data/bedrock-runtime"
        newest = max(folder.iterdir())
        with gzip.open(newest / "service-2.json.gz") as file:
            return json.load(file)["shapes"]

    def fits(self, value, path):
        shape = self.service()[self.name]
        kind = shape["type"]
        if shape.get("document"):
            return
        if kind == "structure":
            # what stands in the path or in headers is no part of the body
            members = {name: m for name, m in shape["members"].items() if "location" not in m}
            fields = {m.get("locationName", name): (Shape(m["shape"]), name in shape.get("required", ()))
                      for name, m in members.items()}
            fits_fields(value, fields, path, self.name)
            if shape.get("union"):
                expect(len(value) == 1, path, f"{self.name} must have one field, not {sorted(value)}")
        elif kind == "list":
            expect(isinstance(value, list), path, "not an array")
            expect(shape.get("min", 0) <= len(value), path, "too few items")
            for at, item in enumerate(value):
                Shape(shape["member"]["shape"]).fits(item, f"{path}[{at}]")
        elif kind == "map":
            expect(isinstance(value, dict), path, "not an object")
            for key, item in value.items():
                Shape(shape["value"]["shape"]).fits(item, f"{path}.{key}")
        elif kind == "string":
            expect(isinstance(value, str), path, "not a string")
            expect("enum" not in shape or value in shape["enum"], path, f"{value!r} is none of {shape.get('enum')}")
            expect(shape.get("min", 0) <= len(value) <= shape.get("max", len(value)), path, "too short or too long")
        elif kind == "blob":
            fits(value, bytes, path)
        elif kind == "boolean":
            fits(value, bool, path)
        elif kind in ("integer", "long"):
            fits(value, int, path)
            expect(shape.get("min", value) <= value <= shape.get("max", value), path, "out of range")
        elif kind in ("float", "double"):
            fits(value, float, path)
            expect(shape.get("min", value) <= value <= shape.get("max", value), path, "out of range")
        elif kind == "timestamp":
            fits(value, float, path)
        else:
            raise Misfit(path, f"{kind}: no such kind of shape is known")


#: What ends a path -> dialect, request, whole answer, one event of a stream.
OPERATIONS = {
    "/chat/completions": ("openai", chat.completion_create_params.CompletionCreateParams, chat.ChatCompletion,
                          Union[chat.ChatCompletionChunk, OpenAiEventError]),
    "/responses": ("openai", responses.response_create_params.ResponseCreateParams, responses.Response,
                   responses.ResponseStreamEvent),
    "/completions": ("openai", oai.completion_create_params.CompletionCreateParams, oai.Completion,
                     Union[oai.Completion, OpenAiEventError]),
    "/embeddings": ("openai", oai.embedding_create_params.EmbeddingCreateParams, oai.CreateEmbeddingResponse, None),
    "/messages": ("anthropic", ant.message_create_params.MessageCreateParams, ant.Message,
                  Union[ant.RawMessageStreamEvent, ant.ErrorResponse, Ping]),
    "/messages?beta=true": ("anthropic", beta_messages.MessageCreateParams, ant_beta.BetaMessage,
                            Union[ant_beta.BetaRawMessageStreamEvent, ant.ErrorResponse, Ping]),
    "/messages/count_tokens": ("anthropic", ant.message_count_tokens_params.MessageCountTokensParams,
                               ant.MessageTokensCount, None),
    "/messages/count_tokens?beta=true": ("anthropic", beta_count.MessageCountTokensParams,
                                         ant_beta.BetaMessageTokensCount, None),
    ":generateContent": ("gemini", GenerateContentRequest, goog.GenerateContentResponse, None),
    ":streamGenerateContent": ("gemini", GenerateContentRequest,
                               List[Union[goog.GenerateContentResponse, GoogleError]],
                               Union[goog.GenerateContentResponse, GoogleError]),
    ":countTokens": ("gemini", CountTokensRequest, goog.CountTokensResponse, None),
    ":embedContent": ("gemini", EmbedContentRequest, EmbedContentResponse, None),
    ":batchEmbedContents": ("gemini", BatchEmbedContentsRequest, BatchEmbedContentsResponse, None),
    "/converse": ("bedrock", Shape("ConverseRequest"), Shape("ConverseResponse"), None),
    "/converse-stream": ("bedrock", Shape("ConverseStreamRequest"), None, Shape("ConverseStreamOutput")),
}
ERRORS = {"openai": OpenAiError, "anthropic": ant.ErrorResponse, "gemini": GoogleError, "bedrock": AwsError}
#: A caller's own operation, by its dialect.
CONVERSATION = {"openai": "/chat/completions", "anthropic": "/messages", "gemini": ":generateContent", "bedrock": "/converse"}
STREAMED = {**CONVERSATION, "gemini": ":streamGenerateContent", "bedrock": "/converse-stream"}


def operation(path, query=""):
    """The entry of `OPERATIONS` for a path."""
    found = [end for end in OPERATIONS if path.endswith(end.split("?")[0])]
    if not found:
        raise Misfit("", f"no operation has the path {path}")
    longest = max(found, key=lambda end: len(end.split("?")[0]))
    longest = longest.split("?")[0]
    return OPERATIONS.get(f"{longest}?{query}", OPERATIONS[longest])


def check_request(path, query, version, text):
    entry, body = operation(path, query), json.loads(text)
    if entry[0] == "anthropic" and version == OLDER:
        for name in SAMPLING:
            fits(body.pop(name, 0), float, name)
    fits(body, entry[1])


def events(text):
    """The data of the events of a stream."""
    for event in text.replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[5:].lstrip(" ") for line in event.split("\n") if line.startswith("data:"))
        if data and data != "[DONE]":
            yield data


def check_stream(entry, text):
    seen = 0
    for data in events(text):
        fits(json.loads(data), entry[3])
        seen += 1
    expect(seen > 0, "", "no event")


def check_frames(entry, frames):
    """Frames of AWS as lines: a kind, and its payload."""
    for line in frames:
        kind, payload = line.split(" ", 1)
        fits({kind.lstrip("!"): json.loads(payload)}, entry[3])


def check_answer(entry, status, text):
    if status >= 400:
        return fits(json.loads(text), ERRORS[entry[0]])
    if entry[2] is None:
        raise Misfit("", "this operation has no whole answer")
    fits(json.loads(text), entry[2])


class Report:
    """Counts, and keeps what does not fit."""

    def __init__(self):
        self.checked, self.misfits = 0, []

    def check(self, name, check, *args):
        self.checked += 1
        try:
            check(*args)
        except (Misfit, ValueError) as error:
            self.misfits.append(f"{name}: {error}")

    def tell(self):
        for misfit in sorted(set(self.misfits)):
            print(misfit, file=sys.stderr)
        print(f"{self.checked} checked, {len(self.misfits)} misfits")
        return 1 if self.misfits or not self.checked else 0


def check_golden(folder, report):
    """Golden files: sources as the vendors document them, and what translations make of them."""
    folder = pathlib.Path(folder)
    for path in sorted(folder.glob("requests/*/*")):
        name, text = str(path.relative_to(folder)), path.read_text()
        stream = path.parent.name == "tools"
        if path.suffix == ".json":
            report.check(name, check_request, (STREAMED if stream else CONVERSATION)[path.stem], "", OLDER, text)
        elif not text.startswith("refused: "):
            head, body = text.split("\n\n", 1)
            where = head.split("\n")[0].removeprefix("POST ").partition("?")
            report.check(name, check_request, where[0], where[2], OLDER, body)
    for path in sorted(folder.glob("answers/*/*")):
        name, text = str(path.relative_to(folder)), path.read_text()
        dialect = path.stem.split("-to-")[-1]
        body = text if path.suffix == ".json" else text.split("\n\n", 1)[1]
        report.check(name, check_answer, OPERATIONS[CONVERSATION[dialect]], 200, body)
    for path in sorted(folder.glob("streams/*/*")):
        name, dialect = str(path.relative_to(folder)), path.stem.split("-to-")[-1]
        lines = [line for line in path.read_text().split("\n") if not line.startswith("# Outcome")]
        entry = OPERATIONS[STREAMED[dialect]]
        if dialect == "bedrock":
            report.check(name, check_frames, entry, [line for line in lines if line])
        else:
            report.check(name, check_stream, entry, "\n".join(lines))
    for path in sorted(folder.glob("errors/*")):
        head, body = path.read_text().split("\n\n", 1)
        dialect = path.stem.split("-to-")[-1]
        entry = OPERATIONS[CONVERSATION[dialect]]
        report.check(str(path.relative_to(folder)), check_answer, entry, int(head.split("\n")[0]), body)
    for path in sorted(folder.glob("responses/*")):
        name, text = str(path.relative_to(folder)), path.read_text()
        entry = OPERATIONS["/responses"]
        if path.stem == "request":
            report.check(name, fits, json.loads(text), entry[1])
        elif path.stem.startswith("to-"):
            head, body = text.split("\n\n", 1)
            where = head.split("\n")[0].removeprefix("POST ").partition("?")
            report.check(name, check_request, where[0], where[2], OLDER, body)
        elif "-stream-" in path.stem:
            report.check(name, check_stream, entry, text)
        else:
            report.check(name, check_answer, entry, 200, text)


def frames_of(raw):
    """AWS frames as lines."""
    buffer = EventStreamBuffer()
    buffer.add_data(raw)
    for event in buffer:
        headers = event.headers
        kind = headers.get(":event-type") or headers.get(":exception-type")
        yield f"{kind} {event.payload.decode()}"


def check_exchanges(file, report):
    """What reached a mock: every request that it took, every answer that it gave."""
    for number, line in enumerate(pathlib.Path(file).read_text().splitlines(), 1):
        exchange = json.loads(line)
        path, query = exchange["path"], exchange["query"]
        if not exchange["request"]:
            continue
        name = f"line {number}, {path}"
        try:
            entry = operation(path, query)
        except Misfit as misfit:
            report.misfits.append(f"{name}: {misfit}")
            continue
        # What the mock refuses, a test has made wrong on purpose.
        if exchange["status"] < 400:
            version = exchange["anthropic_version"]
            report.check(f"{name}, request", check_request, path, query, version, exchange["request"])
        raw = base64.b64decode(exchange["answer"])
        kind = exchange["content_type"]
        if "eventstream" in kind:
            report.check(f"{name}, answer", lambda: check_frames(entry, frames_of(raw)))
        elif "event-stream" in kind:
            report.check(f"{name}, answer", check_stream, entry, raw.decode())
        elif "json" in kind:
            report.check(f"{name}, answer", check_answer, entry, exchange["status"], raw.decode())


def main(what, where):
    report = Report()
    {"golden": check_golden, "exchanges": check_exchanges}[what](where, report)
    return report.tell()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
