//! The functions. Each checks its pointers, does one thing of the runtime's, and turns its error into a status
//! and a text. What is unsafe is a line with its reason; the rest of each body is safe.

use crate::types::{
    ABI, Answer, Cancel, Engine, Failure, Finish, ImageId, Message, OnText, Options, Request, Role, Status,
};
use runtime::image::{self, Limits, Picture};
use runtime::{EngineError, Provider, Sampling, UnknownWord};
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The number of this interface; compare with `FVLM_ABI` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn fvlm_abi() -> u32 {
    ABI
}

/// The version of the library, for people.
#[unsafe(no_mangle)]
pub extern "C" fn fvlm_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// Opens the bundle in a directory; `options` may be null. It returns early: what cannot be opened is the error of the call that needs
/// it, `fvlm_ready` waits for all of it. Close the engine with `fvlm_close`.
///
/// # Safety
/// `bundle` is a text, `engine` a place to write to; all texts of `options` are texts or null. As everywhere here, `error` is null or a place for a
/// text, which is written where the status is not `FVLM_STATUS_OK`; free it with `fvlm_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_open(
    bundle: *const c_char,
    options: *const Options,
    engine: *mut *mut Engine,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or a place to write to, as the caller promises.
        let place = unsafe { place(engine, "engine") }?;
        // SAFETY: of texts and options the caller promises the same.
        let opened = unsafe { opened(bundle, options, runtime::Engine::open) }?;
        place.write(Box::into_raw(Box::new(Engine(opened))));
        Ok(())
    })
}

/// Waits until everything is open.
///
/// # Safety
/// `engine` came from `fvlm_open` and is not closed, here and below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_ready(engine: *mut Engine, error: *mut *mut c_char) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        Ok(engine.0.ready()?)
    })
}

/// Who computes, and with which graphs, as JSON; waits for them. Free the text with `fvlm_string_free`.
///
/// # Safety
/// `json` is a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_provider(
    engine: *mut Engine,
    json: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `json` is null or a place to write to, as the caller promises.
        let place = unsafe { place(json, "json") }?;
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        let report = engine.0.provider()?;
        let text = serde_json::to_string(&report).map_err(|error| internal(&error.to_string()))?;
        place.write(owned(text));
        Ok(())
    })
}

/// Closes an engine or a conversation, and waits for what of it is still being opened, unless others use it; null does nothing.
/// The process may end with engines that are not closed.
///
/// # Safety
/// `engine` came from `fvlm_open`, is closed once and not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_close(engine: *mut Engine) {
    if !engine.is_null() {
        // SAFETY: it is the box of `fvlm_open`, closed once, as the caller promises.
        let engine = unsafe { Box::from_raw(engine) };
        // A panic must not pass into C.
        drop(catch_unwind(AssertUnwindSafe(|| drop(engine))));
    }
}

/// Adds an image file (PNG, JPEG, WebP, GIF, BMP, TIFF, and where libheif is installed HEIC and AVIF), so that messages can show it. It is a regular file: nobody waits for a pipe. The
/// same image is the same `image`. What was made of it for the model stays in memory until `fvlm_forget_images` or `fvlm_reset`,
/// here and in the next two functions; the model keeps the features of the latest images, up to 32 MiB.
///
/// # Safety
/// `path` is a text, `image` a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_add_image_file(
    engine: *mut Engine,
    path: *const c_char,
    image: *mut ImageId,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `path` is null or a text, as the caller promises.
        let path = unsafe { required(path, "path") }?;
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        // SAFETY: `image` is null or a place to write to, as the caller promises.
        let place = unsafe { place(image, "image") }?;
        add(engine, place, image::open(Path::new(path), &Limits::default())?)
    })
}

/// Adds an image that is a file in memory.
///
/// # Safety
/// `bytes` points to `length` bytes, `image` is a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_add_image_bytes(
    engine: *mut Engine,
    bytes: *const u8,
    length: usize,
    image: *mut ImageId,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `bytes` is null or points to so many, as the caller promises.
        let bytes = unsafe { slice(bytes, length, "bytes") }?;
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        // SAFETY: `image` is null or a place to write to, as the caller promises.
        let place = unsafe { place(image, "image") }?;
        add(engine, place, image::decode(bytes, "bytes", &Limits::default())?)
    })
}

