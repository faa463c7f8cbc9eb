// What the tests of the page share: Chromium under guard, servers on loopback, a camera's clip.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createReadStream, existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));
/** Folders of the programs and of the npm packages: scripts/check_page says where. */
export const { FVLM_BIN: BIN, FVLM_NODE: NODE, FVLM_CHROMIUM: CHROMIUM = '/usr/bin/chromium' } = process.env;
export const require = createRequire(join(NODE, 'any.js'));
const { chromium } = require('playwright-core');
const sharp = require('sharp');

/** The files of the packages that the static page loads, where npm has put them: nothing of it is fetched from elsewhere. */
export const LIBRARY = join(NODE, 'node_modules/@huggingface/transformers/dist/transformers.min.js');
export const ENGINE = ['', '.asyncify'].flatMap((build) =>
    ['mjs', 'wasm'].map((end) => join(NODE, `node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded${build}.${end}`)),
);
export const PACKAGES = [LIBRARY, ...ENGINE];

export const PAGE = join(ROOT, 'runtime/server/page');
export const SCENES = join(ROOT, 'models/demo/scenes');
/** What the demo model says of each scene. */
export const TOLD = new Map(
    JSON.parse(readFileSync(join(SCENES, 'scenes.json'), 'utf8')).map(({ image, questions }) => [image, questions[0].answer]),
);

/** Long enough for a busy machine; nothing is measured by it. */
export const PATIENCE = 120_000;

const work = mkdtempSync(join(tmpdir(), 'fvlm-page-'));
const closing = [];
export const scratch = (name) => join(work, name);

/** Ends everything that was started. */
export async function finish() {
    for (const close of closing.reverse()) await close();
    rmSync(work, { recursive: true, force: true });
}

/** A browser that reaches loopback alone. `args` are Chromium's. */
export async function browser(...args) {
    // Everything that has a name or is elsewhere does not exist; `page.test` is this machine, by a name that is not trusted.
    const rules = '--host-resolver-rules=MAP page.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1';
    const options = { executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-background-networking', rules, ...args] };
    const started = await chromium.launch(options);
    closing.push(() => started.close());
    return started;
}

/** Pages that were not checked yet. */
const open = new Set();

const LOOPBACK = /^(https?:\/\/(127\.0\.0\.1|page\.test)(:\d+)?\/|data:|blob:)/;

/**
 * A page at an address. `check()` fails if it complained on the console, or asked for anything that is not on loopback.
 * `expected` are complaints that a test is about.
 */
export async function visit(started, address, { expected = [], settings = {}, before = null, route = null } = {}) {
    const context = await started.newContext({ viewport: { width: 1280, height: 860 }, ...settings });
    // A test that failed leaves no page behind that goes on asking.
    await Promise.all([...open].map((one) => one.close()));
    open.clear();
    open.add(context);
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE);
    const complaints = [];
    const elsewhere = [];
    page.on('console', (message) => {
        const text = message.text();
        const bad = message.type() === 'error' || /Content Security Policy/.test(text);
        if (bad && !expected.some((one) => one.test(text))) complaints.push(text);
    });
    page.on('pageerror', (error) => complaints.push(String(error)));
    context.on('request', (request) => LOOPBACK.test(request.url()) || elsewhere.push(request.url()));
    if (before) await page.addInitScript(before);
    if (route) await route(context);
    await page.goto(address);
    return Object.assign(page, {
        elsewhere,
        check: async () => {
            assert.deepEqual(complaints, [], 'complaints on the console');
            if (!route) assert.deepEqual(elsewhere, [], 'requests that leave loopback');
            open.delete(context);
            await context.close();
        },
    });
}

export const text = (page, selector) => page.locator(selector).innerText();
export const state = (page, name) => page.locator(`#state[data-state="${name}"]`).waitFor();
export const until = async (page, what, selector) => {
    await page.waitForFunction(([what, selector]) => document.querySelector(selector)?.textContent.includes(what), [what, selector]);
};

/** A port that is free now. */
export function port() {
    return new Promise((resolve, reject) => {
        const probe = net.createServer().on('error', reject);
        probe.listen(0, '127.0.0.1', () => {
            const { port } = probe.address();
            probe.close(() => resolve(port));
        });
    });
}

/** Runs a program to its end. */
export function run(program, ...args) {
    return new Promise((resolve, reject) => {
        const child = spawn(join(BIN, program), args, { stdio: ['ignore', 'ignore', 'pipe'] });
        let said = '';
        child.stderr.on('data', (data) => (said += data));
        child.on('error', reject);
        child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`${program} ${args.join(' ')}: exit code ${code}: ${said}`))));
    });
}

