"""The `openai` package from PyPI, as its reference shows it: the environment names key and URL."""

import json

from cases import WORDS, run
from openai import OpenAI

client = OpenAI(max_retries=0)
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


def ask(script, **more):
    answer = (more.pop("client", client)).chat.completions.create(
        model=f"fake-{script}", messages=turns(WORDS["prompt"]), **more
    )
    return answer.choices[0].message.content


def stream():
    chunks = client.chat.completions.create(
        model="fake-text",
        messages=turns(WORDS["prompt"]),
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, usage = [], None
    for chunk in chunks:
        usage = chunk.usage or usage
        texts += [choice.delta.content or "" for choice in chunk.choices]
    assert usage.total_tokens == 18
    return "".join(texts)


def tools():
    messages = turns(WORDS["prompt"])
    first = client.chat.completions.create(model="fake-tools", messages=messages, tools=TOOLS)
    message = first.choices[0].message
    call = message.tool_calls[0]
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": WORDS["prompt"]}]
    last = client.chat.completions.create(model="fake-tools", messages=messages, tools=TOOLS)
    arguments = json.loads(call.function.arguments)
    return [call.function.name, arguments, last.choices[0].message.content]


def tools_stream():
    with client.chat.completions.stream(
        model="fake-tools", messages=turns(WORDS["prompt"]), tools=TOOLS
    ) as events:
        events.until_done()
        call = events.get_final_completion().choices[0].message.tool_calls[0]
    return [call.function.name, json.loads(call.function.arguments)]


def image():
    url = f"data:image/png;base64,{WORDS['image']}"
    parts = [
        {"type": "text", "text": WORDS["prompt"]},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    answer = client.chat.completions.create(model="fake-text", messages=turns(parts))
    return answer.choices[0].message.content


def cancel():
    chunks = client.chat.completions.create(
        model="fake-endless", messages=turns(WORDS["prompt"]), stream=True
    )
    for chunk in chunks:
        if chunk.choices[0].delta.content:
            break
    chunks.close()
    return "closed"


def reset_stream():
    chunks = client.chat.completions.create(
        model="fake-reset", messages=turns(WORDS["prompt"]), stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


run(
    {
        "text": lambda: ask("text"),
        "stream": stream,
        "tools": tools,
        "tools_stream": tools_stream,
        "image": image,
        "bad": lambda: ask("bad"),
        "denied": lambda: ask("denied"),
        "limited": lambda: ask("limited"),
        "retry": lambda: ask("limited-once", client=client.with_options(max_retries=2)),
        "broken": lambda: ask("broken"),
        "overloaded": lambda: ask("overloaded"),
        "timeout": lambda: ask("slow", timeout=1.0),
        "cancel": cancel,
        "reset": lambda: ask("reset"),
        "reset_stream": reset_stream,
        "moved": lambda: ask("moved"),
        "echo": lambda: ask("echo"),
    }
)
