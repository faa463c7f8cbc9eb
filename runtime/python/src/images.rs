//! Images: what Python programs have in their hands, as a [`Picture`].

use crate::error;
use numpy::{PyArray3, PyArrayMethods as _, PyUntypedArray, PyUntypedArrayMethods as _};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView, PyTuple};
use runtime::image::{self, Limits, Picture};
use std::path::PathBuf;
use std::sync::Arc;

/// What an error says of any other object.
const EXPECTED: &str = "a path, bytes of an image file, a PIL image, or an array [height, width, 3] of uint8";

/// An image before it is decoded: that needs no interpreter.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file.
    Path(PathBuf),
    /// What a file holds.
    File(PyBackedBytes),
    /// Its pixels.
    Pixels(Picture),
}

impl Source {
    /// What `object` is an image of.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Source> {
        let py = object.py();
        if object.is_instance_of::<PyBytes>() || object.is_instance_of::<PyByteArray>() {
            return Ok(Source::File(object.extract()?));
        }
        if object.is_instance_of::<PyMemoryView>() {
            return Ok(Source::File(object.call_method0("tobytes")?.extract()?));
        }
        if let Ok(path) = object.extract::<PathBuf>() {
            return Ok(Source::Path(path));
        }
        let array = if is_pil(object)? {
            let upright = py
                .import("PIL.ImageOps")?
                .call_method1("exif_transpose", (object,))?;
            if is_transparent(&upright)? {
                return of_transparent(&upright).map(Source::Pixels);
            }
            of_pil(&upright)?
        } else if object.is_instance_of::<PyUntypedArray>() {
            object.clone()
        } else if object.hasattr("__array_interface__")? || object.hasattr("__array__")? {
            array(object)?
        } else {
            let found = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "found an image of type {found}, expected {EXPECTED}"
            )));
        };
        pixels(array.cast::<PyUntypedArray>()?).map(Source::Pixels)
    }

    /// As [`Source::of`], with pixels of its own where `object` has memory that others may write to.
    pub(crate) fn copied(object: &Bound<'_, PyAny>) -> PyResult<Source> {
        let is_array = object.is_instance_of::<PyUntypedArray>()
            || ((object.hasattr("__array_interface__")? || object.hasattr("__array__")?) && !is_pil(object)?);
        if !is_array {
            return Source::of(object);
        }
        let copy = object.py().import("numpy")?.call_method1("array", (object,))?;
        Source::of(&copy)
    }

    /// All images of `object`: one, a list or tuple of them, or an array of several, `[n, height, width, 3]`.
    pub(crate) fn several(object: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Source>> {
        match object {
            None => Ok(Vec::new()),
            Some(several) if is_several(several) => {
                several.try_iter()?.map(|one| Source::of(&one?)).collect()
            }
            Some(one) => Ok(vec![Source::of(one)?]),
        }
    }

    /// The decoded image.
    pub(crate) fn picture(self) -> Result<Picture, image::ImageError> {
        let limits = Limits::default();
        match self {
            Source::Path(path) => image::open(&path, &limits),
            Source::File(bytes) => image::decode(&bytes, "bytes", &limits),
            Source::Pixels(picture) => Ok(picture),
        }
    }
}

/// Whether it is more than one image.
pub(crate) fn is_several(object: &Bound<'_, PyAny>) -> bool {
    let array = object.cast::<PyUntypedArray>();
    object.is_instance_of::<PyList>()
        || object.is_instance_of::<PyTuple>()
        || array.is_ok_and(|array| array.ndim() == 4)
}

/// Whether it is an image of Pillow, which has an array interface too, but not only of RGB.
fn is_pil(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let modules = object.py().import("sys")?.getattr("modules")?;
    match modules.call_method1("get", ("PIL.Image",))? {
        none if none.is_none() => Ok(false),
        module => object.is_instance(&module.getattr("Image")?),
    }
}

/// Whether an image of Pillow has alpha, or a colour that is transparent.
fn is_transparent(image: &Bound<'_, PyAny>) -> PyResult<bool> {
    let bands: Vec<String> = image.call_method0("getbands")?.extract()?;
    let color = image.getattr("info")?.call_method1("get", ("transparency",))?;
    Ok(!color.is_none() || bands.iter().any(|band| band.eq_ignore_ascii_case("A")))
}

