"""The `openai` package from PyPI, as its reference shows it: the environment names key and URL."""

import base64
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


FLAT = [{"type": "function", **TOOLS[0]["function"]}]


def respond(script, **more):
    return client.responses.create(model=f"fake-{script}", input=WORDS["prompt"], **more)


def responses_stream(script, **more):
    """The whole response that the SDK puts together, and what its deltas alone came to."""
    with client.responses.stream(model=f"fake-{script}", input=WORDS["prompt"], **more) as events:
        deltas = [event.delta for event in events if event.type.endswith(".delta")]
        return events.get_final_response(), "".join(deltas)


def responses_text():
    whole, deltas = responses_stream("text")
    assert whole.output_text == deltas
    return deltas


def responses_tools():
    call = respond("tools", tools=FLAT).output[0]
    turns = [{"role": "user", "content": WORDS["prompt"]}, call]
    turns.append(
        {"type": "function_call_output", "call_id": call.call_id, "output": WORDS["prompt"]}
    )
    last = client.responses.create(model="fake-tools", input=turns, tools=FLAT)
    return [call.name, json.loads(call.arguments), last.output_text]


def responses_tools_stream():
    whole, deltas = responses_stream("tools", tools=FLAT)
    call = whole.output[0]
    assert json.loads(call.arguments) == json.loads(deltas)
    return [call.name, json.loads(call.arguments)]


def embeddings():
    answer = client.embeddings.create(
        model="fake-text", input=[WORDS["prompt"]], encoding_format="float"
    )
    return answer.data[0].embedding


def files():
    """A file is sent, and another is fetched."""
    sent = client.files.create(
        file=("notes.txt", WORDS["prompt"].encode(), "text/plain"), purpose="user_data"
    )
    return client.files.content(sent.id).text


def speech():
    answer = client.audio.speech.create(model="fake-text", voice="alloy", input=WORDS["prompt"])
    return base64.b64encode(answer.read()).decode()


def transcript():
    return client.audio.transcriptions.create(
        model="fake-text", file=("said.mp3", b"ID3" + bytes(range(256)), "audio/mpeg"),
        prompt=WORDS["prompt"],
    ).text  # fmt: skip


def picture():
    answer = client.images.generate(model="fake-text", prompt=WORDS["prompt"])
    return answer.data[0].b64_json


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
        "responses": lambda: respond("text").output_text,
        "responses_stream": responses_text,
        "responses_tools": responses_tools,
        "responses_tools_stream": responses_tools_stream,
        "embeddings": embeddings,
        "files": files,
        "speech": speech,
        "transcript": transcript,
        "picture": picture,
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
