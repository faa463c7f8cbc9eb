// The page: what is looked at, what is asked, what is said, and how long it took. Which answerer says it stands in index.html.

import { draw, duration } from './chart.js';
import { History } from './history.js';
import { Prompts } from './prompts.js';
import { SAMPLES, sample } from './samples.js';
import { NoSource, Sources } from './sources.js';
import { Speech } from './speech.js';

const $ = (id) => document.getElementById(id);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const SETTINGS = 'fvlm-settings';
const KEY = 'fvlm-key';
/** So many refusals one behind the other end a live view. */
const PATIENCE = 5;

const STATES = {
    loading: 'loading',
    idle: 'idle',
    processing: 'processing prompt',
    generating: 'generating',
    problem: 'not ready',
};

let answerer = null;
/** The answer that is being made: its AbortController, and why it was ended, once it was. */
let running = null;
let live = false;

// What is shown.

function state(name, detail = '') {
    $('state').dataset.state = name;
    $('state-text').textContent = detail ? `${STATES[name]} ${detail}` : STATES[name];
    const busy = name === 'processing' || name === 'generating';
    $('stop').disabled = !busy && !live;
    $('once').disabled = live;
}

function problem(message) {
    $('problem').hidden = !message;
    $('problem').textContent = message ?? '';
}

function hint(message) {
    $('hint').hidden = !message;
    $('hint').textContent = message ?? '';
}

const speech = new Speech($('announce'), () => $('speak').checked);
const sources = new Sources($('video'), $('still'), (reason) => {
    endLive();
    hint(reason);
    marks();
});
const history = new History($('history'), (count) => {
    $('save').disabled = $('clear').disabled = count === 0;
    $('empty').hidden = count > 0;
});
const fields = { fieldset: $('prompts'), question: $('question'), suffix: $('suffix'), thing: $('thing'), thingField: $('thing-field') };
const prompts = new Prompts(fields, remember);

/** Which of the sources is in use. */
function marks(file = null) {
    $('camera').setAttribute('aria-pressed', String(sources.kind === 'camera'));
    $('screen').setAttribute('aria-pressed', String(sources.kind === 'screen'));
    for (const button of $('samples').querySelectorAll('button')) {
        button.setAttribute('aria-pressed', String(button.dataset.file === file));
    }
    const several = (cameras) => ($('flip').hidden = sources.kind !== 'camera' || cameras.length < 2);
    sources.cameras().then(several, () => {});
}

function chart() {
    const timed = history.answers.filter((answer) => answer.first !== undefined);
    const bars = timed.map(({ first, timings }) => ({ first, encode: timings.encode, prefill: timings.prefill }));
    const middle = draw($('chart'), bars);
    $('median').textContent = bars.length > 1 ? `median ${duration(middle)}` : '';
}

function times(first, { timings }) {
    const { first: there, encode, encoded, prefill, reused, speed, queued, prepare } = timings;
    $('t-first').textContent = duration(first);
    $('t-first-more').textContent = there === undefined ? 'measured here' : `${answerer.place}: ${duration(there)}`;
    $('t-encode').textContent = encoded === 0 ? 'kept' : duration(encode);
    $('t-encode-more').textContent = encoded === 0 ? 'seen before' : 'the image';
    $('t-prefill').textContent = duration(prefill);
    $('t-speed').textContent = Number.isFinite(speed) && speed > 0 ? speed.toFixed(speed < 10 ? 1 : 0) : '–';
    const more = [
        prepare > 0 && `picture prepared in ${duration(prepare)}`,
        queued >= 1 && `waited ${duration(queued)}`,
        reused > 0 && `${reused} positions reused`,
    ];
    $('t-more').textContent = more.filter(Boolean).join(' · ');
}

// What is done.

/** Runs what may find no source, and says why it did not. The picture before stays. */
async function choose(action, file = null) {
    problem(null);
    try {
        await action();
        hint(null);
    } catch (error) {
        if (!(error instanceof NoSource)) console.warn(error);
        else if (!error.message) return false;
        endLive();
        hint(error.message);
        if (!sources.picture && !sources.stream) await still();
        marks();
        return false;
    }
    marks(file);
    return true;
}

/** The picture that stands where there is no other. Whatever is chosen meanwhile is preferred. */
async function still() {
    const { file, alt } = SAMPLES[0];
    const turn = sources.wanted;
    try {
        await sources.file(await sample(file), file, alt, turn);
        if (sources.kind === 'file' && turn === sources.wanted) marks(file);
    } catch (error) {
        hint(error.message);
    }
}

async function chooseFile(file) {
    if (!file) return;
    endLive();
    await choose(() => sources.file(file, file.name || 'The pasted picture', `Your picture ${file.name ?? ''}`));
}

