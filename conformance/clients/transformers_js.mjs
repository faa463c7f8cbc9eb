// A FastVLM bundle in transformers.js.
//   node transformers_js.mjs BUNDLE DTYPE CASES.json                   in Node.js, the bundle as it is on disk
//   HUB=http://... node transformers_js.mjs BUNDLE DTYPE CASES.json    as in a browser, WebAssembly and all, the bundle from that hub
// CASES: [{image, question, limit?}, ..]; one line of JSON with the tokens of each.
import { readFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import sharp from 'sharp';

/** The build for Node.js. */
async function node(path) {
    const library = await import('@huggingface/transformers');
    library.env.allowRemoteModels = false;
    library.env.localModelPath = dirname(resolve(path)) + '/';
    return { library, id: basename(resolve(path)), device: 'cpu', read: (image) => library.RawImage.read(image) };
}

/** The build for browsers, which has no files but those that it fetches; pictures are decoded for it, for want of a canvas. */
async function browser(hub, images) {
    const decode = async (image) => [image, await sharp(image).removeAlpha().raw().toBuffer({ resolveWithObject: true })];
    const decoded = new Map(await Promise.all(images.map(decode)));
    const found = (file) => new URL(`./node_modules/${file}`, import.meta.url);
    const wasm = 'onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify';
    const binary = readFileSync(fileURLToPath(found(`${wasm}.wasm`)));
    // By this the library would know Node.js.
    globalThis.process = undefined;
    const library = await import(found('@huggingface/transformers/dist/transformers.web.js'));
    Object.assign(library.env, { remoteHost: hub, allowLocalModels: false, useBrowserCache: false, useWasmCache: false });
    const { wasm: engine } = library.env.backends.onnx;
    Object.assign(engine, { wasmBinary: binary, wasmPaths: { mjs: found(`${wasm}.mjs`).href }, numThreads: 1 });
    const read = (image) => {
        const { data, info } = decoded.get(image);
        return new library.RawImage(new Uint8ClampedArray(data), info.width, info.height, info.channels);
    };
    return { library, id: 'local/bundle', device: 'wasm', read };
}

const [, , path, dtype, file] = process.argv;
const cases = JSON.parse(readFileSync(file, 'utf8'));
// As the model's template wants it: one text, or parts.
const { content } = JSON.parse(readFileSync(path + '/bundle.json', 'utf8')).prompt;
const images = cases.map(({ image }) => image);
const { library, id, device, read } = await (process.env.HUB ? browser(process.env.HUB, images) : node(path));
const processor = await library.AutoProcessor.from_pretrained(id);
const model = await library.AutoModelForImageTextToText.from_pretrained(id, { dtype, device });
for (const { image, question, limit = 64 } of cases) {
    const parts = [{ type: 'image' }, { type: 'text', text: question }];
    const messages = [{ role: 'user', content: content === 'parts' ? parts : `<image>\n${question}` }];
    const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
    const inputs = await processor(await read(image), prompt, { add_special_tokens: false });
    const output = await model.generate({ ...inputs, max_new_tokens: limit, do_sample: false });
    const tokens = output.slice(null, [inputs.input_ids.dims.at(-1), null]).tolist()[0];
    console.log(JSON.stringify({ tokens: tokens.map(Number) }));
}
