// The page without a server: what `fvlm-export --self-contained --page` writes, on a host of files, by transformers.js in the browser.
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { ENGINE, LIBRARY, PACKAGES, PAGE, PATIENCE, TOLD, accessible, browser, finish, host, run, scratch, state, text, until, visit } from './browser.mjs';

/** transformers.js asks for lengths, and for files that it then reads from its cache: those requests end early by intention. */
const EXPECTED = [/Failed to load resource.*404/];

let site;
/** A site of standard graphs in few bits, with a fused form of one of their precisions beside it. */
let standard;
let started;

before(async () => {
    site = scratch('site');
    await run('fvlm-export', '--quiet', '--self-contained', '--page', '--precision', 'fp32', '--precision', 'q4', '--output', site);
    standard = scratch('standard');
    const precisions = ['fp16', 'q4', 'q4f16'].flatMap((precision) => ['--precision', precision]);
    const targets = ['--target', 'portable', '--target', 'cpu'];
    await run('fvlm-export', '--quiet', '--self-contained', '--page', ...targets, ...precisions, '--output', standard);
    for (const folder of [site, standard]) {
        mkdirSync(join(folder, 'vendor'));
        for (const file of PACKAGES) cpSync(file, join(folder, 'vendor', basename(file)));
    }
    started = await browser();
});
after(finish);

const sample = (page, scene) => page.click(`#samples button[data-file="${scene}"]`);
async function answers(page, scenes) {
    for (const scene of scenes) {
        await sample(page, scene);
        await until(page, TOLD.get(scene), '#caption');
        await state(page, 'idle');
    }
}

test('WebAssembly: scenes are described, times are shown, an answer is stopped', async () => {
    const page = await visit(started, `${await host(site)}?device=wasm`);
    await state(page, 'idle');
    assert.equal(await text(page, '#model'), 'demo · fp32, in this browser by WebAssembly');
    await answers(page, ['scene_1.png', 'scene_4.png', 'scene_5.png', 'scene_7.png']);
    const times = await text(page, '.timings');
    assert.match(times, /First token\s+[\d.]+ m?s\s+engine: [\d.]+ m?s\s+Encode\s+[\d.]+ m?s\s+the image\s+Prefill\s+[\d.]+ m?s/);
    assert.equal(await page.locator('#history li').count(), 4);
    await accessible(page, 'the static page');
    // Stopped where it is processed: no answer, and the next one is whole.
    await page.evaluate(() => {
        document.querySelector('#once').click();
        document.querySelector('#stop').click();
    });
    await state(page, 'idle');
    assert.equal(await text(page, '#note'), 'stopped');
    assert.equal(await page.locator('#history li').count(), 4);
    await answers(page, ['scene_2.png']);
    // Loaded again, the model comes from the browser's own cache.
    const fetched = [];
    page.on('request', (request) => fetched.push(new URL(request.url()).pathname));
    await page.reload();
    await state(page, 'idle');
    assert.ok(!fetched.some((path) => path.endsWith('_data')), fetched.join(' '));
    await answers(page, ['scene_1.png']);
    await page.check();
});

test('WebAssembly, q4, by the address', async () => {
    const page = await visit(started, `${await host(site)}?dtype=q4&device=wasm`);
    await state(page, 'idle');
    assert.match(await text(page, '#model'), /q4/);
    await answers(page, ['scene_1.png']);
    await page.check();
    const none = await visit(started, `${await host(site)}?dtype=fp16`);
    await until(none, 'no form of this bundle in fp16. It has: portable fp32, cpu q4', '#problem');
    await none.check();
});

