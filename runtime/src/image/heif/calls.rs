//! libheif's C interface, as far as it is called.

use super::Codec;
use super::library::OLDEST;
use crate::image::Limits;
use crate::image::decode::Decoded;
use crate::image::problem::{Problem, in_words};
use crate::image::threads::cores;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};

/// `heif_error`.
#[repr(C)]
struct Error {
    code: c_int,
    subcode: c_int,
    message: *const c_char,
}

/// `heif_security_limits`, as far as it is written to: it grows at its end, by version.
#[repr(C)]
struct SecurityLimits {
    version: u8,
    max_image_size_pixels: u64,
    max_number_of_tiles: u64,
    max_bayer_pattern_pixels: u32,
    max_items: u32,
    max_color_profile_size: u32,
    max_memory_block_size: u64,
    max_components: u32,
    max_iloc_extents_per_item: u32,
    max_size_entity_group: u32,
    max_children_per_box: u32,
    /// Of version 2.
    max_total_memory: u64,
}

const UNSUPPORTED_FILE: c_int = 3;
const UNSUPPORTED_FEATURE: c_int = 4;
const MEMORY: c_int = 6;
const RGB: c_int = 1;
const INTERLEAVED: c_int = 10;
/// Interleaved RGB and RGBA, of bytes and of words.
const CHROMA_RGB: c_int = 10;
const CHROMA_RGBA: c_int = 11;
const CHROMA_RRGGBB_LE: c_int = 14;
const CHROMA_RRGGBBAA_LE: c_int = 15;
/// Threads for tiles.
const THREADS: usize = 4;

type Object = *mut c_void;

/// libheif's functions.
#[derive(Debug)]
pub(super) struct Heif {
    version: u32,
    have_decoder: unsafe extern "C" fn(c_int) -> c_int,
    context: unsafe extern "C" fn() -> Object,
    free_context: unsafe extern "C" fn(Object),
    threads: unsafe extern "C" fn(Object, c_int),
    /// Since 1.19.
    security: Option<unsafe extern "C" fn(Object) -> *mut SecurityLimits>,
    read: unsafe extern "C" fn(Object, *const u8, usize, *const c_void) -> Error,
    primary: unsafe extern "C" fn(Object, *mut Object) -> Error,
    free_handle: unsafe extern "C" fn(Object),
    handle_width: unsafe extern "C" fn(Object) -> c_int,
    handle_height: unsafe extern "C" fn(Object) -> c_int,
    handle_bits: unsafe extern "C" fn(Object) -> c_int,
    handle_alpha: unsafe extern "C" fn(Object) -> c_int,
    handle_premultiplied: unsafe extern "C" fn(Object) -> c_int,
    decode: unsafe extern "C" fn(Object, *mut Object, c_int, c_int, *const c_void) -> Error,
    free_image: unsafe extern "C" fn(Object),
    width: unsafe extern "C" fn(Object, c_int) -> c_int,
    height: unsafe extern "C" fn(Object, c_int) -> c_int,
    bits: unsafe extern "C" fn(Object, c_int) -> c_int,
    plane: unsafe extern "C" fn(Object, c_int, *mut c_int) -> *const u8,
    /// Never closed: code of it may still be about to run in its threads.
    _library: std::mem::ManuallyDrop<Library>,
}

