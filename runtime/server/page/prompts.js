// The built-in questions, as chips above the question's text. Whoever edits the text asks a question of their own.

const PROMPTS = [
    { name: 'Describe', text: 'Describe the image.' },
    { name: 'Expression', text: 'What is the facial expression of the person?' },
    { name: 'Read text', text: 'What does it say?' },
    { name: 'Count', text: 'How many objects are there?' },
    { name: 'Is there a …', text: (thing) => `Is there ${article(thing)}?` },
    { name: 'My own', text: null },
];
const OWN = PROMPTS.length - 1;

/** "a dog", "an apple"; what has an article keeps it. */
function article(thing) {
    const word = thing.trim() || 'person';
    if (/^(an?|the|any|some|one)\s/i.test(word)) return word;
    return `${/^[aeiou]/i.test(word) ? 'an' : 'a'} ${word}`;
}

export class Prompts {
    /** The chips go into `fieldset`; the rest are the fields of the page. `changed` is called after each change. */
    constructor({ fieldset, question, suffix, thing, thingField }, changed) {
        Object.assign(this, { question, suffix, thing, thingField, own: '', radios: [] });
        for (const [index, { name }] of PROMPTS.entries()) {
            const label = document.createElement('label');
            const radio = document.createElement('input');
            Object.assign(radio, { type: 'radio', name: 'prompt', value: String(index) });
            label.append(radio, name);
            fieldset.append(label);
            radio.addEventListener('change', () => (this.choose(index), changed()));
            this.radios.push(radio);
        }
        question.addEventListener('input', () => {
            this.own = question.value;
            this.mark(OWN);
            changed();
        });
        thing.addEventListener('input', () => (this.choose(this.chosen), changed()));
        suffix.addEventListener('input', changed);
        this.choose(0);
    }

    /** Takes a built-in question, by its place. */
    choose(index) {
        const { text } = PROMPTS[index] ?? PROMPTS[0];
        this.mark(PROMPTS[index] ? index : 0);
        if (text === null) this.question.value = this.own || this.question.value;
        else this.question.value = typeof text === 'string' ? text : text(this.thing.value);
    }

    mark(index) {
        this.chosen = index;
        this.radios[index].checked = true;
        this.thingField.hidden = typeof PROMPTS[index].text !== 'function';
    }

    /** What is asked. */
    get text() {
        return [this.question.value.trim(), this.suffix.value.trim()].filter(Boolean).join(' ');
    }

    get state() {
        return { chosen: this.chosen, own: this.own, suffix: this.suffix.value, thing: this.thing.value };
    }

    set state({ chosen = 0, own = '', suffix = '', thing = '' }) {
        this.own = String(own);
        this.suffix.value = suffix;
        this.thing.value = thing;
        this.choose(Number(chosen));
    }
}
