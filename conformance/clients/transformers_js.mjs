// A FastVLM bundle in transformers.js, as it is on disk.
//   node transformers_js.mjs BUNDLE DTYPE CASES.json         CASES: [{image, question, limit?}, ..]; one line of JSON with the tokens of each
import { readFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from '@huggingface/transformers';

const [, , path, dtype, cases] = process.argv;
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(path)) + '/';
const bundle = basename(resolve(path));
// As the model's template wants it: one text, or parts.
const { content } = JSON.parse(readFileSync(path + '/bundle.json', 'utf8')).prompt;
const processor = await AutoProcessor.from_pretrained(bundle);
const model = await AutoModelForImageTextToText.from_pretrained(bundle, { dtype });
for (const { image, question, limit = 64 } of JSON.parse(readFileSync(cases, 'utf8'))) {
    const parts = [{ type: 'image' }, { type: 'text', text: question }];
    const messages = [{ role: 'user', content: content === 'parts' ? parts : `<image>\n${question}` }];
    const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
    const inputs = await processor(await RawImage.read(image), prompt, { add_special_tokens: false });
    const output = await model.generate({ ...inputs, max_new_tokens: limit, do_sample: false });
    const tokens = output.slice(null, [inputs.input_ids.dims.at(-1), null]).tolist()[0];
    console.log(JSON.stringify({ tokens: tokens.map(Number) }));
}
