// The worker in which transformers.js runs the bundle, so that the page stays quick. bundle.js talks to it by messages.

import { weights } from './weights.js';

// What is loaded is pinned by version and by hash. A folder `vendor` beside index.html with these files is preferred: then nothing is
// fetched from elsewhere.
const LIBRARY = {
    place: 'https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.1/dist/',
    files: { 'transformers.min.js': 'sha384-AFNtlNOt2vbygtlRCUX2TDgkE+EyonjbCLxAfqezYwJJDVlozUhg+yKs4cPwyjHR' },
};
const ENGINE = {
    place: 'https://cdn.jsdelivr.net/npm/onnxruntime-web@1.31.0-dev.20260914-8d85527a0/dist/',
    files: {
        'ort-wasm-simd-threaded.mjs': 'sha384-rwgdUeIyqfd2lxMuhdqXYPnZiluDqSM5liz/q+ulIt4vYtB52NCoTVWBkm1KFOeN',
        'ort-wasm-simd-threaded.wasm': 'sha384-LrOPe1yNsLVzhsriuQfxO06RWx/XakR0S8uiOMx7HVJP6N/IEaR1EAgJMFeTanif',
        'ort-wasm-simd-threaded.asyncify.mjs': 'sha384-ik7L7J2uXfXmGuWHh3yOUDPpUslz/dJjcvZgdX5hcItLjxlkEpUF7mpCcATr3Dg8',
        'ort-wasm-simd-threaded.asyncify.wasm': 'sha384-JuzrCV6BUmTUbsgNhgU94qo0vZ4l3w0VqgQAKPm0La2hXL9kmv8P9pGenfsWJY9c',
    },
};
/** The engine's build: one that can wait for a graphics card, or the smaller one. */
const BUILD = { webgpu: 'ort-wasm-simd-threaded.asyncify', wasm: 'ort-wasm-simd-threaded' };

let library;
let model;
let processor;
let settings;
/** The number of the answer that is being made, and what ends it. */
let present = 0;
let ending;

/** The bytes of a file of a package: from `vendor`, or from where it is published, with its hash checked by the browser. */
async function bring({ place, files }, name) {
    const local = await fetch(new URL(`vendor/${name}`, settings.base)).catch(() => null);
    // Hosts that answer everything with a page have no such file either.
    if (local?.ok && !local.headers.get('content-type')?.includes('html')) return local.blob();
    let response;
    try {
        response = await fetch(place + name, { integrity: files[name] });
    } catch (error) {
        throw new Error(`${name} is neither in vendor/ nor can it be fetched as published.`, { cause: error });
    }
    if (!response.ok) throw new Error(`${place}${name}: HTTP status ${response.status}.`);
    return response.blob();
}

/** The address of a script that was brought. */
const script = (blob) => URL.createObjectURL(new Blob([blob], { type: 'text/javascript' }));

async function load() {
    const build = BUILD[settings.device];
    const [code, glue, binary] = await Promise.all([
        bring(LIBRARY, 'transformers.min.js'),
        bring(ENGINE, `${build}.mjs`),
        bring(ENGINE, `${build}.wasm`),
    ]);
    library = await import(script(code));
    ending = new library.InterruptableStoppingCriteria();
    const { env } = library;
    Object.assign(env, { remoteHost: settings.base, remotePathTemplate: './', allowLocalModels: false, useWasmCache: false });
    const cacheKey = await cached();
    Object.assign(env, cacheKey ? { useBrowserCache: true, cacheKey } : { useBrowserCache: false });
    const wasm = { wasmBinary: await binary.arrayBuffer(), wasmPaths: { mjs: script(glue) } };
    // More threads need headers that not every host of files can send.
    Object.assign(env.backends.onnx.wasm, wasm, { numThreads: self.crossOriginIsolated ? undefined : 1 });
    const sizes = new Map();
    const there = (file, bytes) => {
        sizes.set(file, bytes);
        postMessage({ kind: 'progress', bytes: [...sizes.values()].reduce((sum, bytes) => sum + bytes, 0) });
    };
    const progress_callback = ({ status, file, loaded }) => {
        if (status === 'progress' && file.startsWith('onnx/')) there(file, loaded);
    };
    const { dtype, device, base, data } = settings;
    processor = await library.AutoProcessor.from_pretrained('bundle');
    const cache = cacheKey && (await caches.open(cacheKey));
    const externalData = [];
    for (const file of data) externalData.push(await weights(file, base, cache, (bytes) => there(file.path, bytes)));
    // The library would read each file as a whole, all of them at once.
    const lazy = externalData.length ? { use_external_data_format: false, session_options: { externalData } } : {};
    model = await library.AutoModelForImageTextToText.from_pretrained('bundle', { dtype, device, progress_callback, ...lazy });
}

