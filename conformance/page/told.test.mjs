// What the page does about a server that is slow, busy, locked, broken or gone, and about cameras that are not to be had.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { SCENES, accessible, browser, event, finish, said, stand_in, state, text, until, visit, words } from './browser.mjs';

let plain;
/** Requests that the stand-in got, and what it does about the next. */
let asked = [];
let chat;
let models = null;
let place;
const BUSY = /status of 429/;

before(async () => {
    plain = await browser();
    place = await stand_in({
        chat: (body, request, response) => {
            asked.push(body);
            return chat(body, request, response);
        },
        models: (request, response) => (models ? models(request, response) : known(response)),
    });
});
after(finish);

const known = (response) => response.writeHead(200, { 'content-type': 'application/json' }).end('{"data":[{"id":"stand-in"}]}');
/** Whether a request has just the bytes of a sample. */
const same = (body, scene) => {
    const { url } = body.messages[0].content[0].image_url;
    return url === `data:image/png;base64,${readFileSync(join(SCENES, scene)).toString('base64')}`;
};
const begin = async (options = {}, started = plain, address = place.address) => {
    asked = [];
    const page = await visit(started, address, options);
    await state(page, 'idle');
    return page;
};

test('text streams in, state by state, and Stop ends the request', async () => {
    let closed;
    const gone = new Promise((resolve) => (closed = resolve));
    let go;
    chat = (_, request, response) => {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        response.flushHeaders();
        request.socket.on('close', closed);
        go = () => words(response, 'A slow');
    };
    const page = await begin();
    await page.click('#once');
    await state(page, 'processing');
    assert.match(await text(page, '#state'), /processing prompt/);
    while (!go) await page.waitForTimeout(10);
    go();
    await state(page, 'generating');
    await until(page, 'A slow', '#caption');
    await page.click('#stop');
    await state(page, 'idle');
    await gone;
    assert.equal(await text(page, '#caption'), 'A slow');
    assert.equal(await text(page, '#note'), 'stopped');
    assert.match(await text(page, '#history'), /A slow\s+.*stopped/);
    // Escape is the same.
    go = null;
    await page.click('#once');
    while (!go) await page.waitForTimeout(10);
    go();
    await state(page, 'generating');
    await page.keyboard.press('Escape');
    await state(page, 'idle');
    await page.check();
});

test('the request is of the interface, and times are shown', async () => {
    const fvlm = { first_token_ms: 50, queued_ms: 3, preprocess_ms: 4, encode_ms: 21, prefill_ms: 12, tokens_per_second: 33, images_encoded: 1, reused_positions: 7 };
    chat = (_, __, response) => said(response, 'A word.', fvlm);
    const page = await begin();
    await page.click('summary');
    await page.fill('#tokens', '17');
    await page.click('#prompts label:has-text("Is there")');
    await page.fill('#thing', 'apple');
    await page.fill('#suffix', 'Answer yes or no.');
    await page.click('#once');
    await until(page, 'A word.', '#caption');
    await state(page, 'idle');
    const [body] = asked;
    const { messages, ...rest } = body;
    assert.deepEqual(rest, { model: 'stand-in', stream: true, stream_options: { include_usage: true }, temperature: 0, max_tokens: 17 });
    const [{ role, content }] = messages;
    assert.equal(role, 'user');
    assert.deepEqual(content[1], { type: 'text', text: 'Is there an apple? Answer yes or no.' });
    // A small PNG goes as it is.
    assert.ok(same(body, 'scene_1.png'));
    const times = await text(page, '.timings');
    for (const part of ['server: 50 ms', '21 ms', '12 ms', '33']) assert.ok(times.includes(part), `${part} in ${times}`);
    assert.match(await text(page, '#t-more'), /prepared in 4.0 ms · waited 3.0 ms · 7 positions reused/);
    assert.match(await page.locator('#chart svg').getAttribute('aria-label'), /last 1 answers: median \d+/);
    assert.equal(await page.locator('#chart rect').count(), 3);
    assert.match(await text(page, '#history'), /encode 21 ms · prefill 12 ms/);
    assert.equal(await text(page, '#announce'), 'A word.');
    // What was seen before is not encoded again.
    chat = (_, __, response) => said(response, 'Again.', { ...fvlm, images_encoded: 0, encode_ms: 0 });
    await page.click('#once');
    await until(page, 'Again.', '#caption');
    await until(page, 'kept', '#t-encode');
    // Saved without pictures; cleared.
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#save')]);
    const lines = readFileSync(await download.path(), 'utf8').trim().split('\n').map((line) => JSON.parse(line));
    assert.deepEqual(lines.map((line) => line.text), ['A word.', 'Again.']);
    assert.equal(lines[0].timings.encode, 21);
    assert.ok(lines.every((line) => line.thumbnail === undefined));
    await page.click('#clear');
    assert.equal(await page.locator('#history li').count(), 0);
    await page.check();
});

