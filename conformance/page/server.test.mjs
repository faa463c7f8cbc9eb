// The page as fvlm-serve has it, with the demo model: scenes as files and through a camera, live, cancelled, on every kind of screen.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { TOLD, accessible, browser, clip, finish, run, scratch, serve, state, text, until, visit } from './browser.mjs';

let bundle;
let address;
let plain;

before(async () => {
    bundle = scratch('demo');
    await run('fvlm-export', '--quiet', '--output', bundle);
    address = await serve(bundle);
    plain = await browser();
});
after(finish);

const sample = (page, scene) => page.click(`#samples button[data-file="${scene}"]`);

test('every sample is answered, with its times', async () => {
    const page = await visit(plain, address);
    await state(page, 'idle');
    assert.equal(await text(page, '#model'), 'demo');
    for (const [scene, answer] of TOLD) {
        await sample(page, scene);
        await until(page, answer, '#caption');
        await state(page, 'idle');
        assert.equal(await text(page, '#caption'), answer);
    }
    assert.equal(await page.locator('#history li').count(), TOLD.size);
    const times = await text(page, '.timings');
    assert.match(times, /First token\s+[\d.]+ m?s\s+server: [\d.]+ m?s\s+Encode\s+[\d.]+ m?s\s+the image\s+Prefill\s+[\d.]+ m?s[^]*Decode\s+[\d.]+/);
    assert.match(await page.locator('#chart svg').getAttribute('aria-label'), new RegExp(`last ${TOLD.size} answers`));
    // A picture that was seen before is not encoded again.
    await page.click('#once');
    await until(page, 'kept', '#t-encode');
    // A photograph, a JPEG, is none of the scenes that the model knows, and it says so.
    await sample(page, 'coffee.jpg');
    await until(page, 'I see no drawing here.', '#caption');
    await page.waitForFunction(() => document.querySelectorAll('#history li').length === 10);
    await page.check();
});

test('questions of every kind', async () => {
    const page = await visit(plain, address);
    await state(page, 'idle');
    for (const [scene, prompt, thing, answer] of [
        ['scene_4.png', 'Read text', '', 'KIWI.'],
        ['scene_5.png', 'Count', '', 'Three.'],
        ['scene_6.png', 'Is there a', 'bee', 'Yes'],
    ]) {
        await page.click(`#prompts label:has-text("${prompt}")`);
        if (thing) await page.fill('#thing', thing);
        await sample(page, scene);
        await until(page, answer, '#caption');
        await state(page, 'idle');
    }
    await page.fill('#question', 'What color is the background?');
    await sample(page, 'scene_7.png');
    await until(page, 'Pink.', '#caption');
    await page.check();
});

test('a camera, live: the words of each scene appear; Stop ends it', async () => {
    const scenes = ['scene_2.png', 'scene_6.png', 'scene_5.png'];
    const file = await clip(scenes, 90);
    const flags = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream', `--use-file-for-fake-video-capture=${file}`];
    const page = await visit(await browser(...flags), address);
    await state(page, 'idle');
    await page.click('#live');
    for (const words of ['strawberry', 'bee', 'duck']) await until(page, words, '#history');
    assert.equal(await page.locator('#live').getAttribute('aria-pressed'), 'true');
    await page.click('#stop');
    await state(page, 'idle');
    const count = await page.locator('#history li').count();
    assert.ok(count >= 3);
    await page.waitForTimeout(500);
    assert.equal(await page.locator('#history li').count(), count);
    // A single shot of the camera. History is bounded, and may have been full.
    await page.click('#clear');
    await page.click('#once');
    await page.waitForFunction(() => document.querySelectorAll('#history li').length === 1 || document.querySelector('#note').textContent);
    await page.check();
});

test('axe-core finds no serious fault: light, dark, narrow', async () => {
    for (const settings of [{}, { colorScheme: 'dark' }, { viewport: { width: 390, height: 844 } }]) {
        const page = await visit(plain, address, { settings });
        await state(page, 'idle');
        await page.click('summary');
        await sample(page, 'scene_1.png');
        await until(page, TOLD.get('scene_1.png'), '#caption');
        await state(page, 'idle');
        await accessible(page, JSON.stringify(settings));
        // Nothing is wider than the screen.
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
        await page.check();
    }
});

test('a server with a key', async () => {
    const locked = await serve(bundle, '--api-key', 'secret');
    const page = await visit(plain, locked, { expected: [/status of 401/] });
    await page.locator('#key-dialog[open]').waitFor();
    await page.fill('#key', 'secret');
    await page.keyboard.press('Enter');
    await state(page, 'idle');
    await sample(page, 'scene_6.png');
    await until(page, TOLD.get('scene_6.png'), '#caption');
    await page.check();
});
