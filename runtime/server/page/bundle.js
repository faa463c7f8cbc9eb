// The answerer without a server: the bundle beside this page, run by transformers.js in the browser, in a worker of its own.

/** A model of at most this many bytes is loaded at once; a larger one when it is first asked. */
const SMALL = 64 << 20;

const beside = (path) => new URL(path, document.baseURI);

/**
 * Reads the contract of the bundle. `?device=wasm` or `webgpu` and `?dtype=fp32`, `fp16`, `int8`, `q8`, `q4` or `q4f16` in the page's
 * address say how to run it; otherwise on WebGPU where there is one, else on WebAssembly.
 */
export async function open() {
    let response;
    try {
        response = await fetch(beside('bundle.json'), { cache: 'no-cache' });
    } catch (error) {
        const how = location.protocol === 'file:' ? ' Open it by a web server: `python3 -m http.server` in its folder is one.' : '';
        throw new Error(`The bundle beside this page cannot be read.${how}`, { cause: error });
    }
    if (!response.ok) throw new Error(`bundle.json is not beside this page: HTTP status ${response.status}.`);
    const contract = await response.text();
    const bundle = JSON.parse(contract);
    const asked = new URLSearchParams(location.search);
    const ways = await order(bundle, asked.get('device'), asked.get('dtype'));
    return new Local(bundle, version(contract), ways);
}

/** The forms of the bundle that transformers.js opens. Beside a standard form, a fused one of the same precision has another name. */
function forms(bundle) {
    const standard = bundle.variants.filter(({ target }) => target === 'portable').map(({ precision }) => precision);
    const fused = ({ target, precision }) => target === 'cpu' && precision !== 'fp32' && !standard.includes(precision);
    return bundle.variants.filter((form) => form.target === 'portable' || fused(form));
}

/** Device and form, the best first. */
async function order(bundle, device, dtype) {
    const open = forms(bundle).filter(({ precision }) => !dtype || precision === dtype);
    if (!open.length) {
        const found = bundle.variants.map(({ target, precision }) => `${target} ${precision}`).join(', ');
        throw new Error(`transformers.js opens no form of this bundle${dtype ? ` in ${dtype}` : ''}. It has: ${found}.`);
    }
    const ways = [];
    const adapter = device === 'wasm' ? null : await graphics(device === 'webgpu');
    if (adapter) {
        const halves = adapter.features.has('shader-f16');
        const portable = open.filter(({ target, precision }) => target === 'portable' && (!['fp16', 'q4f16'].includes(precision) || halves));
        portable.sort((a, b) => Number(b.precision === 'fp16') - Number(a.precision === 'fp16'));
        // Fused forms have kernels for processors; their functions are slow on a graphics card.
        if (portable.length) ways.push({ device: 'webgpu', form: portable[0] });
    }
    if (device === 'webgpu' && !ways.length) {
        throw new Error('This browser has no WebGPU for a form of this bundle. Leave out ?device=webgpu to run it on WebAssembly.');
    }
    if (device !== 'webgpu') ways.push({ device: 'wasm', form: open[0] });
    return ways;
}

/** A graphics card, or null. One that the processor plays is slower than WebAssembly: it is taken only when it is asked for. */
async function graphics(any) {
    const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
    return adapter && (any || !adapter.info?.isFallbackAdapter) ? adapter : null;
}

/** Another text has another version: what the browser kept of an older export is not taken for this one. */
function version(text) {
    let hash = 0xcbf29ce484222325n;
    for (const byte of new TextEncoder().encode(text)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
    return hash.toString(16);
}

const NAMES = { wasm: 'WebAssembly', webgpu: 'WebGPU' };

class Local {
    constructor(bundle, version, ways) {
        Object.assign(this, { bundle, version, ways, ready: false, last: 0, name: bundle.model.name, detail: 'in this browser', place: 'engine' });
        this.small = bytes(bundle, ways[0].form) <= SMALL;
    }

    /** Loads the model, once for all who ask meanwhile; `loaded` is told which share of it is there. */
    load(loaded) {
        this.loading ??= this.begin(loaded).finally(() => {
            this.loading = null;
        });
        return this.loading;
    }

    /** Where one way fails, the next is tried. */
    async begin(loaded) {
        const problems = [];
        for (const { device, form } of this.ways) {
            try {
                await this.start(device, form, loaded);
                this.detail = `${form.precision}, in this browser by ${NAMES[device]}`;
                this.ready = true;
                return;
            } catch (error) {
                this.worker?.terminate();
                problems.push(`${NAMES[device]}: ${error.message}`);
                console.info(problems.at(-1));
            }
        }
        throw new Error(`The model cannot be loaded. ${problems.join(' ')}`);
    }

    async start(device, form, loaded) {
        const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
        this.worker = worker;
        const { model, image, prompt } = this.bundle;
        const total = bytes(this.bundle, form);
        await new Promise((resolve, reject) => {
            worker.onerror = (event) => reject(new Error(event.message || 'The worker cannot be started.'));
            worker.onmessage = ({ data }) => {
                if (data.kind === 'progress') loaded(Math.min(1, data.bytes / total));
                if (data.kind === 'ready') resolve();
                if (data.kind === 'failed') reject(new Error(data.message));
            };
            const { precision: dtype } = form;
            const base = beside('.').href;
            const data = files(this.bundle, form, (graph) => graph.data);
            const given = { base, version: this.version, device, dtype, data, image, content: prompt.content, name: model.name };
            worker.postMessage({ kind: 'load', ...given });
        });
    }

    async answer({ image, question, maxTokens, signal, onText }) {
        const id = ++this.last;
        const { worker } = this;
        const stop = () => worker.postMessage({ kind: 'stop', id });
        signal.addEventListener('abort', stop);
        try {
            return await new Promise((resolve, reject) => {
                worker.onerror = (event) => reject(new Error(event.message || 'The worker has ended.'));
                worker.onmessage = ({ data }) => {
                    if (data.id !== id) return;
                    if (data.kind === 'text') onText(data.text);
                    if (data.kind === 'failed') reject(new Error(data.message));
                    if (data.kind !== 'done') return;
                    if (signal.aborted) reject(new DOMException('stopped', 'AbortError'));
                    else resolve(data.result);
                };
                worker.postMessage({ kind: 'answer', id, image, question, maxTokens });
                if (signal.aborted) stop();
            });
        } finally {
            signal.removeEventListener('abort', stop);
        }
    }
}

/** Bytes of the graphs of a form and of their data. */
function bytes(bundle, form) {
    return files(bundle, form, (graph) => [graph.path, ...graph.data]).reduce((sum, { bytes }) => sum + bytes, 0);
}

/** Files of a form's graphs, each once: path and bytes. */
function files(bundle, form, of) {
    const wanted = new Set([form.vision_encoder, form.embed_tokens, form.decoder].flatMap(of));
    return bundle.files.filter(({ path }) => wanted.has(path)).map(({ path, bytes }) => ({ path, bytes }));
}
