// Takes the pictures of the README: the page of fvlm-serve with the demo model, light, dark and narrow. scripts/check_page --pictures
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT, TOLD, browser, clip, finish, require, run, scratch, serve, state, until, visit } from './browser.mjs';

const sharp = require('sharp');
const folder = join(ROOT, 'runtime/server/pictures');

try {
    mkdirSync(folder, { recursive: true });
    const bundle = scratch('demo');
    await run('fvlm-export', '--quiet', '--output', bundle);
    const address = await serve(bundle);
    const file = await clip(['scene_5.png', 'scene_6.png', 'scene_1.png', 'scene_3.png'], 60);
    const flags = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream', `--use-file-for-fake-video-capture=${file}`];
    const camera = await browser(...flags);
    for (const [name, settings] of Object.entries({
        light: { viewport: { width: 1280, height: 800 } },
        dark: { viewport: { width: 1280, height: 800 }, colorScheme: 'dark' },
        narrow: { viewport: { width: 390, height: 800 }, deviceScaleFactor: 1.5 },
    })) {
        const page = await visit(camera, address, { settings });
        await state(page, 'idle');
        await page.click('#live');
        await page.waitForFunction(() => document.querySelectorAll('#history li').length > 11);
        await until(page, TOLD.get('scene_5.png'), '#caption');
        await page.evaluate(() => scrollTo(0, 0));
        await sharp(await page.screenshot()).webp({ quality: 82 }).toFile(join(folder, `${name}.webp`));
        await page.check();
    }
} finally {
    await finish();
}
