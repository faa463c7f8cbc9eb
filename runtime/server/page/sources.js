// Where pictures come from: a camera, a screen or window, a file. One of them at a time, shown in the view.

/** Longest side of what is sent, in pixels: more than any encoder of the model sees. */
const LONGEST = 1536;
/** A PNG of at most this many bytes is sent as it is. */
const AS_IT_IS = 4 << 20;

/** A source that cannot be had; the message is the reason, for people. Without one, something else was chosen meanwhile. */
export class NoSource extends Error {}

const WHY_NO_CAMERA = {
    NotAllowedError: 'The camera was not allowed. Allow it beside the address, or choose a picture below.',
    NotFoundError: 'No camera was found. Choose a picture below, or share a screen.',
    OverconstrainedError: 'No such camera was found. Choose a picture below, or share a screen.',
    NotReadableError: 'The camera is in use by another program, or does not answer.',
};

const INSECURE =
    'Browsers give cameras and screens only to pages over TLS, or from this machine itself. Start the server with ' +
    '--tls-cert and --tls-key and open the page by https, or open it as http://localhost.';

export class Sources {
    /** `video` and `still` are the elements of the view; `ended` is told a reason when a stream ends by itself. */
    constructor(video, still, ended) {
        Object.assign(this, { video, still, ended, kind: 'none', stream: null, picture: null, wanted: 0, opening: null });
    }

    /** Whether new frames come by themselves. */
    get moving() {
        return this.stream !== null;
    }

    /** Opens a camera: the one on the back where there are two, or the next one. */
    async camera({ next = false } = {}) {
        if (!navigator.mediaDevices?.getUserMedia) {
            throw new NoSource(window.isSecureContext ? 'This browser has no access to cameras.' : INSECURE);
        }
        const video = { width: { ideal: 1280 }, height: { ideal: 960 }, facingMode: { ideal: this.facing ?? 'environment' } };
        if (next) Object.assign(video, await this.other());
        await this.use('camera', () => navigator.mediaDevices.getUserMedia({ video, audio: false }), WHY_NO_CAMERA);
        const { facingMode } = this.stream.getVideoTracks()[0].getSettings();
        this.facing = facingMode;
        this.video.classList.toggle('mirrored', facingMode === 'user');
    }

    /** What to ask for to get another camera than the present one. */
    async other() {
        if (this.facing) return { facingMode: { ideal: this.facing === 'user' ? 'environment' : 'user' } };
        const present = this.stream?.getVideoTracks()[0].getSettings().deviceId;
        const cameras = await this.cameras();
        const index = cameras.findIndex((device) => device.deviceId === present);
        const { deviceId } = cameras[(index + 1) % cameras.length] ?? {};
        return deviceId ? { deviceId: { exact: deviceId }, facingMode: undefined } : {};
    }

    /** All cameras that the browser tells of. */
    async cameras() {
        const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
        return devices.filter((device) => device.kind === 'videoinput');
    }

    /** Asks for a screen or a window to look at. */
    async screen() {
        if (!navigator.mediaDevices?.getDisplayMedia) {
            throw new NoSource(window.isSecureContext ? 'This browser shares no screens.' : INSECURE);
        }
        const why = { NotAllowedError: 'Nothing was shared.', NotFoundError: 'No screen was found.' };
        const video = { frameRate: { ideal: 10 } };
        await this.use('screen', () => navigator.mediaDevices.getDisplayMedia({ video, audio: false }), why);
        this.video.classList.remove('mirrored');
    }

    /** Takes what a request brings. */
    use(kind, request, why) {
        return this.awaited(this.take(kind, request, why));
    }

    /** A source that is being opened: whoever wants a frame meanwhile waits for it. */
    awaited(source) {
        this.opening = source.catch(() => {});
        return source;
    }

