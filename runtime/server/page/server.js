// The answerer that asks fvlm-serve, by OpenAI's interface. `open` and `answer` are what every answerer has.

/** A request that the server refused. `status` is HTTP's, `retry` the milliseconds after which to ask again, where it said so. */
export class Refused extends Error {
    constructor(message, status, retry) {
        super(message);
        this.status = status;
        this.retry = retry;
    }
}

const address = (path) => new URL(path, document.baseURI);

/** Asks which model answers. `key` is the API key, or null; a status of 401 says that another is wanted. */
export async function open({ key = null } = {}) {
    // A browser sends no others; with the status of a wrong key, another one is asked for.
    if (key && /[^\x20-\x7e]/.test(key)) throw new Refused('A key has letters, digits and signs of ASCII only.', 401);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const response = await reach('v1/models', { headers });
    const model = (await response.json()).data?.[0]?.id;
    if (!model) throw new Error('The server names no model.');
    return { name: model, detail: '', place: 'server', ready: true, answer: (question) => answer(model, headers, question) };
}

/** One answer. Text goes to `onText` as it comes, all of it so far each time. */
async function answer(model, headers, { image, question, maxTokens, signal, onText }) {
    const body = {
        model,
        stream: true,
        stream_options: { include_usage: true },
        temperature: 0,
        max_tokens: maxTokens,
        messages: [{
            role: 'user',
            content: [{ type: 'image_url', image_url: { url: await dataUrl(image) } }, { type: 'text', text: question }],
        }],
    };
    const response = await reach('v1/chat/completions', {
        method: 'POST',
        headers: { ...headers, 'content-type': 'application/json' },
        body: JSON.stringify(body),
        signal,
    });
    const result = { text: '', finish: null, timings: {} };
    for await (const data of events(response.body)) {
        if (data === '[DONE]') break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Refused(chunk.error.message ?? 'The server gave up.', response.status);
        const choice = chunk.choices?.[0];
        if (choice?.delta?.content) {
            result.text += choice.delta.content;
            onText(result.text);
        }
        result.finish = choice?.finish_reason ?? result.finish;
        result.tokens = chunk.usage?.completion_tokens ?? result.tokens;
        if (chunk.fvlm) result.timings = timings(chunk.fvlm);
    }
    if (!result.finish) throw new Error('The server ended the connection before the answer was complete.');
    return result;
}

/** The server's own times, by the names that the page has for them. Milliseconds. */
function timings(said) {
    return {
        first: said.first_token_ms,
        queued: said.queued_ms,
        prepare: said.preprocess_ms,
        encode: said.encode_ms,
        encoded: said.images_encoded,
        prefill: said.prefill_ms,
        reused: said.reused_positions,
        speed: said.tokens_per_second,
    };
}

/** A response of success, or an error with the server's own words. */
async function reach(path, options) {
    let response;
    try {
        response = await fetch(address(path), options);
    } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new Error('The server does not answer. Is fvlm-serve still running?', { cause: error });
    }
    if (response.ok) return response;
    const said = await response.text();
    let message = said.slice(0, 300);
    try {
        message = JSON.parse(said).error.message ?? message;
    } catch {
        // Not the server itself, but something before it.
    }
    const seconds = Number(response.headers.get('retry-after'));
    throw new Refused(message || `HTTP status ${response.status}`, response.status, seconds > 0 ? seconds * 1000 : undefined);
}

/** The data of server-sent events, one string an event. */
export async function* events(stream) {
    const reader = stream.getReader();
    const decoder = new TextDecoder();
    let rest = '';
    let data = [];
    try {
        for (;;) {
            const { done, value } = await reader.read();
            rest += decoder.decode(value, { stream: !done });
            const lines = rest.split(/\r\n|\n|\r(?!$)/);
            rest = done ? '' : lines.pop();
            for (const line of lines) {
                if (line.startsWith('data:')) data.push(line.slice(line.startsWith('data: ') ? 6 : 5));
                if (line === '' && data.length) {
                    yield data.join('\n');
                    data = [];
                }
            }
            if (done) break;
        }
    } finally {
        // Whoever stops reading ends the request too.
        reader.cancel().catch(() => {});
    }
}

function dataUrl(blob) {
    return new Promise((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.onerror = () => reject(new Error('The picture cannot be read.'));
        reader.readAsDataURL(blob);
    });
}
