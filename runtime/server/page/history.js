// The answers so far, the newest first: shown, saved as JSON Lines, cleared. Kept in memory alone, and bounded.

import { duration } from './chart.js';

const MOST = 100;

export class History {
    /** `list` is the element that they are listed in; `changed` is told how many there are. */
    constructor(list, changed) {
        Object.assign(this, { list, changed, answers: [] });
    }

    /** An answer: {text, question, ended, first, timings, thumbnail, when}. */
    add(answer) {
        this.answers.push(answer);
        const item = document.createElement('li');
        const image = document.createElement('img');
        Object.assign(image, { src: answer.thumbnail, alt: '', width: 64, height: 64 });
        const words = document.createElement('div');
        const said = document.createElement('p');
        said.className = 'said';
        said.textContent = answer.text || '(nothing)';
        const more = document.createElement('p');
        more.className = 'faint';
        more.textContent = [
            answer.question,
            answer.ended,
            answer.first === undefined ? '' : `first token ${duration(answer.first)}`,
            answer.timings.encode === undefined ? '' : `encode ${duration(answer.timings.encode)}`,
            answer.timings.prefill === undefined ? '' : `prefill ${duration(answer.timings.prefill)}`,
            answer.when.toLocaleTimeString(),
        ].filter(Boolean).join(' · ');
        words.append(said, more);
        item.append(image, words);
        this.list.prepend(item);
        while (this.answers.length > MOST) {
            this.answers.shift();
            this.list.lastElementChild.remove();
        }
        this.changed(this.answers.length);
    }

    clear() {
        this.answers = [];
        this.list.replaceChildren();
        this.changed(0);
    }

    /** One JSON object an answer and line, without pictures. */
    get lines() {
        const plain = ({ thumbnail: _, ...answer }) => `${JSON.stringify(answer)}\n`;
        return this.answers.map(plain).join('');
    }
}