    async take(kind, request, why) {
        const turn = ++this.wanted;
        // Some phones give the other camera only when the first one is free.
        if (kind === 'camera' && this.kind === 'camera') this.release();
        let stream;
        try {
            stream = await request();
        } catch (error) {
            throw new NoSource(why[error.name] ?? `It cannot be opened: ${error.message || error.name}.`, { cause: error });
        }
        if (turn !== this.wanted) {
            stream.getTracks().forEach((track) => track.stop());
            // Something else was chosen meanwhile: nothing to tell.
            throw new NoSource('');
        }
        this.release();
        Object.assign(this, { kind, stream });
        stream.getVideoTracks()[0].addEventListener('ended', () => {
            if (this.stream !== stream) return;
            this.release();
            this.ended(kind === 'screen' ? 'Sharing has ended.' : 'The camera is gone.');
        });
        this.video.srcObject = stream;
        this.video.hidden = false;
        this.still.hidden = true;
        try {
            await this.video.play();
        } catch (error) {
            if (turn !== this.wanted) throw new NoSource('');
            throw new NoSource(`It cannot be shown: ${error.message || error.name}.`, { cause: error });
        }
    }

    /** Shows a picture of a file. `name` is for messages, `alt` for those who do not see it. With a `turn` of before, only if nothing was chosen since. */
    file(blob, name, alt = name, turn = ++this.wanted) {
        return this.awaited(this.shown(blob, name, alt, turn));
    }

    async shown(blob, name, alt, turn) {
        const url = URL.createObjectURL(blob);
        const image = new Image();
        image.src = url;
        try {
            await image.decode();
            if (!image.naturalWidth || !image.naturalHeight) throw new Error('no size');
        } catch {
            URL.revokeObjectURL(url);
            throw new NoSource(`${name} is no picture that this browser reads.`);
        }
        const plain = blob.type === 'image/png' && blob.size <= AS_IT_IS;
        const sent = plain ? blob : await jpeg(image, image.naturalWidth, image.naturalHeight, 0.92);
        if (turn !== this.wanted) return URL.revokeObjectURL(url);
        this.release();
        if (this.url) URL.revokeObjectURL(this.url);
        this.url = url;
        Object.assign(this, { kind: 'file', picture: { image, sent } });
        this.still.src = url;
        this.still.alt = alt;
        this.still.hidden = false;
        this.video.hidden = true;
    }

    /** Ends a stream. What was seen last stays in sight. */
    release() {
        this.stream?.getTracks().forEach((track) => track.stop());
        this.video.srcObject = null;
        Object.assign(this, { kind: 'none', stream: null, picture: null });
    }

    /** What is seen now: the picture to send, and a small one to remember it by. */
    async frame() {
        // What is opened while we wait may open another: a picture that is loaded is then decoded.
        for (let waited = null; waited !== this.opening; ) {
            waited = this.opening;
            await waited;
        }
        if (this.picture) {
            const { image, sent } = this.picture;
            return { image: sent, thumbnail: thumbnail(image, image.naturalWidth, image.naturalHeight) };
        }
        if (!this.stream) throw new NoSource('There is no picture yet. Choose one, or use the camera.');
        const { video } = this;
        if (!video.videoWidth) await new Promise((resolve) => video.addEventListener('loadeddata', resolve, { once: true }));
        const { videoWidth: width, videoHeight: height } = video;
        // Both of one frame: the next one is there before this one is a JPEG.
        const canvas = drawn(video, width, height, LONGEST);
        const remembered = thumbnail(canvas, canvas.width, canvas.height);
        return { image: await encoded(canvas, 0.9), thumbnail: remembered };
    }
}

/** Draws a picture so that its longest side is at most `longest`. On white: JPEG has no transparency. */
function drawn(picture, width, height, longest) {
    const scale = Math.min(1, longest / Math.max(width, height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    return canvas;
}

const jpeg = (picture, width, height, quality) => encoded(drawn(picture, width, height, LONGEST), quality);

function encoded(canvas, quality) {
    return new Promise((resolve, reject) => {
        const done = (blob) => (blob ? resolve(blob) : reject(new NoSource('The picture cannot be made a JPEG.')));
        canvas.toBlob(done, 'image/jpeg', quality);
    });
}

const thumbnail = (picture, width, height) => drawn(picture, width, height, 128).toDataURL('image/jpeg', 0.75);