/** fvlm-serve with a bundle; its address. */
export async function serve(bundle, ...args) {
    const number = await port();
    const child = spawn(join(BIN, 'fvlm-serve'), ['--model', bundle, '--port', String(number), ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    let ended = false;
    child.stderr.on('data', (data) => (said += data));
    const gone = new Promise((resolve) => child.on('exit', () => resolve((ended = true))));
    closing.push(() => {
        child.kill('SIGKILL');
        return gone;
    });
    const address = `http://127.0.0.1:${number}/`;
    for (let tries = 0; tries < 600; tries += 1) {
        if (ended) throw new Error(`fvlm-serve ended: ${said}`);
        const response = await fetch(`${address}health`).catch(() => null);
        if (response?.ok) return address;
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`fvlm-serve does not answer: ${said}`);
}

const KINDS = {
    '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml',
    '.png': 'image/png', '.jpg': 'image/jpeg', '.json': 'application/json', '.wasm': 'application/wasm', '.md': 'text/markdown',
};

function file(response, path) {
    if (!existsSync(path) || !statSync(path).isFile()) {
        response.writeHead(404).end();
        return;
    }
    response.writeHead(200, { 'content-type': KINDS[extname(path)] ?? 'application/octet-stream', 'content-length': statSync(path).size });
    createReadStream(path).pipe(response);
}

async function listen(handler) {
    const server = http.createServer(handler);
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    closing.push(() => new Promise((resolve) => (server.closeAllConnections(), server.close(resolve))));
    return server.address().port;
}

/** A host of files, as any is. */
export async function host(folder) {
    const number = await listen((request, response) => {
        const path = normalize(decodeURIComponent(new URL(request.url, 'http://x/').pathname));
        file(response, join(folder, path === '/' ? 'index.html' : path));
    });
    return `http://127.0.0.1:${number}/`;
}

/** A server that says what a test wants, with the page's own files: `chat(body, request, response)`, `models(request, response)`. */
export async function stand_in({ chat, models }) {
    const number = await listen((request, response) => {
        const path = new URL(request.url, 'http://x/').pathname;
        if (path === '/v1/models') {
            if (models) return models(request, response);
            return response.writeHead(200, { 'content-type': 'application/json' }).end('{"data":[{"id":"stand-in"}]}');
        }
        if (path === '/v1/chat/completions') {
            let body = '';
            request.on('data', (data) => (body += data));
            request.on('end', () => chat(JSON.parse(body), request, response));
            return undefined;
        }
        if (path.startsWith('/page/samples/')) return file(response, join(SCENES, path.slice('/page/samples/'.length)));
        return file(response, path === '/' ? join(PAGE, 'index.html') : join(PAGE, path.replace(/^\/page/, '')));
    });
    return { address: `http://127.0.0.1:${number}/`, named: `http://page.test:${number}/` };
}

/** One event of a stream. */
export const event = (response, data) => response.write(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`);
export const words = (response, content) => event(response, { choices: [{ index: 0, delta: { content }, finish_reason: null }] });

/** A whole answer. */
export function said(response, content, fvlm = {}) {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    words(response, content);
    event(response, { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] });
    event(response, { choices: [], usage: { completion_tokens: 3 }, fvlm });
    event(response, '[DONE]');
    response.end();
}

/** A clip for Chromium's camera: each scene for so many frames, as a camera sees it, wider than high. Motion JPEG. */
export async function clip(scenes, frames) {
    const { writeFile } = await import('node:fs/promises');
    const parts = [];
    for (const scene of scenes) {
        const square = await sharp(join(SCENES, scene)).resize(480, 480, { kernel: 'lanczos3' }).toBuffer();
        // No two frames of a camera are equal: a hand moves it a little.
        const moved = [0, 1, 2, 3, 2, 1].map((by) => {
            const options = { left: 78 + by, right: 82 - by, background: '#777' };
            return sharp(square).extend(options).jpeg({ quality: 92, chromaSubsampling: '4:2:0' }).toBuffer();
        });
        const ready = await Promise.all(moved);
        for (let frame = 0; frame < frames; frame += 1) parts.push(ready[frame % ready.length]);
    }
    const path = scratch(`${scenes.join('-')}.mjpeg`);
    await writeFile(path, Buffer.concat(parts));
    return path;
}

/** Fails on what axe-core calls serious or critical. */
export async function accessible(page, where) {
    const source = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
    await page.evaluate(source);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const faults = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
    const told = faults.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
    assert.deepEqual(told, [], `axe-core, ${where}`);
}