for (const dtype of ['q4', 'q4f16', 'fp16']) {
    test(`WebAssembly, standard graphs in ${dtype}: scenes are described, by the graphs of that name`, async () => {
        const fetched = new Set();
        const route = (context) => context.on('request', (request) => fetched.add(basename(new URL(request.url()).pathname)));
        const page = await visit(started, `${await host(standard)}?dtype=${dtype}&device=wasm`, { route });
        await state(page, 'idle');
        assert.equal(await text(page, '#model'), `demo · ${dtype}, in this browser by WebAssembly`);
        await answers(page, [...TOLD.keys()].filter((scene) => scene.startsWith('scene_')));
        await page.check();
        assert.deepEqual(page.elsewhere, [], 'requests that leave loopback');
        const graphs = ['decoder_model_merged', 'embed_tokens', 'vision_encoder'];
        const wanted = graphs.flatMap((graph) => [`${graph}_${dtype}.onnx`, `${graph}_${dtype}.onnx_data`]);
        assert.deepEqual([...fetched].filter((name) => name.includes('.onnx')).sort(), wanted);
    });
}

test('standard graphs: forms that are not there are told', async () => {
    const address = await host(standard);
    for (const dtype of ['int8', 'q8', 'fp32', 'bnb4']) {
        const page = await visit(started, `${address}?dtype=${dtype}&device=wasm`);
        const has = 'portable fp16, portable q4, cpu q4, portable q4f16';
        await until(page, `transformers.js opens no form of this bundle in ${dtype}. It has: ${has}.`, '#problem');
        await page.check();
    }
});

test('weights: parts of a large file, in pieces and at any place, from the network and from the cache', async () => {
    const bytes = 20_000_003;
    const content = Buffer.alloc(bytes);
    for (let at = 0; at < bytes; at += 1) content[at] = Math.imul(at, 0x9e3779b1) >>> 24;
    const folder = scratch('parts');
    mkdirSync(join(folder, 'onnx'), { recursive: true });
    cpSync(join(PAGE, 'weights.js'), join(folder, 'weights.js'));
    writeFileSync(join(folder, 'onnx/large_data'), content);
    writeFileSync(join(folder, 'index.html'), '<!doctype html><html lang="en"><title>parts</title></html>');
    const page = await visit(started, await host(folder), { expected: EXPECTED });
    const found = await page.evaluate((bytes) => {
        const work = async (bytes) => {
            const { weights } = await import(`${location.origin}/weights.js`);
            const wrong = [];
            for (const name of [null, 'kept', 'kept']) {
                let last = 0;
                const cache = name && (await caches.open(name));
                const { path, data } = await weights({ path: 'onnx/large_data', bytes }, location.origin, cache, (there) => (last = there));
                if (path !== 'large_data' || data.byteLength !== bytes || last !== bytes) wrong.push([path, data.byteLength, last]);
                const ends = [[0, 0], [0, 1], [5, 8 << 20], [1, (8 << 20) + 1], [7, 8 + (16 << 20)], [bytes - 9, bytes], [0, bytes]];
                for (const [begin, end] of ends) {
                    const part = data.subarray(begin, end);
                    let good = part.length === end - begin;
                    for (let at = begin; good && at < end; at += 1) good = part[at - begin] === Math.imul(at, 0x9e3779b1) >>> 24;
                    if (!good) wrong.push([name, begin, end, part.length]);
                }
            }
            postMessage(wrong);
        };
        const code = `onmessage = ({ data }) => (${work})(data)`;
        const worker = new Worker(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })), { type: 'module' });
        return new Promise((resolve, reject) => {
            worker.onmessage = ({ data }) => resolve(data);
            worker.onerror = (event) => reject(new Error(event.message));
            worker.postMessage(bytes);
        });
    }, bytes);
    assert.deepEqual(found, []);
    await page.check();
});

test('a data file that is not whole is told, and is not kept', async () => {
    const cut = scratch('cut');
    cpSync(standard, cut, { recursive: true });
    const path = join(cut, 'onnx/decoder_model_merged_q4.onnx_data');
    const whole = readFileSync(path);
    writeFileSync(path, whole.subarray(0, whole.length - 1));
    const page = await visit(started, `${await host(cut)}?dtype=q4&device=wasm`);
    await state(page, 'problem');
    const sizes = `has ${whole.length - 1} bytes, expected ${whole.length}`;
    await until(page, `onnx/decoder_model_merged_q4.onnx_data ${sizes}`, '#problem');
    writeFileSync(path, whole);
    await page.reload();
    await state(page, 'idle');
    await answers(page, ['scene_1.png']);
    await page.check();
});