/** Where the model is kept: by the bundle's version, older ones are thrown away. Without such a place, nowhere. */
async function cached() {
    if (typeof caches === 'undefined') return null;
    const place = `fvlm ${settings.base} `;
    const cacheKey = place + settings.version;
    for (const name of await caches.keys()) if (name.startsWith(place) && name !== cacheKey) await caches.delete(name);
    return cacheKey;
}

/** The picture as the model's recipe wants it before its own crop: square by padding, or the shortest edge as long as it will be. */
async function prepare(blob) {
    const bitmap = await createImageBitmap(blob);
    const { aspect, shortest_edge: edge } = settings.image;
    let { width, height } = bitmap;
    let [x, y] = [0, 0];
    if (aspect.kind === 'pad') {
        const side = Math.max(width, height);
        [x, y] = [Math.floor((side - width) / 2), Math.floor((side - height) / 2)];
        width = height = side;
    }
    const scale = edge / Math.min(width, height);
    const canvas = new OffscreenCanvas(Math.max(edge, Math.trunc(width * scale)), Math.max(edge, Math.trunc(height * scale)));
    const context = canvas.getContext('2d', { willReadFrequently: true });
    const [across, down] = [canvas.width / width, canvas.height / height];
    context.imageSmoothingQuality = 'high';
    context.fillStyle = aspect.kind === 'pad' ? `rgb(${aspect.color.join(' ')})` : '#fff';
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, x * across, y * down, bitmap.width * across, bitmap.height * down);
    bitmap.close();
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return new library.RawImage(data, canvas.width, canvas.height, 4).rgb();
}

/** Lets messages in: an answer that nobody wants any more ends at its next token. */
function breathe() {
    return new Promise((resolve) => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => {
            port1.close();
            resolve();
        };
        port2.postMessage(null);
    });
}

async function answer({ id, image, question, maxTokens }) {
    // Before anything is waited for: a stop that comes meanwhile holds.
    ending.reset();
    const begin = performance.now();
    const times = { encode: 0, steps: 0 };
    const picture = await prepare(image);
    const parts = [{ type: 'image' }, { type: 'text', text: question }];
    const messages = [{ role: 'user', content: settings.content === 'parts' ? parts : `<image>\n${question}` }];
    const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
    const inputs = await processor(picture, prompt, { add_special_tokens: false });
    const prepared = performance.now();

    model.encode_image = async (given) => {
        const start = performance.now();
        const features = await Object.getPrototypeOf(model).encode_image.call(model, given);
        times.encode += performance.now() - start;
        await breathe();
        return features;
    };
    model.forward = async (given) => {
        await breathe();
        return Object.getPrototypeOf(model).forward.call(model, given);
    };
    let text = '';
    const streamer = new library.TextStreamer(processor.tokenizer, {
        skip_prompt: true,
        skip_special_tokens: true,
        callback_function: (piece) => {
            text += piece;
            postMessage({ kind: 'text', id, text });
        },
        token_callback_function: () => {
            times.last = performance.now();
            times.first ??= times.last;
            times.steps += 1;
        },
    });
    const given = { max_new_tokens: maxTokens, do_sample: false, streamer, stopping_criteria: ending };
    const output = await model.generate({ ...inputs, ...given });
    const tokens = output.slice(null, [inputs.input_ids.dims.at(-1), null]).tolist()[0];
    const { eos_token_id: eos } = model.generation_config;
    const ended = [eos].flat().map(Number).includes(Number(tokens.at(-1)));
    const spent = (times.last - times.first) / 1000;
    const timings = {
        first: times.first - begin,
        prepare: prepared - begin,
        encode: times.encode,
        prefill: times.first - prepared - times.encode,
        speed: times.steps > 1 ? (times.steps - 1) / spent : undefined,
    };
    const finish = ended ? 'stop' : 'length';
    return { text: text.trimEnd(), finish, tokens: tokens.length - Number(ended), timings };
}

// What the library leaves to nobody would otherwise be waited for without end: a file that is missing, for one.
onunhandledrejection = (event) => {
    event.preventDefault();
    postMessage({ kind: 'failed', id: present || undefined, message: event.reason?.message ?? String(event.reason) });
};

onmessage = async ({ data }) => {
    const { kind, id } = data;
    try {
        if (kind === 'load') {
            settings = data;
            await load();
            postMessage({ kind: 'ready' });
        } else if (kind === 'stop') {
            if (id === present) ending.interrupt();
        } else if (kind === 'answer') {
            present = id;
            postMessage({ kind: 'done', id, result: await answer(data) });
        }
    } catch (error) {
        console.warn(error);
        postMessage({ kind: 'failed', id, message: error.message ?? String(error) });
    }
};