/// Adds a frame: rows from the top, `stride` bytes apart, three bytes (red, green, blue) a pixel.
///
/// # Safety
/// `pixels` points to `height` rows, `image` is a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_add_image_rgb(
    engine: *mut Engine,
    pixels: *const u8,
    width: u32,
    height: u32,
    stride: usize,
    image: *mut ImageId,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let row = size(width).saturating_mul(3);
        if row == 0 || height == 0 || stride < row {
            let found = format!("{width} x {height} pixels, rows {stride} bytes apart");
            return Err(Failure::argument(format!(
                "a frame of {found}: expected at least one pixel and rows of 3 bytes a pixel"
            )));
        }
        let pixels_of = u64::from(width).saturating_mul(u64::from(height));
        let most = Limits::default().max_pixels;
        if pixels_of > most {
            return Err(Failure::argument(format!(
                "a frame of {width} x {height} pixels, expected at most {most} pixels"
            )));
        }
        // The last row need not be padded.
        let length = stride
            .checked_mul(size(height) - 1)
            .and_then(|rows| rows.checked_add(row))
            .filter(|length| isize::try_from(*length).is_ok());
        let length = length.ok_or_else(|| Failure::argument("the frame is larger than the address space"))?;
        // SAFETY: `pixels` is null or points to `height` rows `stride` bytes apart, as the caller promises; of
        // the last row only its pixels are taken.
        let pixels = unsafe { slice(pixels, length, "pixels") }?;
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        // SAFETY: `image` is null or a place to write to, as the caller promises.
        let place = unsafe { place(image, "image") }?;
        let rows = pixels.chunks(stride).flat_map(|line| &line[..row]);
        let picture = Picture::new(width, height, rows.copied().collect());
        add(
            engine,
            place,
            picture.ok_or_else(|| internal("a frame of another length"))?,
        )
    })
}

/// Forgets all images, but not the conversation: what is computed stays useful.
///
/// # Safety
/// As `fvlm_ready`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_forget_images(engine: *mut Engine, error: *mut *mut c_char) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        engine.0.forget_images();
        Ok(())
    })
}

/// Forgets the conversation and all images.
///
/// # Safety
/// As `fvlm_ready`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_reset(engine: *mut Engine, error: *mut *mut c_char) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        engine.0.reset();
        Ok(())
    })
}

/// The answer to `messages`, the whole conversation: what it has in common with the last one is not computed again. `request` may be
/// null; `on_text` too, then the words are in `answer` only. `answer` may be null if `on_text` is enough; otherwise free it with `fvlm_answer_free`.
///
/// # Safety
/// `messages` points to `message_count` messages, whose texts are texts and whose images are so many; all pointers of `request` are null or what
/// its fields say. `on_text` does not use the engine, and returns: no exception and no `longjmp` leaves it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_chat(
    engine: *mut Engine,
    messages: *const Message,
    message_count: usize,
    request: *const Request,
    on_text: OnText,
    user: *mut c_void,
    answer: *mut Answer,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        // SAFETY: they are null or so many, with texts and images, as the caller promises.
        let turns = unsafe { conversation(messages, message_count) }?;
        // SAFETY: it is null or a request, whose pointers are null or what its fields say, as the caller promises.
        let request = unsafe { optional_request(request) }?;
        let mut found = engine.0.chat(&turns, &request)?;
        // SAFETY: `on_text` is null or a function as its type says, as the caller promises.
        let text = unsafe { tell(&mut found, on_text, user, |_piece| ()) }?;
        // SAFETY: `answer` is null or a place to write to, as the caller promises.
        if let Some(place) = unsafe { optional_place(answer) } {
            place.write(written(&found, text));
        }
        Ok(())
    })
}

/// Says an answer as it comes, and all of it at the end.
///
/// # Safety
/// `on_text` is null, or a function that leaves the engine alone and returns.
pub(crate) unsafe fn tell(
    found: &mut runtime::Answer<'_>,
    on_text: OnText,
    user: *mut c_void,
    mut each: impl FnMut(&runtime::Piece),
) -> Result<String, Failure> {
    let mut text = String::new();
    let mut unwanted = false;
    while !unwanted {
        let Some(piece) = found.next().transpose()? else {
            break;
        };
        each(&piece);
        text.push_str(&piece.text);
        if let Some(on_text) = on_text
            && !piece.text.is_empty()
        {
            let words = CString::new(without_zeros(piece.text)).unwrap_or_default();
            // SAFETY: `on_text` is a function of this type, which leaves the engine alone and returns, as
            // the caller promises; the words live until it has returned.
            unwanted = unsafe { !on_text(words.as_ptr(), words.as_bytes().len(), user) };
        }
    }
    Ok(text)
}