test('answers of a server that is in trouble are told', async () => {
    const status = (code, body, headers = {}) => (_, __, response) =>
        response.writeHead(code, { 'content-type': 'application/json', ...headers }).end(body);
    const stream = (...data) => (_, __, response) => {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        for (const one of data) event(response, one);
        response.end();
    };
    const part = { choices: [{ index: 0, delta: { content: 'Half' }, finish_reason: null }] };
    const page = await begin({ expected: [/Failed to load resource/] });
    for (const [answer, says] of [
        [status(400, '{"error":{"message":"max_tokens: found 0"}}'), 'max_tokens: found 0'],
        [status(429, '{"error":{"message":"The queue is full."}}', { 'retry-after': '2' }), 'The queue is full.'],
        [status(502, '<h1>Bad gateway</h1>'), 'Bad gateway'],
        [status(500, ''), 'HTTP status 500'],
        [stream(part), 'before the answer was complete'],
        [stream(part, { error: { message: 'The engine failed.' } }), 'The engine failed.'],
        [stream('{'), 'JSON'],
        [(_, request) => request.socket.destroy(), 'Is fvlm-serve still running?'],
    ]) {
        chat = answer;
        await page.click('#once');
        await page.locator('#problem').waitFor();
        assert.ok((await text(page, '#problem')).includes(says), `${says}: ${await text(page, '#problem')}`);
        assert.equal(await page.locator('#problem').getAttribute('role'), 'alert');
        await state(page, 'idle');
        // The next answer is as ever.
        chat = (_, __, response) => said(response, `Well again after: ${says}`);
        await page.click('#once');
        await until(page, `Well again after: ${says}`, '#caption');
        assert.ok(await page.locator('#problem').isHidden());
        await state(page, 'idle');
    }
    await page.check();
});

test('a stream may be cut anywhere', async () => {
    chat = (_, __, response) => {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        const whole = ': hello\r\n\r\ndata: {"choices":[{"delta":{"content":"Äpfel – 🍎"}}]}\r\n\r\n'
            + 'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n';
        const bytes = Buffer.from(whole);
        let at = 0;
        const step = () => (at < bytes.length ? (response.write(bytes.subarray(at, (at += 3))), setTimeout(step, 1)) : response.end());
        step();
    };
    const page = await begin();
    await page.click('#once');
    await until(page, 'ended at 64 tokens', '#note');
    assert.equal(await text(page, '#caption'), 'Äpfel – 🍎');
    await page.check();
});

test('a key is asked for, kept for the tab alone, and shown to the server', async () => {
    const keys = [];
    models = (request, response) => {
        keys.push(request.headers.authorization);
        if (request.headers.authorization === 'Bearer right') return known(response);
        return response.writeHead(401, { 'content-type': 'application/json' }).end('{"error":{"message":"a key is wanted"}}');
    };
    chat = (_, request, response) => said(response, request.headers.authorization);
    try {
        const page = await visit(plain, place.address, { expected: [/status of 401/] });
        await page.locator('#key-dialog[open]').waitFor();
        await accessible(page, 'the dialog');
        await page.keyboard.type('wrong');
        await page.keyboard.press('Enter');
        await until(page, 'did not take that key', '#key-problem');
        await page.fill('#key', 'right');
        await page.keyboard.press('Enter');
        await state(page, 'idle');
        await page.click('#once');
        await until(page, 'Bearer right', '#caption');
        assert.deepEqual(keys, [undefined, 'Bearer wrong', 'Bearer right']);
        const kept = await page.evaluate(() => [JSON.stringify(localStorage), sessionStorage.getItem('fvlm-key')]);
        assert.ok(!kept[0].includes('right'));
        assert.equal(kept[1], 'right');
        await page.check();
    } finally {
        models = null;
    }
});

