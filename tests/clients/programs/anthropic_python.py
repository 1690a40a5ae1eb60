"""The `anthropic` package from PyPI, as its reference shows it."""

from anthropic import Anthropic
from cases import WORDS, run

client = Anthropic(max_retries=0)
TOOLS = [
    {
        "name": "lookup",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


def turns(text):
    return [{"role": "user", "content": text}]


def create(script, content=None, **more):
    options = more.pop("client", client)
    messages = more.pop("messages", None) or turns(content or WORDS["prompt"])
    return options.messages.create(model=f"fake-{script}", max_tokens=64, messages=messages, **more)


def ask(script, **more):
    return create(script, **more).content[-1].text


def streamed(script, **more):
    """The message that the SDK puts together from a stream's events."""
    with client.messages.stream(
        model=f"fake-{script}", max_tokens=64, messages=turns(WORDS["prompt"]), **more
    ) as events:
        events.until_done()
        return events.get_final_message()


def tools():
    messages = turns(WORDS["prompt"])
    first = create("tools", tools=TOOLS)
    call = first.content[0]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WORDS["prompt"]}
    messages += [{"role": "assistant", "content": first.content}, *turns([result])]
    last = create("tools", tools=TOOLS, messages=messages)
    return [call.name, call.input, last.content[0].text]


def tools_stream():
    call = streamed("tools", tools=TOOLS).content[0]
    return [call.name, call.input]


def image():
    source = {"type": "base64", "media_type": "image/png", "data": WORDS["image"]}
    return ask(
        "text",
        content=[{"type": "image", "source": source}, {"type": "text", "text": WORDS["prompt"]}],
    )


def thinking():
    """A turn with signed thinking, given back as it was, as the reference demands."""
    first = streamed("thinking")
    messages = [
        *turns(WORDS["prompt"]),
        {"role": "assistant", "content": first.content},
        *turns("Go on."),
    ]
    create("thinking", messages=messages)
    thought, hidden, text = first.content
    return [thought.thinking, thought.signature, hidden.data, text.text]


def citations():
    text = streamed("citations").content[0]
    return [text.text, text.citations[0].cited_text]


def stream_error():
    return streamed("stream-error").content[0].text


def cancel():
    with client.messages.stream(
        model="fake-endless", max_tokens=64, messages=turns(WORDS["prompt"])
    ) as events:
        for _ in events:
            break
    return "closed"


run(
    {
        "text": lambda: ask("text"),
        "stream": lambda: streamed("text").content[0].text,
        "tools": tools,
        "tools_stream": tools_stream,
        "image": image,
        "thinking": thinking,
        "citations": citations,
        "stream_error": stream_error,
        "bad": lambda: ask("bad"),
        "denied": lambda: ask("denied"),
        "limited": lambda: ask("limited"),
        "retry": lambda: ask("limited-once", client=client.with_options(max_retries=2)),
        "broken": lambda: ask("broken"),
        "overloaded": lambda: ask("overloaded"),
        "timeout": lambda: ask("slow", timeout=1.0),
        "cancel": cancel,
        "reset": lambda: ask("reset"),
        "reset_stream": lambda: streamed("reset").content[0].text,
        "moved": lambda: ask("moved"),
        "echo": lambda: ask("echo"),
    }
)