/// An answer for C.
pub(crate) fn written(found: &runtime::Answer<'_>, text: String) -> Answer {
    let stats = found.stats();
    let tokens: Box<[i64]> = found.tokens().into();
    Answer {
        text: owned(text),
        token_count: tokens.len(),
        tokens: Box::into_raw(tokens).cast(),
        finish: found.finish().map_or(Finish::Cancelled, Finish::from),
        prompt_positions: stats.prompt_positions,
        reused_positions: stats.reused_positions,
        time_to_first_token: stats.time_to_first_token.unwrap_or(0.0),
        tokens_per_second: stats.tokens_per_second.unwrap_or(0.0),
    }
}

/// Frees what an answer points to; null does nothing.
///
/// # Safety
/// `answer` was written by `fvlm_chat`; it is empty afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_answer_free(answer: *mut Answer) {
    // SAFETY: it is null or an answer that `fvlm_chat` wrote, as the caller promises.
    let Some(answer) = (unsafe { answer.as_mut() }) else {
        return;
    };
    // SAFETY: its text is of this library, and null after this function: it is freed once.
    unsafe { fvlm_string_free(answer.text) };
    if !answer.tokens.is_null() {
        let tokens = std::ptr::slice_from_raw_parts_mut(answer.tokens, answer.token_count);
        // SAFETY: they are the box of so many tokens that `fvlm_chat` made, and null after this function.
        drop(unsafe { Box::from_raw(tokens) });
    }
    answer.text = std::ptr::null_mut();
    answer.tokens = std::ptr::null_mut();
    answer.token_count = 0;
}

/// Frees a text of ours; null does nothing.
///
/// # Safety
/// `text` came from this library and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: it is a text that this library made, and freed once, as the caller promises.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// Something that ends answers; free it with `fvlm_cancel_free`.
#[unsafe(no_mangle)]
pub extern "C" fn fvlm_cancel_new() -> *mut Cancel {
    Box::into_raw(Box::new(Cancel(Arc::new(AtomicBool::new(false)))))
}

/// Ends the answers that have it (true), or lets them go on (false): from any thread, at any time.
///
/// # Safety
/// `cancel` came from `fvlm_cancel_new` and is not freed, or is null, which does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_cancel_set(cancel: *const Cancel, cancelled: bool) {
    // SAFETY: it is null or that of `fvlm_cancel_new` and not freed, as the caller promises.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.0.store(cancelled, Ordering::Relaxed);
    }
}

/// Frees it; null does nothing.
///
/// # Safety
/// `cancel` came from `fvlm_cancel_new` and is freed once, when no answer has it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_cancel_free(cancel: *mut Cancel) {
    if !cancel.is_null() {
        // SAFETY: it is the box of `fvlm_cancel_new`, freed once, as the caller promises.
        drop(unsafe { Box::from_raw(cancel) });
    }
}

/// Does the work of a call; no panic passes into C. `error` gets the words of what failed.
pub(crate) fn guarded(
    error: Option<&mut MaybeUninit<*mut c_char>>,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Status {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(_panic) => internal("a panic, which was reported on stderr"),
    };
    if let Some(place) = error {
        place.write(owned(failure.message));
    }
    failure.status
}

pub(crate) fn internal(what: &str) -> Failure {
    Failure {
        status: Status::Internal,
        message: format!("internal error: {what}"),
    }
}

/// An engine that is not null.
///
/// # Safety
/// It is null, or came from `fvlm_open`, is not closed, and nobody else uses it during `'a`.
pub(crate) unsafe fn open<'a>(engine: *mut Engine) -> Result<&'a mut Engine, Failure> {
    // SAFETY: as the caller promises.
    unsafe { engine.as_mut() }.ok_or_else(|| Failure::argument("`engine` is null"))
}

