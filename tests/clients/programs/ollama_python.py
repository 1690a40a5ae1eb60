"""The `ollama` package from PyPI, as its reference shows it: OLLAMA_HOST names the server."""

import os

from cases import WORDS, run
from ollama import Client

client = Client()
PATIENT = Client(timeout=1.0)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
assert "OLLAMA_HOST" in os.environ


def turns(text):
    return [{"role": "user", "content": text}]


def ask(script, client=client):
    return client.chat(f"fake-{script}", turns(WORDS["prompt"])).message.content


def stream(script):
    parts = client.chat(f"fake-{script}", turns(WORDS["prompt"]), stream=True)
    return "".join(part.message.content for part in parts)


def tools():
    messages = turns(WORDS["prompt"])
    first = client.chat("fake-tools", messages, tools=TOOLS)
    function = first.message.tool_calls[0].function
    messages += [
        first.message,
        {"role": "tool", "content": WORDS["prompt"], "tool_name": "lookup"},
    ]
    last = client.chat("fake-tools", messages, tools=TOOLS)
    return [function.name, dict(function.arguments), last.message.content]


def tools_stream():
    parts = client.chat("fake-tools", turns(WORDS["prompt"]), tools=TOOLS, stream=True)
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    return [calls[0].function.name, dict(calls[0].function.arguments)]


def image():
    turn = {"role": "user", "content": WORDS["prompt"], "images": [WORDS["image"]]}
    return client.chat("fake-text", [turn]).message.content


def cancel():
    parts = client.chat("fake-endless", turns(WORDS["prompt"]), stream=True)
    for _ in parts:
        break
    parts.close()
    return "closed"


def generate_stream():
    parts = client.generate("fake-text", WORDS["prompt"], stream=True)
    return "".join(part.response for part in parts)


run(
    {
        "text": lambda: ask("text"),
        "stream": lambda: stream("text"),
        "generate": lambda: client.generate("fake-text", WORDS["prompt"]).response,
        "generate_stream": generate_stream,
        "embeddings": lambda: client.embed("fake-text", WORDS["prompt"]).embeddings[0],
        "tools": tools,
        "tools_stream": tools_stream,
        "image": image,
        "bad": lambda: ask("bad"),
        "denied": lambda: ask("denied"),
        "limited": lambda: ask("limited"),
        "broken": lambda: ask("broken"),
        "overloaded": lambda: ask("overloaded"),
        "timeout": lambda: ask("slow", PATIENT),
        "cancel": cancel,
        "reset": lambda: ask("reset"),
        "reset_stream": lambda: stream("reset"),
        "moved": lambda: ask("moved"),
    }
)
