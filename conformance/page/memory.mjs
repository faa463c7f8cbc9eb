// Memory of the static page: what its worker, transformers.js and the engine take of a renderer process. scripts/check_page --memory SITE [DTYPE..]
// SITE is what `fvlm-export --self-contained --page` wrote, any model. Linux: peaks are the system's (VmHWM), set back before each phase.
import { cpSync, mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { PACKAGES, SCENES, browser, finish, host, scratch } from './browser.mjs';

const [, , given, ...asked] = process.argv;
if (!given) {
    console.error('error: expected SITE [DTYPE..], a folder that `fvlm-export --self-contained --page` wrote');
    process.exit(2);
}
const source = resolve(given);
const bundle = JSON.parse(readFileSync(join(source, 'bundle.json'), 'utf8'));
/** Tokens of an answer: some steps of the decoder after the prompt. */
const TOKENS = Number(process.env.FVLM_PAGE_TOKENS ?? 8);

/** What the page's own modules do, without what is drawn. */
const BLANK = '<!doctype html><html lang="en"><title>memory</title></html>';
/** Counts the memories that the engine makes in its worker. */
const HOOK = `{
    const Memory = WebAssembly.Memory;
    self.memories = [];
    WebAssembly.Memory = class extends Memory { constructor(given) { super(given); self.memories.push(this); } };
}
`;

/** A folder with the site's files and the packages: links, for there may be gigabytes. */
function site() {
    const folder = scratch('memory');
    mkdirSync(folder);
    for (const name of readdirSync(source)) if (name !== 'vendor') symlinkSync(join(source, name), join(folder, name));
    mkdirSync(join(folder, 'vendor'));
    for (const file of PACKAGES) cpSync(file, join(folder, 'vendor', basename(file)));
    writeFileSync(join(folder, 'blank.html'), BLANK);
    return folder;
}

/** Processes below this one, with Chromium's name of their kind. */
function processes() {
    const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map((pid) => {
        try {
            const parent = Number(readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ')[1]);
            const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
            return { pid: Number(pid), parent, kind: /--type=([a-z-]+)/.exec(command)?.[1] ?? 'browser', command };
        } catch {
            return null;
        }
    }).filter(Boolean);
    const mine = new Set([process.pid]);
    for (let before = 0; before !== mine.size; ) {
        before = mine.size;
        for (const { pid, parent } of all) if (mine.has(parent)) mine.add(pid);
    }
    return all.filter(({ pid, command }) => pid !== process.pid && mine.has(pid) && command.includes('chrom'));
}

const field = (text, name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? NaN) * 1024;

/** Largest resident size since `clear`, by kind of process: of renderers the largest one, of others their sum. */
function peaks() {
    const found = { renderer: 0, others: 0 };
    for (const { pid, kind } of processes()) {
        try {
            const peak = field(readFileSync(`/proc/${pid}/status`, 'utf8'), 'VmHWM');
            if (kind === 'renderer') found.renderer = Math.max(found.renderer, peak);
            else if (peak > 0) found.others += peak;
        } catch {
            // It has ended.
        }
    }
    return found;
}

function clear() {
    for (const { pid } of processes()) {
        try {
            writeFileSync(`/proc/${pid}/clear_refs`, '5');
        } catch {
            // It has ended.
        }
    }
}

const mega = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;

/** Bytes of a form's graphs and data, each file once. */
function weights(form) {
    const wanted = new Set([form.vision_encoder, form.embed_tokens, form.decoder].flatMap(({ path, data }) => [path, ...data]));
    return bundle.files.filter(({ path }) => wanted.has(path)).reduce((sum, { bytes }) => sum + bytes, 0);
}

async function measure(address, form) {
    const started = await browser();
    const context = await started.newContext();
    const page = await context.newPage();
    page.setDefaultTimeout(0);
    const worker = async (route) => {
        const response = await route.fetch();
        await route.fulfill({ response, body: HOOK + (await response.text()) });
    };
    await context.route('**/page/worker.js', worker);
    await page.goto(`${address}blank.html?device=wasm&dtype=${form.precision}`);
    const heap = async () => {
        const sizes = await Promise.all(page.workers().map((one) => one.evaluate(() => self.memories?.map(({ buffer }) => buffer.byteLength) ?? [])));
        return Math.max(0, ...sizes.flat());
    };
    const found = { form, weights: weights(form), empty: peaks() };
    const say = (phase, { renderer, others }, heap) =>
        console.error(`${form.target} ${form.precision}, ${phase}: renderer ${mega(renderer)}, engine ${mega(heap)}, others ${mega(others)}`);
    try {
        for (const name of ['first', 'load']) {
            if (name === 'load') await page.reload();
            clear();
            await page.evaluate(async () => {
                const { open } = await import('./page/bundle.js');
                globalThis.local = await open();
                await globalThis.local.load(() => {});
            });
            found[name] = peaks();
            say(name, found[name], await heap());
        }
        found.loaded = await heap();
        const picture = readFileSync(join(SCENES, 'scene_1.png')).toString('base64');
        clear();
        const tokens = await page.evaluate(
            async ([picture, maxTokens]) => {
                const image = await (await fetch(`data:image/png;base64,${picture}`)).blob();
                const { signal } = new AbortController();
                const answer = await globalThis.local.answer({ image, question: 'Describe the image.', maxTokens, signal, onText: () => {} });
                return answer.tokens;
            },
            [picture, TOKENS],
        );
        Object.assign(found, { answer: peaks(), heap: await heap(), tokens });
    } catch (error) {
        found.problem = String(error.message).split('\n')[0];
        found.heap = await heap().catch(() => 0);
        found.last = peaks();
    }
    await started.close();
    return found;
}

try {
    const address = await host(site());
    // Those that the page finds: beside a standard form, a fused one of the same precision has another name.
    const standard = new Set(bundle.variants.filter(({ target }) => target === 'portable').map(({ precision }) => precision));
    const found = ({ target, precision }) => target === 'portable' || (target === 'cpu' && precision !== 'fp32' && !standard.has(precision));
    const forms = bundle.variants.filter((form) => found(form) && (!asked.length || asked.includes(form.precision)));
    if (!forms.length) throw new Error(`${given} has no form in ${asked.join(', ')}`);
    console.log('| form | files | renderer without a model | loaded from the network | loaded from the cache | answering | engine\'s memory after loading, after an answer | other processes, without a model, loading |');
    console.log('|---|---|---|---|---|---|---|---|');
    for (const form of forms) {
        const { weights: bytes, empty, first, load, loaded, answer, heap, problem, last } = await measure(address, form);
        const of = (phase) => (phase ? `${mega(phase.renderer)} (${(phase.renderer / bytes).toFixed(2)})` : '–');
        const cells = [
            `\`${form.target}\` ${form.precision}`, mega(bytes), mega(empty.renderer), of(first), of(load), of(answer ?? (problem && last)),
            `${loaded ? mega(loaded) : '–'}, ${mega(heap)}`,
            `${mega(empty.others)}, ${mega(Math.max(first?.others ?? 0, load?.others ?? 0))}`,
        ];
        console.log(`| ${cells.join(' | ')} |${problem ? `\n\n${form.precision}: ${problem}\n` : ''}`);
    }
} finally {
    await finish();
}
