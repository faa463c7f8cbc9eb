// The chart of times to first token: one bar an answer, what it is made of stacked. SVG, drawn anew each time.

const SHOWN = 40;
const HEIGHT = 132;
const LEFT = 52;

const NAMESPACE = 'http://www.w3.org/2000/svg';

function element(name, attributes, parent) {
    const made = document.createElementNS(NAMESPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
}

/** Milliseconds for people: 84 ms, 1.24 s. */
export function duration(ms) {
    if (ms === undefined || ms === null || !Number.isFinite(ms)) return '–';
    return ms < 1000 ? `${ms < 10 && ms > 0 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The least of 1, 2, 5, 10, ... that is not below a value. */
function round(value) {
    const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** Draws the last answers into `place`. An answer is {first, encode, prefill} in milliseconds; only `first` must be there. */
export function draw(place, answers) {
    const shown = answers.slice(-SHOWN);
    const width = place.clientWidth || 640;
    const svg = document.createElementNS(NAMESPACE, 'svg');
    svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute('role', 'img');
    const middle = median(shown.map((answer) => answer.first));
    const label = shown.length
        ? `Time to first token of the last ${shown.length} answers: median ${duration(middle)}, last ${duration(shown.at(-1).first)}`
        : 'Time to first token: no answer yet';
    svg.setAttribute('aria-label', label);
    const top = round(Math.max(100, ...shown.map((answer) => answer.first)));
    const scale = (HEIGHT - 14) / top;
    for (const share of [0, 0.5, 1]) {
        const y = HEIGHT - 4 - top * share * scale;
        element('line', { x1: LEFT, x2: width, y1: y, y2: y }, svg);
        element('text', { x: LEFT - 8, y: y + 4, 'text-anchor': 'end' }, svg).textContent = duration(top * share);
    }
    const step = (width - LEFT) / SHOWN;
    for (const [index, { first, encode = 0, prefill = 0 }] of shown.entries()) {
        let y = HEIGHT - 4;
        const parts = { encode: Math.min(encode, first), prefill: Math.min(prefill, Math.max(0, first - encode)) };
        parts.rest = Math.max(0, first - parts.encode - parts.prefill);
        for (const [name, ms] of Object.entries(parts)) {
            y -= ms * scale;
            element('rect', { class: name, x: LEFT + index * step + 1.5, y, width: step - 3, height: ms * scale }, svg);
        }
    }
    place.replaceChildren(svg);
    return middle;
}
