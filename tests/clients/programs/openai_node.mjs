// The `openai` package from npm, as its reference shows it: the environment names key and URL.

import { createRequire } from "node:module";
import { run, words } from "./cases.mjs";

const require = createRequire(process.env.PACKAGES);
const { OpenAI } = require("openai");
const client = new OpenAI({ maxRetries: 0 });
const tools = [
  {
    type: "function",
    function: {
      name: "lookup",
      parameters: { type: "object", properties: { city: { type: "string" } } },
    },
  },
];
const turns = (content) => [{ role: "user", content }];

async function ask(script, options = {}, content = words.prompt) {
  const answer = await client.chat.completions.create(
    { model: `fake-${script}`, messages: turns(content) },
    options,
  );
  return answer.choices[0].message.content;
}

async function read(script) {
  const stream = await client.chat.completions.create({
    model: `fake-${script}`,
    messages: turns(words.prompt),
    stream: true,
  });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
  return text;
}

async function toolCall() {
  const messages = turns(words.prompt);
  const first = await client.chat.completions.create({ model: "fake-tools", messages, tools });
  const message = first.choices[0].message;
  const call = message.tool_calls[0];
  messages.push(message, { role: "tool", tool_call_id: call.id, content: words.prompt });
  const last = await client.chat.completions.create({ model: "fake-tools", messages, tools });
  const content = last.choices[0].message.content;
  return [call.function.name, JSON.parse(call.function.arguments), content];
}

async function toolCallStream() {
  const stream = client.chat.completions.stream({
    model: "fake-tools",
    messages: turns(words.prompt),
    tools,
  });
  const call = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
  return [call.function.name, JSON.parse(call.function.arguments)];
}

const flat = [{ type: "function", ...tools[0].function }];
const respond = (script, more = {}) =>
  client.responses.create({ model: `fake-${script}`, input: words.prompt, ...more });

async function respondStream(script, more = {}) {
  const stream = client.responses.stream({
    model: `fake-${script}`,
    input: words.prompt,
    ...more,
  });
  let deltas = "";
  for await (const event of stream) if (event.type.endsWith(".delta")) deltas += event.delta;
  return [await stream.finalResponse(), deltas];
}

async function responsesText() {
  const [whole, deltas] = await respondStream("text");
  if (whole.output[0].content[0].text !== deltas) throw new Error("deltas and whole text differ");
  return deltas;
}

async function responsesTools() {
  const call = (await respond("tools", { tools: flat })).output[0];
  const result = { type: "function_call_output", call_id: call.call_id, output: words.prompt };
  const input = [...turns(words.prompt), call, result];
  const last = await client.responses.create({ model: "fake-tools", input, tools: flat });
  return [call.name, JSON.parse(call.arguments), last.output_text];
}

async function responsesToolsStream() {
  const [whole, deltas] = await respondStream("tools", { tools: flat });
  const call = whole.output[0];
  if (call.arguments !== deltas) throw new Error("deltas and whole arguments differ");
  return [call.name, JSON.parse(call.arguments)];
}

async function embeddings() {
  const answer = await client.embeddings.create({
    model: "fake-text",
    input: [words.prompt],
    encoding_format: "float",
  });
  return answer.data[0].embedding;
}

async function cancel() {
  const stream = await client.chat.completions.create({
    model: "fake-endless",
    messages: turns(words.prompt),
    stream: true,
  });
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
  return "closed";
}

const picture = [
  { type: "text", text: words.prompt },
  { type: "image_url", image_url: { url: `data:image/png;base64,${words.image}` } },
];

await run({
  text: () => ask("text"),
  stream: () => read("text"),
  tools: toolCall,
  tools_stream: toolCallStream,
  image: () => ask("text", {}, picture),
  responses: async () => (await respond("text")).output_text,
  responses_stream: responsesText,
  responses_tools: responsesTools,
  responses_tools_stream: responsesToolsStream,
  embeddings,
  bad: () => ask("bad"),
  denied: () => ask("denied"),
  limited: () => ask("limited"),
  retry: () => ask("limited-once", { maxRetries: 2 }),
  broken: () => ask("broken"),
  overloaded: () => ask("overloaded"),
  timeout: () => ask("slow", { timeout: 1000 }),
  cancel,
  reset: () => ask("reset"),
  reset_stream: () => read("reset"),
  moved: () => ask("moved"),
  echo: () => ask("echo"),
});