test('no camera, and why: none there, not allowed, not over TLS', async () => {
    const none = await begin();
    await none.click('#camera');
    await until(none, 'No camera was found', '#hint');
    assert.ok(await none.locator('#still').isVisible());
    await none.click('#live');
    await until(none, 'No camera was found', '#hint');
    assert.equal(await none.locator('#live').getAttribute('aria-pressed'), 'false');
    await none.check();

    const refusing = await browser('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream=deny');
    const refused = await begin({}, refusing);
    await refused.click('#camera');
    await until(refused, 'The camera was not allowed', '#hint');
    assert.ok(await refused.locator('#still').isVisible());
    // A picture is answered all the same.
    chat = (_, __, response) => said(response, 'A still.');
    await refused.click('#once');
    await until(refused, 'A still.', '#caption');
    await refused.click('#screen');
    await until(refused, 'Nothing was shared', '#hint');
    await refused.check();

    // Chromium distrusts a name that is not localhost, as it would another machine's.
    const plainly = await begin({}, plain, place.named);
    await until(plainly, '--tls-cert', '#hint');
    assert.ok(await plainly.locator('#still').isVisible());
    await plainly.check();
});

test('a live view waits for a server that is busy, and gives up on one that fails', async () => {
    const camera = await browser('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream');
    let count = 0;
    chat = (_, __, response) => {
        count += 1;
        if (count === 2) return response.writeHead(429, { 'content-type': 'application/json' }).end('{"error":{"message":"busy"}}');
        if (count === 5) return response.writeHead(500, { 'content-type': 'application/json' }).end('{"error":{"message":"The end."}}');
        return said(response, `Answer ${count}.`);
    };
    const page = await begin({ expected: [BUSY, /status of 500/] }, camera);
    await page.click('#live');
    await until(page, 'The end.', '#problem');
    assert.equal(await page.locator('#live').getAttribute('aria-pressed'), 'false');
    assert.equal(count, 5);
    assert.match(await text(page, '#history'), /Answer 4\.[^]*Answer 3\.[^]*Answer 1\./);
    // Frames of a camera are JPEGs.
    assert.ok(asked.every((body) => body.messages[0].content[0].image_url.url.startsWith('data:image/jpeg;base64,')));
    // A slow answer is cut off by the setting, and the next frame is asked about.
    count = 10;
    chat = (_, __, response) => {
        count += 1;
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        words(response, `Slow ${count}`);
    };
    await page.click('summary');
    await page.selectOption('#cut', '1000');
    await page.click('#live');
    await page.waitForFunction(() => /Slow \d+\s*Describe the image. · cut off/.test(document.querySelector('#history').textContent));
    while (count < 12) await page.waitForTimeout(20);
    await page.click('#stop');
    await state(page, 'idle');
    const before = count;
    await page.waitForTimeout(1200);
    assert.equal(count, before);
    await page.check();
});

test('the other camera, a screen', async () => {
    const several = await browser('--use-fake-device-for-media-stream=device-count=2', '--use-fake-ui-for-media-stream');
    chat = (_, __, response) => said(response, 'Seen.');
    const page = await begin({}, several);
    // While a camera is being opened, there is none.
    const device = async () => {
        const open = () => document.querySelector('video').srcObject?.getVideoTracks()[0].getSettings().deviceId;
        return (await page.waitForFunction(open)).jsonValue();
    };
    await page.click('#camera');
    await page.locator('#flip').waitFor();
    const first = await device();
    await page.click('#flip');
    await page.waitForFunction((first) => document.querySelector('video').srcObject?.getVideoTracks()[0].getSettings().deviceId !== first, first);
    assert.notEqual(await device(), first);
    // A live view goes on with the other one.
    await page.click('#live');
    await page.locator('#history li').nth(1).waitFor();
    await page.click('#flip');
    await page.waitForFunction((first) => document.querySelector('video').srcObject?.getVideoTracks()[0].getSettings().deviceId === first, first);
    const seen = await page.locator('#history li').count();
    await page.locator('#history li').nth(seen + 1).waitFor();
    await page.click('#stop');
    await page.click('#screen');
    await page.locator('#screen[aria-pressed="true"]').waitFor();
    await page.click('#once');
    await until(page, 'Seen.', '#caption');
    // Who ends it in the browser's own bar sees why it is dark.
    await page.evaluate(() => document.querySelector('video').srcObject.getVideoTracks()[0].dispatchEvent(new Event('ended')));
    await until(page, 'Sharing has ended', '#hint');
    await page.check();
});

