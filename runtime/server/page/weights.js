// Weights for the engine: it reads each tensor from where the browser keeps the file, so that no file is in the page's memory as a whole.

const reader = new FileReaderSync();

/** A tensor is read in pieces of so many bytes: a reader holds what it reads twice. */
const PIECE = 8 << 20;

/** What was read last. The engine has copied it when it asks for more: its memory is given back at once, not when somebody collects it. */
let last = null;

/**
 * A file's bytes as the engine takes them. It asks for their number, and for parts of them, which come from the blob. (Its typed array is
 * empty: nothing else may be asked of it.)
 */
class Kept extends Uint8Array {
    constructor(blob) {
        super(0);
        this.blob = blob;
    }

    get byteLength() {
        return this.blob.size;
    }

    subarray(begin, end) {
        last?.buffer.transfer?.(0);
        last = new Uint8Array(end - begin);
        for (let at = begin; at < end; at += PIECE) {
            const piece = this.blob.slice(at, Math.min(at + PIECE, end));
            last.set(new Uint8Array(reader.readAsArrayBuffer(piece)), at - begin);
        }
        return last;
    }
}

/** A response whose bytes are counted on their way. */
function counted(response, progress) {
    let bytes = 0;
    const transform = (chunk, controller) => {
        bytes += chunk.length;
        progress(bytes);
        controller.enqueue(chunk);
    };
    return new Response(response.body.pipeThrough(new TransformStream({ transform })));
}

async function bring(address, path, progress) {
    const response = await fetch(address);
    if (!response.ok) throw new Error(`${path}: HTTP status ${response.status}.`);
    return counted(response, progress);
}

/** The file, from the cache if there is one; what is not there yet is put there. A full one, or none, keeps nothing. */
async function keep(cache, address, path, progress) {
    const found = await cache?.match(address);
    if (found) return found;
    if (!cache) return bring(address, path, progress);
    const response = await bring(address, path, progress);
    try {
        await cache.put(address, response);
        return await cache.match(address);
    } catch (error) {
        console.info(`${path} is not kept: ${error.message}`);
        return bring(address, path, progress);
    }
}

/**
 * One data file of a form, `{ path, bytes }` of the contract, as transformers.js wants it in `session_options.externalData`. `progress` is told
 * how many of its bytes are there.
 */
export async function weights({ path, bytes }, base, cache, progress) {
    const address = new URL(path, base).href;
    const response = await keep(cache, address, path, progress);
    const blob = await response.blob();
    if (blob.size !== bytes) {
        await cache?.delete(address);
        throw new Error(`${path} has ${blob.size} bytes, expected ${bytes}: it is not the one that this bundle was written with.`);
    }
    progress(bytes);
    return { path: path.slice(path.lastIndexOf('/') + 1), data: new Kept(blob) };
}