/// A place of C's, which need not hold a value yet; none where it is null.
///
/// # Safety
/// It is null, or may be written to during `'a` by nobody else.
pub(crate) unsafe fn optional_place<'a, T>(place: *mut T) -> Option<&'a mut MaybeUninit<T>> {
    // SAFETY: as the caller promises; any bytes are a `MaybeUninit`.
    unsafe { place.cast::<MaybeUninit<T>>().as_mut() }
}

/// A place of C's that is not null.
///
/// # Safety
/// As [`optional_place`].
pub(crate) unsafe fn place<'a, T>(place: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>, Failure> {
    // SAFETY: as the caller promises.
    unsafe { optional_place(place) }.ok_or_else(|| Failure::argument(format!("`{name}` is null")))
}

fn add(engine: &mut Engine, place: &mut MaybeUninit<ImageId>, picture: Picture) -> Result<(), Failure> {
    place.write(engine.0.add_image(&picture)?.0);
    Ok(())
}

/// A text for C; it has no zeros inside.
pub(crate) fn owned(text: String) -> *mut c_char {
    CString::new(without_zeros(text)).unwrap_or_default().into_raw()
}

/// C's texts end at the first zero; a model may say one.
fn without_zeros(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

/// A text; none where it is null.
///
/// # Safety
/// It is null, or ends with a zero and stays as it is during `'a`.
pub(crate) unsafe fn optional<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: it is not null; the rest the caller promises.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(Some)
        .map_err(|_| Failure::argument(format!("`{name}` is not UTF-8")))
}

/// A text that is not null.
///
/// # Safety
/// As [`optional`].
pub(crate) unsafe fn required<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: as the caller promises.
    unsafe { optional(text, name) }?.ok_or_else(|| Failure::argument(format!("`{name}` is null")))
}

/// So many values; null may be none of them.
///
/// # Safety
/// `values` is null, or points to `count` values that stay as they are during `'a`.
pub(crate) unsafe fn slice<'a, T>(values: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    match (values.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::argument(format!(
            "`{name}` is null, expected {count} of them"
        ))),
        // No program has so many, whatever it promises.
        (false, _) if !fits::<T>(count) => Err(Failure::argument(format!(
            "{count} of `{name}` are larger than the address space"
        ))),
        // SAFETY: it is not null; the rest the caller promises.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(values, count) }),
    }
}

/// Whether so many values may lie one after another.
fn fits<T>(count: usize) -> bool {
    let bytes = count.checked_mul(size_of::<T>());
    bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
}

/// What is opened of the bundle in a directory.
///
/// # Safety
/// `bundle` and all texts of `options` are texts or null; `options` is null or points to options.
pub(crate) unsafe fn opened<T>(
    bundle: *const c_char,
    options: *const Options,
    open: impl FnOnce(&Path, &runtime::Options) -> Result<T, EngineError>,
) -> Result<T, Failure> {
    #[cfg(all(feature = "ort", unix))]
    crate::ending::link();
    // SAFETY: `bundle` is null or a text, as the caller promises.
    let bundle = unsafe { required(bundle, "bundle") }?;
    // SAFETY: `options` is null or points to options, as the caller promises.
    let options = match unsafe { options.as_ref() } {
        None => runtime::Options::default(),
        // SAFETY: their texts are texts or null, as the caller promises.
        Some(options) => unsafe { engine_options(options) }?,
    };
    Ok(open(Path::new(bundle), &options)?)
}