/// An image of Pillow with what is transparent of it.
fn of_transparent(image: &Bound<'_, PyAny>) -> PyResult<Picture> {
    if is_wide(image)? {
        // Pillow would make nearly all of it white, and compare that.
        let color = image.getattr("info")?.get_item("transparency")?;
        let opaque = array(image)?.call_method1("__ne__", (color,))?;
        let alpha = opaque
            .call_method1("astype", ("uint8",))?
            .call_method1("__mul__", (255_u8,))?;
        let alpha: PyBackedBytes = alpha.call_method0("tobytes")?.extract()?;
        return Ok(pixels(of_pil(image)?.cast::<PyUntypedArray>()?)?.with_alpha(&alpha));
    }
    let whole = image.call_method1("convert", ("RGBA",))?;
    let colors = array(&whole.call_method1("convert", ("RGB",))?)?;
    let alpha = whole
        .call_method1("getchannel", ("A",))?
        .call_method0("tobytes")?;
    let alpha: PyBackedBytes = alpha.extract()?;
    Ok(pixels(colors.cast::<PyUntypedArray>()?)?.with_alpha(&alpha))
}

/// Whether an image of Pillow is gray of more than 8 bits.
fn is_wide(image: &Bound<'_, PyAny>) -> PyResult<bool> {
    let mode: String = image.getattr("mode")?.extract()?;
    Ok(mode == "I" || mode == "F" || mode.starts_with("I;16"))
}

/// The pixels of an image of Pillow in red, green and blue. Of 16 bits the upper eight are kept, as of files; Pillow
/// itself makes all above 255 white.
fn of_pil<'py>(image: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let mode: String = image.getattr("mode")?.extract()?;
    if mode.starts_with("I;16") {
        let upper = array(image)?.call_method1("__rshift__", (8,))?;
        let upper = upper.call_method1("astype", ("uint8",))?;
        let gray = image
            .py()
            .import("PIL.Image")?
            .call_method1("fromarray", (upper,))?;
        return array(&gray.call_method1("convert", ("RGB",))?);
    }
    if mode == "I" || mode == "F" {
        let (least, most): (f64, f64) = image.call_method0("getextrema")?.extract()?;
        if least < 0.0 || most > 255.0 {
            return Err(error::ImageError_::new_err(format!(
                "an image of mode {mode} has values from {least} to {most}, expected 0 to 255: convert it to mode L or RGB"
            )));
        }
    }
    array(&image.call_method1("convert", ("RGB",))?)
}

/// What `numpy.asarray` makes of it: a view, where its memory is an array's.
fn array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    object.py().import("numpy")?.call_method1("asarray", (object,))
}

/// The pixels of an array `[height, width, 3]` of bytes, which are not copied where rows have no gaps.
fn pixels(array: &Bound<'_, PyUntypedArray>) -> PyResult<Picture> {
    let py = array.py();
    let shape = array.shape().to_vec();
    let (&[height, width, 3], Ok(bytes)) = (&shape[..], array.cast::<PyArray3<u8>>()) else {
        return Err(PyValueError::new_err(format!(
            "found an array {shape:?} of {}, expected [height, width, 3] of uint8: red, green, blue",
            array.dtype()
        )));
    };
    let bytes = if bytes.is_c_contiguous() {
        bytes.clone()
    } else {
        let whole = py.import("numpy")?.call_method1("ascontiguousarray", (bytes,))?;
        whole.cast_into::<PyArray3<u8>>()?
    };
    let edge = |edge: usize| u32::try_from(edge).ok();
    let (Some(height), Some(width)) = (edge(height), edge(width)) else {
        return Err(error::ImageError_::new_err(format!(
            "an array {shape:?} has too long an edge for an image"
        )));
    };
    let memory = Memory {
        length: bytes.len(),
        first: bytes.data(),
        _owner: bytes.unbind(),
    };
    Picture::shared(width, height, Arc::new(memory))
        .ok_or_else(|| error::ImageError_::new_err(format!("an array {shape:?} has no pixels")))
}

/// The memory of an array, which stays as long as this.
struct Memory {
    first: *const u8,
    length: usize,
    _owner: Py<PyArray3<u8>>,
}

#[expect(
    unsafe_code,
    reason = "the memory of an array is used without the interpreter's lock"
)]
// SAFETY: a pointer into memory that nobody frees while this is there; it is only read.
unsafe impl Send for Memory {}

#[expect(
    unsafe_code,
    reason = "the memory of an array is used without the interpreter's lock"
)]
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl AsRef<[u8]> for Memory {
    #[expect(
        unsafe_code,
        reason = "the memory of an array is used without the interpreter's lock"
    )]
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: an array's data without gaps, of so many bytes, which its owner keeps. As with NumPy's own functions that
        // give up the lock, who writes to an array that is being looked at gets neither the old nor the new image.
        unsafe { std::slice::from_raw_parts(self.first, self.length) }
    }
}