test('files by picker, drop and paste', async () => {
    chat = (_, __, response) => said(response, 'Seen.');
    const page = await begin();
    const picture = readFileSync(join(SCENES, 'coffee.jpg'));
    await page.setInputFiles('#file', { name: 'cup.jpg', mimeType: 'image/jpeg', buffer: picture });
    await page.waitForFunction(() => document.querySelector('#still').alt.includes('cup.jpg'));
    await page.click('#once');
    await until(page, 'Seen.', '#caption');
    const hand = (kind, name, type, bytes) =>
        page.evaluate(([kind, name, type, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type }));
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(
                kind === 'paste'
                    ? new ClipboardEvent('paste', { ...options, clipboardData: data })
                    : new DragEvent('drop', { ...options, dataTransfer: data }),
            );
        }, [kind, name, type, bytes.toString('base64')]);
    for (const kind of ['drop', 'paste']) {
        await hand(kind, `${kind}.png`, 'image/png', readFileSync(join(SCENES, 'scene_2.png')));
        await page.waitForFunction((kind) => document.querySelector('#still').alt.includes(kind), kind);
        await page.click('#once');
        await state(page, 'idle');
    }
    await page.locator('#history li').nth(2).waitFor();
    assert.equal(asked.length, 3);
    assert.ok(asked[0].messages[0].content[0].image_url.url.startsWith('data:image/jpeg;base64,'));
    assert.ok(same(asked[1], 'scene_2.png') && same(asked[2], 'scene_2.png'));
    await hand('drop', 'thesis.txt', 'text/plain', Buffer.from('no picture'));
    await until(page, 'thesis.txt is no picture', '#hint');
    await page.check();
});

test('a question that comes before the first picture waits for it', async () => {
    chat = (_, __, response) => said(response, 'Seen.');
    const slow = (context) => context.route('**/samples/*', async (route) => {
        await new Promise((resolve) => setTimeout(resolve, 1000));
        await route.continue();
    });
    const page = await begin({ route: slow });
    await page.keyboard.press('s');
    await until(page, 'Seen.', '#caption');
    assert.equal(await text(page, '#problem'), '');
    assert.ok(same(asked[0], 'scene_1.png'));
    await page.check();
});

test('by keyboard alone, and for ears', async () => {
    const listening = () => {
        globalThis.spoken = [];
        speechSynthesis.speak = (utterance) => globalThis.spoken.push(utterance.text);
    };
    chat = (body, __, response) => said(response, `Heard: ${body.messages[0].content[1].text}`);
    const page = await begin({ before: listening });
    await page.keyboard.press('s');
    await until(page, 'Heard: Describe the image.', '#announce');
    assert.deepEqual(await page.evaluate(() => globalThis.spoken), []);
    await page.click('summary');
    await page.locator('#speak').press('Space');
    await page.keyboard.press('4');
    await page.keyboard.press('s');
    await until(page, 'Heard: How many', '#announce');
    assert.deepEqual(await page.evaluate(() => globalThis.spoken), ['Heard: How many objects are there?']);
    // Letters that are written are no commands.
    await page.fill('#question', '');
    await page.locator('#question').pressSequentially('ssl');
    assert.equal(await page.locator('#question').inputValue(), 'ssl');
    assert.ok(await page.locator('#prompts input').nth(5).isChecked());
    assert.equal(asked.length, 2);
    await page.keyboard.press('Control+Enter');
    await until(page, 'Heard: ssl', '#caption');
    // Without the keys, a letter is nothing; settings outlive the page.
    await page.locator('#keys').press('Space');
    await page.locator('#says').evaluate((heading) => heading.ownerDocument.activeElement.blur());
    await page.keyboard.press('s');
    await page.reload();
    await state(page, 'idle');
    assert.equal(asked.length, 3);
    assert.equal(await page.locator('#question').inputValue(), 'ssl');
    assert.ok(!(await page.locator('#keys').isChecked()));
    // Every control is reached by Tab.
    const names = new Set();
    for (let index = 0; index < 60; index += 1) {
        await page.keyboard.press('Tab');
        names.add(await page.evaluate(() => document.activeElement.id || document.activeElement.name || document.activeElement.dataset.file));
    }
    for (const name of ['live', 'once', 'camera', 'screen', 'pick', 'prompt', 'question', 'scene_1.png', 'coffee.jpg']) assert.ok(names.has(name), name);
    await page.check();
});
