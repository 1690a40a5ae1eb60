"""The `litellm` package from PyPI as a library, calling any OpenAI-compatible server."""

import json

import litellm
from cases import WORDS, run

litellm.suppress_debug_info = True
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def turns(text):
    return [{"role": "user", "content": text}]


def complete(script, messages=None, **more):
    options = {"max_retries": 0, **more}
    return litellm.completion(
        f"openai/fake-{script}", messages or turns(WORDS["prompt"]), **options
    )


def ask(script, **more):
    return complete(script, **more).choices[0].message.content


def stream(script):
    chunks = complete(script, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def tools():
    messages = turns(WORDS["prompt"])
    message = complete("tools", tools=TOOLS).choices[0].message
    call = message.tool_calls[0]
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": WORDS["prompt"]}]
    last = complete("tools", messages, tools=TOOLS)
    arguments = json.loads(call.function.arguments)
    return [call.function.name, arguments, last.choices[0].message.content]


def tools_stream():
    chunks = list(complete("tools", tools=TOOLS, stream=True))
    call = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0]
    return [call.function.name, json.loads(call.function.arguments)]


def image():
    url = f"data:image/png;base64,{WORDS['image']}"
    parts = [
        {"type": "text", "text": WORDS["prompt"]},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return ask("text", messages=turns(parts))


def cancel():
    chunks = complete("endless", stream=True)
    for chunk in chunks:
        if chunk.choices[0].delta.content:
            break
    chunks.completion_stream.close()
    return "closed"


run(
    {
        "text": lambda: ask("text"),
        "stream": lambda: stream("text"),
        "tools": tools,
        "tools_stream": tools_stream,
        "image": image,
        "bad": lambda: ask("bad"),
        "denied": lambda: ask("denied"),
        "limited": lambda: ask("limited"),
        "retry": lambda: ask("limited-once", max_retries=2),
        "broken": lambda: ask("broken"),
        "overloaded": lambda: ask("overloaded"),
        "timeout": lambda: ask("slow", timeout=1.0),
        "cancel": cancel,
        "reset": lambda: ask("reset"),
        "reset_stream": lambda: stream("reset"),
        "moved": lambda: ask("moved"),
        "echo": lambda: ask("echo"),
    }
)
