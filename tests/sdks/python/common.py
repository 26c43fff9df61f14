"""What the suites share: where to ask, and which models.

SDK_URL        root of the server, without /v1
SDK_PREFIX     what stands before the names of the provider's models: the adapter's aliases that lead to another dialect
SDK_LACKS      features that this way to the provider lacks, comma separated; tests of them are skipped
SDK_MODE       "direct" when the server is the provider itself: then answers are held against the vendors' models
SDK_KEY        API key to send; default: any word
"""

import contextlib
import os
import time
import unittest

URL = os.environ["SDK_URL"].rstrip("/")
PREFIX = os.environ.get("SDK_PREFIX", "")
LACKS = {word for word in os.environ.get("SDK_LACKS", "").split(",") if word}
DIRECT = os.environ.get("SDK_MODE") == "direct"
KEY = os.environ.get("SDK_KEY", "any-word-will-do")

CHAT = PREFIX + "demo-chat"
EMBED = PREFIX + "demo-embed"
#: A timeout well below the provider's slow answer (--slow-ms), well above what a request takes on a busy machine.
SHORT = 2.0
#: Longer than any answer takes.
LONG = 60.0

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TIME = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TWO_CALLS = "Please use get_weather and get_time."


def fault(name):
    """The model that misbehaves in this way."""
    return f"{PREFIX}fault-{name}"


def needs(*features):
    """Skips a test where a feature is lacking on this way."""
    missing = LACKS.intersection(features)
    return unittest.skipIf(missing, "not on this way: " + ", ".join(sorted(missing)))


@contextlib.contextmanager
def within(test, seconds):
    """Fails when the block takes longer."""
    started = time.monotonic()
    yield
    test.assertLess(time.monotonic() - started, seconds)


def check_weather(test, arguments):
    """Arguments as the schema wants them."""
    test.assertEqual(set(arguments), {"city", "days"})
    test.assertIsInstance(arguments["city"], str)
    test.assertIn(arguments["days"], range(1, 8))