/// The options that C means.
///
/// # Safety
/// All texts are texts or null.
unsafe fn engine_options(options: &Options) -> Result<runtime::Options, Failure> {
    // SAFETY: it is called for texts of `options` only, which are texts or null, as the caller promises.
    let text = |text, name| unsafe { optional(text, name) };
    let count = |number: u32| (number > 0).then_some(number);
    // No bundle has what has no name.
    let unknown = |word: UnknownWord| Failure {
        status: Status::Bundle,
        message: word.to_string(),
    };
    let mut found = runtime::Options::default();
    if let Some(provider) = text(options.provider, "provider")? {
        found.provider = provider
            .parse::<Provider>()
            .map_err(|error| Failure::argument(error.to_string()))?;
    }
    found.fallback = !options.no_fallback;
    let precision = text(options.precision, "precision")?.map(str::parse);
    found.precision = precision.transpose().map_err(unknown)?;
    let target = text(options.target, "target")?.map(str::parse);
    found.target = target.transpose().map_err(unknown)?;
    found.onnxruntime = text(options.onnxruntime, "onnxruntime")?.map(Into::into);
    found.coreml.cache = text(options.coreml_cache, "coreml_cache")?.map(Into::into);
    found.image_size = count(options.image_size);
    found.threads = count(options.threads).map(|threads| usize::try_from(threads).unwrap_or(usize::MAX));
    if let Some(threads) = found
        .threads
        .filter(|count| *count > runtime::Options::MAX_THREADS)
    {
        let most = runtime::Options::MAX_THREADS;
        return Err(Failure::argument(format!(
            "`threads` is {threads}, expected at most {most}"
        )));
    }
    Ok(found)
}

/// The messages that C means.
///
/// # Safety
/// `messages` is null or points to so many, whose texts are texts and whose images are so many.
pub(crate) unsafe fn conversation(
    messages: *const Message,
    message_count: usize,
) -> Result<Vec<runtime::Message>, Failure> {
    // SAFETY: `messages` is null or points to so many, as the caller promises.
    let turns = unsafe { slice(messages, message_count, "messages") }?;
    turns
        .iter()
        // SAFETY: their texts are texts and their images are so many, as the caller promises.
        .map(|turn| unsafe { message(turn) })
        .collect()
}

/// The request that C means; null is the usual one.
///
/// # Safety
/// It is null or points to a request, whose pointers are null or what its fields say.
pub(crate) unsafe fn optional_request(request: *const Request) -> Result<runtime::Request, Failure> {
    // SAFETY: `request` is null or points to a request, as the caller promises.
    match unsafe { request.as_ref() } {
        None => Ok(runtime::Request::default()),
        // SAFETY: its pointers are null or what its fields say, as the caller promises.
        Some(request) => unsafe { engine_request(request) },
    }
}

/// The request that C means.
///
/// # Safety
/// Pointers are null or what the fields say.
unsafe fn engine_request(request: &Request) -> Result<runtime::Request, Failure> {
    let or_one = |number: f32| if number == 0.0 { 1.0 } else { number };
    // SAFETY: `stops` is null or points to `stop_count` texts, as the caller promises.
    let stops = unsafe { slice(request.stops, request.stop_count, "stops") }?;
    let stops = stops
        .iter()
        // SAFETY: each of them is a text, or null, which is an error.
        .map(|stop| match unsafe { required(*stop, "stops") }? {
            "" => Err(Failure::argument("a text of `stops` is empty".to_owned())),
            stop => Ok(stop.to_owned()),
        });
    // SAFETY: `cancel` is null or came from `fvlm_cancel_new` and is not freed, as the caller promises.
    let cancel = unsafe { request.cancel.as_ref() };
    let mut found = runtime::Request::default()
        .with_sampling(Sampling {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: or_one(request.top_p),
            repetition_penalty: or_one(request.repetition_penalty),
            seed: request.seed,
            ..Sampling::default()
        })
        .with_stops(stops.collect::<Result<Vec<String>, _>>()?);
    if request.max_tokens > 0 {
        found.max_tokens = request.max_tokens;
    }
    found.cancel = cancel.map(|cancel| Arc::clone(&cancel.0));
    Ok(found)
}

/// The turn that C means.
///
/// # Safety
/// Its text is a text or null, its images are so many or null.
unsafe fn message(turn: &Message) -> Result<runtime::Message, Failure> {
    let role = match turn.role {
        0 => Role::User,
        1 => Role::Assistant,
        2 => Role::System,
        other => {
            return Err(Failure::argument(format!(
                "`role` is {other}, expected 0, 1 or 2"
            )));
        }
    };
    // SAFETY: `text` is null or a text, as the caller promises.
    let text = unsafe { required(turn.text, "text") }?;
    // SAFETY: `images` is null or points to `image_count` ids, as the caller promises.
    let images = unsafe { slice(turn.images, turn.image_count, "images") }?;
    let mut found = runtime::Message::new(role.into(), text);
    found.images = images.iter().map(|id| image::ImageId(*id)).collect();
    Ok(found)
}