// Shaders of software take a minute on two cores: only on request, and with patience.
test('WebGPU, played by the processor', { skip: !process.env.FVLM_WEBGPU && 'asked for by scripts/check_page --webgpu' }, async (t) => {
    const flags = ['--enable-unsafe-webgpu', '--enable-unsafe-swiftshader', '--use-webgpu-adapter=swiftshader'];
    const page = await visit(await browser(...flags), `${await host(site)}?device=webgpu`);
    page.setDefaultTimeout(10 * PATIENCE);
    await page.locator('#state[data-state="idle"], #state[data-state="problem"]').waitFor();
    if (!(await page.evaluate(async () => Boolean(await navigator.gpu?.requestAdapter())))) {
        assert.match(await text(page, '#problem'), /no WebGPU/);
        t.diagnostic('SwiftShader offers no WebGPU here: the page said so; nothing was computed on WebGPU');
        return page.check();
    }
    assert.match(await text(page, '#model'), /by WebGPU/);
    await answers(page, ['scene_5.png']);
    return page.check();
});

test('without vendor/: the published files, by their hashes; others are refused', async () => {
    const bare = scratch('bare');
    cpSync(site, bare, { recursive: true, filter: (path) => basename(path) !== 'vendor' });
    const files = new Map(PACKAGES.map((path) => [basename(path), path]));
    // The address has the version that is installed here.
    const version = (path) => JSON.parse(readFileSync(join(dirname(dirname(path)), 'package.json'), 'utf8')).version;
    const places = [
        `/npm/@huggingface/transformers@${version(LIBRARY)}/dist/`,
        `/npm/onnxruntime-web@${version(ENGINE[0])}/dist/`,
    ];
    const asked = [];
    /** The network of packages, played: Chromium reaches nothing but loopback. */
    const played = (change) => (context) =>
        context.route(/^https:/, (route) => {
            const { pathname } = new URL(route.request().url());
            asked.push(pathname);
            const name = places.map((place) => pathname.startsWith(place) && pathname.slice(place.length)).find(Boolean);
            if (!files.has(name)) return route.abort();
            const headers = { 'access-control-allow-origin': '*' };
            return route.fulfill({ status: 200, headers, body: change(readFileSync(files.get(name))) });
        });
    const page = await visit(started, `${await host(bare)}?device=wasm`, { expected: EXPECTED, route: played((bytes) => bytes) });
    await state(page, 'idle');
    await answers(page, ['scene_1.png']);
    await page.check();
    assert.equal(asked.length, 3, asked.join(' '));

    const changed = played((bytes) => Buffer.concat([bytes, Buffer.from('\n')]));
    const wrong = await visit(started, `${await host(bare)}?device=wasm`, { expected: [...EXPECTED, /integrity/], route: changed });
    await state(wrong, 'problem');
    await until(wrong, 'is neither in vendor/ nor can it be fetched as published', '#problem');
    await wrong.check();
});

test('what is not beside the page is told', async () => {
    const alone = scratch('alone');
    cpSync(site, alone, { recursive: true, filter: (path) => basename(path) !== 'onnx' });
    const page = await visit(started, `${await host(alone)}?device=wasm`, { expected: EXPECTED });
    await state(page, 'problem');
    assert.match(await text(page, '#problem'), /The model cannot be loaded.*onnx/);
    await page.check();
    writeFileSync(join(alone, 'bundle.json'), '');
    const broken = await visit(started, await host(alone), { expected: EXPECTED });
    await state(broken, 'problem');
    assert.match(await text(broken, '#problem'), /bundle\.json|JSON/);
    await broken.check();
});
