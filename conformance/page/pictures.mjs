// Takes the pictures of the README: the page of fvlm-serve with the demo model, light, dark and narrow. scripts/check_page --pictures
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT, TOLD, browser, finish, require, run, scratch, serve, state, until, visit } from './browser.mjs';

const sharp = require('sharp');
const folder = join(ROOT, 'runtime/server/pictures');

try {
    mkdirSync(folder, { recursive: true });
    const bundle = scratch('demo');
    await run('fvlm-export', '--quiet', '--output', bundle);
    const address = await serve(bundle);
    const plain = await browser();
    for (const [name, settings] of Object.entries({
        light: { viewport: { width: 1280, height: 800 } },
        dark: { viewport: { width: 1280, height: 800 }, colorScheme: 'dark' },
        narrow: { viewport: { width: 390, height: 800 }, deviceScaleFactor: 1.5 },
    })) {
        const page = await visit(plain, address, { settings });
        await state(page, 'idle');
        for (const scene of ['scene_3.png', 'scene_8.png', 'scene_6.png', 'scene_2.png', 'scene_4.png', 'scene_7.png', 'scene_1.png', 'scene_5.png']) {
            await page.click(`#samples button[data-file="${scene}"]`);
            await until(page, TOLD.get(scene), '#caption');
            await state(page, 'idle');
        }
        await page.evaluate(() => scrollTo(0, 0));
        await sharp(await page.screenshot()).webp({ quality: 82 }).toFile(join(folder, `${name}.webp`));
        await page.check();
    }
} finally {
    await finish();
}
