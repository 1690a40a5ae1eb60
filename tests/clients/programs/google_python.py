"""The `google-genai` package from PyPI, as its reference shows it."""

import base64

from cases import WORDS, run
from google import genai
from google.genai import types

client = genai.Client(http_options=types.HttpOptions(timeout=10_000))
FUNCTION = types.FunctionDeclaration(
    name="lookup",
    parameters_json_schema={"type": "object", "properties": {"city": {"type": "string"}}},
)
TOOLS = types.GenerateContentConfig(
    tools=[types.Tool(function_declarations=[FUNCTION])],
    automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
)


def generate(script, contents=None, **more):
    return client.models.generate_content(
        model=f"fake-{script}", contents=contents or WORDS["prompt"], **more
    )


def stream(script):
    chunks = client.models.generate_content_stream(model=f"fake-{script}", contents=WORDS["prompt"])
    return "".join(chunk.text or "" for chunk in chunks)


def tools():
    first = generate("tools", config=TOOLS)
    call = first.function_calls[0]
    asked = types.Content(role="user", parts=[types.Part(text=WORDS["prompt"])])
    result = types.Part.from_function_response(name=call.name, response={"result": WORDS["prompt"]})
    told = types.Content(role="user", parts=[result])
    last = generate("tools", [asked, first.candidates[0].content, told], config=TOOLS)
    return [call.name, call.args, last.text]


def tools_stream():
    chunks = client.models.generate_content_stream(
        model="fake-tools", contents=WORDS["prompt"], config=TOOLS
    )
    call = next(chunk.function_calls[0] for chunk in chunks if chunk.function_calls)
    return [call.name, call.args]


def image():
    data = base64.b64decode(WORDS["image"])
    part = types.Part.from_bytes(data=data, mime_type="image/png")
    return generate("text", [part, WORDS["prompt"]]).text


def embeddings():
    answer = client.models.embed_content(model="fake-text", contents=WORDS["prompt"])
    return answer.embeddings[0].values


def cancel():
    chunks = client.models.generate_content_stream(model="fake-endless", contents=WORDS["prompt"])
    for _ in chunks:
        break
    chunks.close()
    return "closed"


def limits(**more):
    return types.GenerateContentConfig(http_options=types.HttpOptions(**more))


AGAIN = types.HttpRetryOptions(attempts=3, initial_delay=0.01)
run(
    {
        "text": lambda: generate("text").text,
        "stream": lambda: stream("text"),
        "tools": tools,
        "tools_stream": tools_stream,
        "image": image,
        "embeddings": embeddings,
        "bad": lambda: generate("bad").text,
        "denied": lambda: generate("denied").text,
        "limited": lambda: generate("limited").text,
        "retry": lambda: generate("limited-once", config=limits(retry_options=AGAIN)).text,
        "broken": lambda: generate("broken").text,
        "overloaded": lambda: generate("overloaded").text,
        "timeout": lambda: generate("slow", config=limits(timeout=1000)).text,
        "cancel": cancel,
        "reset": lambda: generate("reset").text,
        "reset_stream": lambda: stream("reset"),
        "moved": lambda: generate("moved").text,
        "echo": lambda: generate("echo").text,
    }
)