#[expect(unsafe_code, reason = "libheif is a C library")]
impl Heif {
    /// Opens the library at `path`.
    ///
    /// # Errors
    /// It cannot be opened, has not all functions, or is too old: in a sentence.
    pub(super) fn open(path: &Path) -> Result<Heif, String> {
        // SAFETY: libheif's initialisers and those of what it needs run; it is a library that was named, or one of a place
        // that only trusted users write to.
        let library = unsafe { Library::new(path.as_os_str()) };
        let library = library.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        // SAFETY: the types are those that libheif's headers declare since 1.15 and earlier, and it keeps its binary
        // interface (libheif.so.1).
        unsafe {
            let version: unsafe extern "C" fn() -> u32 = symbol(&library, c"heif_get_version_number", path)?;
            let version = version();
            let [major, minor] = OLDEST;
            if version >> 16 < (major << 8 | minor) {
                let found = words_of(version);
                let path = path.display();
                return Err(format!(
                    "libheif at {path} is version {found}, expected {major}.{minor} or later"
                ));
            }
            let init: unsafe extern "C" fn(*const c_void) -> Error = symbol(&library, c"heif_init", path)?;
            let done = init(null());
            if done.code != 0 {
                return Err(format!(
                    "libheif at {} does not start: {}",
                    path.display(),
                    done.words()
                ));
            }
            Ok(Heif {
                version,
                have_decoder: symbol(&library, c"heif_have_decoder_for_format", path)?,
                context: symbol(&library, c"heif_context_alloc", path)?,
                free_context: symbol(&library, c"heif_context_free", path)?,
                threads: symbol(&library, c"heif_context_set_max_decoding_threads", path)?,
                security: symbol(&library, c"heif_context_get_security_limits", path).ok(),
                read: symbol(&library, c"heif_context_read_from_memory_without_copy", path)?,
                primary: symbol(&library, c"heif_context_get_primary_image_handle", path)?,
                free_handle: symbol(&library, c"heif_image_handle_release", path)?,
                handle_width: symbol(&library, c"heif_image_handle_get_width", path)?,
                handle_height: symbol(&library, c"heif_image_handle_get_height", path)?,
                handle_bits: symbol(&library, c"heif_image_handle_get_luma_bits_per_pixel", path)?,
                handle_alpha: symbol(&library, c"heif_image_handle_has_alpha_channel", path)?,
                handle_premultiplied: symbol(&library, c"heif_image_handle_is_premultiplied_alpha", path)?,
                decode: symbol(&library, c"heif_decode_image", path)?,
                free_image: symbol(&library, c"heif_image_release", path)?,
                width: symbol(&library, c"heif_image_get_width", path)?,
                height: symbol(&library, c"heif_image_get_height", path)?,
                bits: symbol(&library, c"heif_image_get_bits_per_pixel_range", path)?,
                plane: symbol(&library, c"heif_image_get_plane_readonly", path)?,
                _library: std::mem::ManuallyDrop::new(library),
            })
        }
    }

    /// `1.15.1`.
    pub(super) fn version(&self) -> String {
        words_of(self.version)
    }

    pub(super) fn has_decoder(&self, codec: Codec) -> bool {
        let format = match codec {
            Codec::Hevc => 1,
            Codec::Av1 => 4,
        };
        // SAFETY: a number goes in and one comes out.
        unsafe { (self.have_decoder)(format) != 0 }
    }

    /// The primary image of `bytes`.
    pub(super) fn decode(&self, bytes: &[u8], limits: &Limits) -> Result<Decoded, Problem> {
        // SAFETY: no argument. What comes is the context's alone, and freed with it.
        let context = Owned::new(unsafe { (self.context)() }, self.free_context)?;
        self.bound(&context, limits);
        // SAFETY: the bytes outlive the context, which is a local of this function; there are no options.
        unsafe { (self.read)(context.get(), bytes.as_ptr(), bytes.len(), null()) }.check()?;
        let mut handle = null_mut();
        // SAFETY: the context lives; a handle is written, or none and an error is returned.
        unsafe { (self.primary)(context.get(), &raw mut handle) }.check()?;
        let handle = Owned::new(handle, self.free_handle)?;
        // SAFETY: the handle lives; numbers come out.
        let (width, height, bits, alpha, premultiplied) = unsafe {
            (
                (self.handle_width)(handle.get()),
                (self.handle_height)(handle.get()),
                (self.handle_bits)(handle.get()),
                (self.handle_alpha)(handle.get()) != 0,
                (self.handle_premultiplied)(handle.get()) != 0,
            )
        };
        limits.allow(edge(width), edge(height))?;
        let form = Form {
            deep: bits > 8,
            alpha,
        };
        let mut image = null_mut();
        // SAFETY: the handle lives; an image is written, or none and an error is returned; there are no options.
        unsafe { (self.decode)(handle.get(), &raw mut image, RGB, form.chroma(), null()) }.check()?;
        let image = Owned::new(image, self.free_image)?;
        let mut decoded = self.pixels(&image, form, limits)?;
        if premultiplied {
            straighten(&mut decoded);
        }
        Ok(decoded)
    }