/** Asks about what is seen now. Whether there may be another question after it: false after an error. */
async function ask({ cut = 0 } = {}) {
    if (running) return false;
    const question = prompts.text;
    if (!question) {
        problem('The question is empty.');
        return false;
    }
    const job = { control: new AbortController(), ended: '' };
    running = job;
    problem(null);
    $('note').textContent = '';
    $('asked').textContent = question;
    // A live view keeps the last answer in sight until the next one begins.
    $('caption').classList.toggle('waiting', !live);
    if (!live) $('caption').textContent = '…';
    const timer = cut > 0 ? setTimeout(() => stop('cut off'), cut) : 0;
    let first;
    let said = { text: '', finish: null, timings: {} };
    let thumbnail;
    let again = true;
    try {
        const begin = performance.now();
        state('processing');
        if (!answerer.ready) await load();
        job.control.signal.throwIfAborted();
        const frame = await sources.frame();
        thumbnail = frame.thumbnail;
        const onText = (text) => {
            if (running !== job || job.control.signal.aborted) return;
            if (first === undefined) {
                first = performance.now() - begin;
                $('t-first').textContent = duration(first);
                $('caption').classList.remove('waiting');
                state('generating');
            }
            said.text = text;
            $('caption').textContent = text;
        };
        const options = { image: frame.image, question, maxTokens: tokens(), signal: job.control.signal, onText };
        said = await answerer.answer(options);
        if (said.finish === 'length') job.ended = `ended at ${tokens()} tokens`;
    } catch (error) {
        const stopped = job.control.signal.aborted;
        again = stopped;
        if (!stopped) {
            if (error.status === 401) return await wantKey();
            again = live && error.status === 429;
            job.ended = 'failed';
            clearTimeout(timer);
            if (again) {
                const stopped = new Promise((done) => job.control.signal.addEventListener('abort', done, { once: true }));
                await Promise.race([wait(error.retry ?? 1000), stopped]);
            } else problem(error.message);
        }
    } finally {
        clearTimeout(timer);
        running = null;
        $('caption').classList.remove('waiting');
        state(answerer.ready ? 'idle' : 'problem');
    }
    if (job.ended !== 'failed' || said.text) {
        $('caption').textContent = said.text || (job.ended ? '' : '(the answer is empty)');
        $('note').textContent = job.ended;
        times(first, said);
        if (thumbnail && (said.text || !job.ended)) {
            history.add({ ...said, question, ended: job.ended, first, thumbnail, when: new Date() });
            chart();
        }
        if (job.ended !== 'stopped') speech.say(said.text, { newest: !live });
    } else if (!live) {
        $('caption').textContent = '';
    }
    return again;
}

function stop(why = 'stopped') {
    if (!running) return;
    running.ended = why;
    running.control.abort();
}

async function goLive() {
    if (live) return endLive();
    // One that is being opened is waited for: a second one would push it out.
    await sources.opening;
    if (!sources.moving && !(await choose(() => sources.camera()))) return;
    if (live) return;
    live = true;
    marked();
    // One answer that is under way is waited for.
    while (running) await wait(20);
    let refused = 0;
    while (live) {
        if (document.hidden) {
            await wait(200);
            continue;
        }
        refused = (await ask({ cut: Number($('cut').value) })) ? 0 : refused + 1;
        if (!$('problem').hidden || refused >= PATIENCE) endLive();
        await wait(live ? Number($('pause').value) : 0);
    }
}

function endLive() {
    live = false;
    marked();
}

function marked() {
    $('live').setAttribute('aria-pressed', String(live));
    $('live-text').textContent = live ? 'End live' : 'Live';
    state($('state').dataset.state);
}

const tokens = () => Math.min(2048, Math.max(1, Math.trunc(Number($('tokens').value)) || 64));

// The answerer.

async function load() {
    const loaded = (share) => state('loading', `${Math.floor(share * 100)} %`);
    await answerer.load(loaded);
    $('model').textContent = [answerer.name, answerer.detail].filter(Boolean).join(' · ');
}

async function begin() {
    state('loading');
    const name = document.querySelector('meta[name="fvlm-answerer"]').content;
    const { open } = await import(new URL(name, import.meta.url));
    try {
        answerer = await open({ key: sessionStorage.getItem(KEY) });
        $('model').textContent = [answerer.name, answerer.detail].filter(Boolean).join(' · ');
        document.title = `${answerer.name} – FastVLM`;
        problem(null);
        if (!answerer.ready && answerer.small) await load();
        state('idle');
    } catch (error) {
        state('problem');
        if (error.status === 401) return wantKey();
        problem(error.message);
    }
}

/** Asks for the API key, and opens the server with it. */
function wantKey() {
    endLive();
    const refused = sessionStorage.getItem(KEY) !== null;
    $('key-problem').hidden = !refused;
    $('key-problem').textContent = refused ? 'The server did not take that key.' : '';
    sessionStorage.removeItem(KEY);
    if (!$('key-dialog').open) $('key-dialog').showModal();
    return false;
}

// Settings, which outlive the tab; the key does not.

