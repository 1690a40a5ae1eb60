// The `@anthropic-ai/sdk` package from npm, as its reference shows it.

import { createRequire } from "node:module";
import { run, words } from "./cases.mjs";

const require = createRequire(process.env.PACKAGES);
const { Anthropic } = require("@anthropic-ai/sdk");
const client = new Anthropic({ maxRetries: 0 });
const tools = [
  {
    name: "lookup",
    input_schema: { type: "object", properties: { city: { type: "string" } } },
  },
];
const turns = (content) => [{ role: "user", content }];

function request(script, more = {}) {
  return { model: `fake-${script}`, max_tokens: 64, messages: turns(words.prompt), ...more };
}

async function ask(script, options = {}, more = {}) {
  const message = await client.messages.create(request(script, more), options);
  return message.content.at(-1).text;
}

const streamed = (script, more = {}) => client.messages.stream(request(script, more)).finalMessage();

async function toolCall() {
  const first = await client.messages.create(request("tools", { tools }));
  const call = first.content[0];
  const result = { type: "tool_result", tool_use_id: call.id, content: words.prompt };
  const messages = [
    ...turns(words.prompt),
    { role: "assistant", content: first.content },
    ...turns([result]),
  ];
  const last = await client.messages.create(request("tools", { tools, messages }));
  return [call.name, call.input, last.content[0].text];
}

async function toolCallStream() {
  const call = (await streamed("tools", { tools })).content[0];
  return [call.name, call.input];
}

async function thinking() {
  const first = await streamed("thinking");
  const messages = [
    ...turns(words.prompt),
    { role: "assistant", content: first.content },
    ...turns("Go on."),
  ];
  await client.messages.create(request("thinking", { messages }));
  const [thought, hidden, text] = first.content;
  return [thought.thinking, thought.signature, hidden.data, text.text];
}

async function citations() {
  const text = (await streamed("citations")).content[0];
  return [text.text, text.citations[0].cited_text];
}

async function cancel() {
  const stream = client.messages.stream(request("endless"));
  for await (const _ of stream) break;
  return "closed";
}

const picture = [
  { type: "image", source: { type: "base64", media_type: "image/png", data: words.image } },
  { type: "text", text: words.prompt },
];

await run({
  text: () => ask("text"),
  stream: async () => (await streamed("text")).content[0].text,
  tools: toolCall,
  tools_stream: toolCallStream,
  image: () => ask("text", {}, { messages: turns(picture) }),
  thinking,
  citations,
  stream_error: async () => (await streamed("stream-error")).content[0].text,
  bad: () => ask("bad"),
  denied: () => ask("denied"),
  limited: () => ask("limited"),
  retry: () => ask("limited-once", { maxRetries: 2 }),
  broken: () => ask("broken"),
  overloaded: () => ask("overloaded"),
  timeout: () => ask("slow", { timeout: 1000 }),
  cancel,
  reset: () => ask("reset"),
  reset_stream: async () => (await streamed("reset")).content[0].text,
  moved: () => ask("moved"),
  echo: () => ask("echo"),
});