    /// What decoding may take, for the versions that can be told.
    fn bound(&self, context: &Owned, limits: &Limits) {
        let threads = cores().min(THREADS);
        // One is the thread that calls.
        let threads = if threads == 1 { 0 } else { threads };
        // SAFETY: the context lives.
        unsafe { (self.threads)(context.get(), c_int::try_from(threads).unwrap_or(0)) };
        let Some(security) = self.security else {
            return;
        };
        // SAFETY: the context lives, and the limits with it; nobody else has them.
        let Some(security) = (unsafe { security(context.get()).as_mut() }) else {
            return;
        };
        let lower = |limit: &mut u64, most: u64| {
            // 0 is none.
            if *limit == 0 || *limit > most {
                *limit = most;
            }
        };
        if security.version >= 1 {
            // The survey was strict about it: this is a second fence, with room for blocks at edges.
            lower(
                &mut security.max_image_size_pixels,
                limits.max_pixels.max(1 << 20).saturating_mul(2),
            );
            lower(&mut security.max_memory_block_size, limits.max_memory());
        }
        if security.version >= 2 {
            lower(&mut security.max_total_memory, limits.max_memory());
        }
    }

    /// 8-bit RGB of a decoded image, and its alpha: of deeper ones, the upper 8 bits.
    fn pixels(&self, image: &Owned, form: Form, limits: &Limits) -> Result<Decoded, Problem> {
        let mut stride = 0;
        // SAFETY: the image lives; numbers and a plane of it come out.
        let (width, height, bits, plane) = unsafe {
            let image = image.get();
            (
                edge((self.width)(image, INTERLEAVED)),
                edge((self.height)(image, INTERLEAVED)),
                (self.bits)(image, INTERLEAVED),
                (self.plane)(image, INTERLEAVED, &raw mut stride),
            )
        };
        limits.allow(width, height)?;
        let channels = form.channels();
        let row = width as usize * channels * if form.deep { 2 } else { 1 };
        let stride = usize::try_from(stride).unwrap_or(0);
        let shift = if form.deep { bits - 8 } else { 0 };
        if plane.is_null() || stride < row || !(0..=8).contains(&shift) {
            return Problem::damaged("libheif made an image of it that contradicts itself");
        }
        let count = width as usize * height as usize;
        let (mut pixels, mut alpha) = (Vec::new(), Vec::new());
        pixels
            .try_reserve_exact(count * 3)
            .and_then(|()| alpha.try_reserve_exact(if form.alpha { count } else { 0 }))
            .map_err(|_| Problem::Memory)?;
        let mut put = |row: &[u8]| {
            for pixel in row.chunks_exact(channels) {
                pixels.extend_from_slice(&pixel[..3]);
                alpha.extend(pixel.get(3));
            }
        };
        let mut upper = Vec::new();
        for y in 0..height as usize {
            // SAFETY: the plane has `height` rows, `stride` bytes from each to the next, and a row is no longer than that; it
            // lives as long as the image, and nobody writes to it.
            let row = unsafe { std::slice::from_raw_parts(plane.add(y * stride), row) };
            if form.deep {
                let samples = row.as_chunks().0.iter().map(|&sample| u16::from_le_bytes(sample));
                upper.clear();
                upper.extend(samples.map(|sample| u8::try_from(sample >> shift).unwrap_or(u8::MAX)));
                put(&upper);
            } else {
                put(row);
            }
        }
        Ok(Decoded {
            width,
            height,
            pixels,
            alpha: form.alpha.then_some(alpha),
        })
    }
}

