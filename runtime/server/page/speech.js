// Answers for ears: a live region for screen readers, and the browser's speech where it is wanted.

export class Speech {
    /** `region` is the live region; `wanted()` says whether answers are to be spoken. */
    constructor(region, wanted) {
        Object.assign(this, { region, wanted, last: '' });
    }

    /** Whether this browser can speak at all. */
    get able() {
        return 'speechSynthesis' in window;
    }

    /** Tells an answer. What was told just before is not told again; in a live view (`newest` false) nobody is interrupted. */
    say(text, { newest = true } = {}) {
        if (!text || (!newest && text === this.last)) return;
        const repeated = text === this.last;
        this.last = text;
        // A region that is set to what it has says nothing: the space makes it new.
        this.region.textContent = repeated && !this.region.textContent.endsWith('\u00a0') ? `${text}\u00a0` : text;
        if (!this.able || !this.wanted()) return;
        if (newest) speechSynthesis.cancel();
        else if (speechSynthesis.speaking) return;
        speechSynthesis.speak(new SpeechSynthesisUtterance(text));
    }

    quiet() {
        if (this.able) speechSynthesis.cancel();
    }
}
