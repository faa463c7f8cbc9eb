// The openai package for Node against a server: node openai_node.mjs ADDRESS IMAGE; one JSON object on stdout.
import { readFile } from 'node:fs/promises';
import OpenAI from 'openai';

const [address, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: 'none', maxRetries: 0 });
const url = `data:image/png;base64,${(await readFile(path)).toString('base64')}`;
const ask = (text) => [{ role: 'user', content: [{ type: 'image_url', image_url: { url } }, { type: 'text', text }] }];

const model = (await client.models.list()).data[0].id;
const whole = await client.chat.completions.create({ model, messages: ask('Describe the image.'), temperature: 0 });

let streamed = '';
let usage = null;
const stream = await client.chat.completions.create({
    model, messages: ask('Describe the image.'), temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
    streamed += chunk.choices[0]?.delta?.content ?? '';
    usage = chunk.usage ?? usage;
}

const schema = {
    type: 'object', properties: { sure: { type: 'boolean' } }, required: ['sure'], additionalProperties: false,
};
const structured = await client.chat.completions.create({
    model, messages: ask('Describe the image.'),
    response_format: { type: 'json_schema', json_schema: { name: 'answer', strict: true, schema } },
});

let refused = null;
try {
    await client.chat.completions.create({ model, messages: ask('x'), n: 2 });
} catch (error) {
    refused = { status: error.status, param: error.param, kind: error.constructor.name };
}
console.log(JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    tokens: usage?.completion_tokens,
    same: usage?.completion_tokens === whole.usage.completion_tokens,
    structured: JSON.parse(structured.choices[0].message.content),
    refused,
}));