/// In what libheif is asked to decode.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// In words.
    deep: bool,
    alpha: bool,
}

impl Form {
    fn chroma(self) -> c_int {
        match (self.deep, self.alpha) {
            (false, false) => CHROMA_RGB,
            (false, true) => CHROMA_RGBA,
            (true, false) => CHROMA_RRGGBB_LE,
            (true, true) => CHROMA_RRGGBBAA_LE,
        }
    }

    fn channels(self) -> usize {
        if self.alpha { 4 } else { 3 }
    }
}

/// Divides colours by their alpha, which they are stored multiplied with, as Pillow's decoder of AVIF does; where nothing
/// is seen, they are black.
fn straighten(decoded: &mut Decoded) {
    let alpha = decoded.alpha.iter().flatten();
    for (pixel, &alpha) in decoded.pixels.as_chunks_mut::<3>().0.iter_mut().zip(alpha) {
        *pixel = pixel.map(|color| straight(color, alpha));
    }
}

/// A colour without the alpha that it was multiplied with, rounded.
fn straight(color: u8, alpha: u8) -> u8 {
    let (color, alpha) = (u32::from(color), u32::from(alpha));
    let whole = (color * 255 + alpha / 2).checked_div(alpha).unwrap_or(0);
    u8::try_from(whole).unwrap_or(u8::MAX)
}

/// A function of a library.
///
/// # Safety
/// It has the type `T`, a pointer to a function.
#[expect(unsafe_code, reason = "libheif is a C library")]
unsafe fn symbol<T: Copy>(library: &Library, name: &CStr, path: &Path) -> Result<T, String> {
    // SAFETY: the caller knows the type.
    let symbol = unsafe { library.get::<T>(name) };
    match symbol {
        Ok(symbol) => Ok(*symbol),
        Err(_) => Err(format!(
            "cannot open {}: it has no function `{}`, expected libheif",
            path.display(),
            name.to_string_lossy()
        )),
    }
}

fn words_of(version: u32) -> String {
    let [major, minor, patch, _] = version.to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

/// A length, of which a negative one is an error: none.
fn edge(length: c_int) -> u32 {
    u32::try_from(length).unwrap_or(0)
}

/// An object of libheif's with the function that frees it.
struct Owned {
    object: NonNull<c_void>,
    free: unsafe extern "C" fn(Object),
}

impl Owned {
    fn new(object: Object, free: unsafe extern "C" fn(Object)) -> Result<Owned, Problem> {
        match NonNull::new(object) {
            Some(object) => Ok(Owned { object, free }),
            None => Err(Problem::Memory),
        }
    }

    fn get(&self) -> Object {
        self.object.as_ptr()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "libheif is a C library")]
        // SAFETY: the object is libheif's, of the kind that the function frees, and freed once.
        unsafe {
            (self.free)(self.object.as_ptr());
        }
    }
}

impl Error {
    /// What libheif says.
    fn words(&self) -> String {
        if self.message.is_null() {
            return "it does not say why".to_owned();
        }
        #[expect(unsafe_code, reason = "libheif is a C library")]
        // SAFETY: libheif's texts end with a zero, and live as long as the context that they are of.
        let words = unsafe { CStr::from_ptr(self.message) };
        in_words(&models::plain::line(&words.to_string_lossy()))
    }

    fn check(self) -> Result<(), Problem> {
        match self.code {
            0 => Ok(()),
            MEMORY => Err(Problem::Memory),
            UNSUPPORTED_FILE | UNSUPPORTED_FEATURE => {
                Problem::unsupported(format!("one that libheif does not decode ({})", self.words()))
            }
            _ => Problem::damaged(self.words()),
        }
    }
}