const REMEMBERED = ['tokens', 'cut', 'pause'];

function remember() {
    const kept = { prompts: prompts.state, speak: $('speak').checked, keys: $('keys').checked };
    for (const id of REMEMBERED) kept[id] = $(id).value;
    try {
        localStorage.setItem(SETTINGS, JSON.stringify(kept));
    } catch {
        // Storage that is full or forbidden: the settings hold until the tab is closed.
    }
}

function recall() {
    try {
        const kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
        for (const id of REMEMBERED) if (kept[id] !== undefined) $(id).value = kept[id];
        $('speak').checked = kept.speak ?? false;
        $('keys').checked = kept.keys ?? true;
        if (kept.prompts) prompts.state = kept.prompts;
    } catch {
        // Of another version, or forbidden.
    }
}

// What the buttons, keys and hands do.

for (const { file, alt } of SAMPLES) {
    const item = document.createElement('li');
    const button = document.createElement('button');
    const image = document.createElement('img');
    Object.assign(image, { src: new URL(`samples/${file}`, import.meta.url).href, alt, loading: 'lazy', width: 60, height: 60 });
    button.type = 'button';
    button.dataset.file = file;
    button.setAttribute('aria-pressed', 'false');
    button.append(image);
    item.append(button);
    $('samples').append(item);
    button.addEventListener('click', async () => {
        endLive();
        if (await choose(async () => sources.file(await sample(file), file, alt), file)) await whenFree(ask);
    });
}

/** Ends the answer that is being made, if there is one, and does something after it. */
async function whenFree(action) {
    stop();
    while (running) await wait(10);
    if (answerer) await action();
}

const once = () => answerer && !live && whenFree(ask);
const halt = () => {
    endLive();
    stop();
    speech.quiet();
};

$('live').addEventListener('click', () => answerer && goLive());
$('once').addEventListener('click', once);
$('stop').addEventListener('click', halt);
$('camera').addEventListener('click', () => choose(() => sources.camera()));
$('flip').addEventListener('click', () => choose(() => sources.camera({ next: true })));
$('screen').addEventListener('click', () => choose(() => sources.screen()));
$('pick').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', async () => {
    const [file] = $('file').files;
    await chooseFile(file);
    // The same file again is a change too.
    $('file').value = '';
});
$('save').addEventListener('click', () => {
    const url = URL.createObjectURL(new Blob([history.lines], { type: 'application/x-ndjson' }));
    Object.assign(document.createElement('a'), { href: url, download: 'fastvlm-answers.jsonl' }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
});
$('clear').addEventListener('click', () => {
    history.clear();
    chart();
});
$('speak').disabled = !speech.able;
$('speak').addEventListener('change', () => $('speak').checked || speech.quiet());
for (const id of [...REMEMBERED, 'speak', 'keys']) $(id).addEventListener('change', remember);
$('question').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) once();
});

document.addEventListener('paste', (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith('image/'));
    if (!file) return;
    event.preventDefault();
    chooseFile(file);
});
const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
document.addEventListener('dragover', (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    document.body.classList.add('dragging');
});
document.addEventListener('dragleave', (event) => event.relatedTarget ?? document.body.classList.remove('dragging'));
document.addEventListener('drop', (event) => {
    document.body.classList.remove('dragging');
    if (!carries(event)) return;
    event.preventDefault();
    chooseFile(event.dataTransfer.files[0]);
});

document.addEventListener('keydown', (event) => {
    if ($('key-dialog').open) return;
    if (event.key === 'Escape') return halt();
    const writing = event.target.closest?.('input:not([type="radio"]):not([type="checkbox"]), textarea, select');
    if (writing || !$('keys').checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const action = { l: () => $('live').click(), s: once, f: () => $('flip').hidden || $('flip').click() }[event.key.toLowerCase()];
    if (action) return action();
    if (event.key >= '1' && event.key <= '6') {
        prompts.choose(Number(event.key) - 1);
        remember();
    }
});

$('key-dialog').addEventListener('cancel', (event) => event.preventDefault());
$('key-form').addEventListener('submit', () => {
    sessionStorage.setItem(KEY, $('key').value);
    $('key').value = '';
    begin();
});

/** What is seen first. Who allowed the camera before sees it at once; nobody is asked before they did something. */
async function look() {
    const permission = await navigator.permissions?.query({ name: 'camera' }).catch(() => null);
    const granted = permission?.state === 'granted' && (await sources.cameras()).length > 0;
    // What was chosen meanwhile is preferred.
    if (sources.wanted > 0) return;
    if (granted) await choose(() => sources.camera());
    else {
        await still();
        if (sources.wanted === 0 && !navigator.mediaDevices?.getUserMedia) await choose(() => sources.camera());
    }
}

new ResizeObserver(chart).observe($('chart'));
recall();
chart();
begin();
// A question that comes before the first picture waits for it.
sources.awaited(look());
