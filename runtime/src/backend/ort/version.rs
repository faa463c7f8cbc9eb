//! What does the loaded library end the process at? Its CoreML provider crashes on weights outside the graph in versions before
//! 1.26; on AArch64 it multiplies blocks of 4 bits with float16 without asking the processor whether it can.

use crate::backend::Form;
use models::bundle::Precision;
use std::path::Path;

/// The first version that was branched off after the fix of microsoft/onnxruntime#28005, which was merged in April 2026.
const WITH_THE_FIX: [u64; 2] = [1, 26];

/// Whether a form has weights outside its graphs: all have but those of `fvlm-export --weights inside`.
pub(super) fn has_weights_outside(form: &Form) -> bool {
    match form {
        Form::Graphs(variant) => variant.graphs().any(|graph| !graph.data.is_empty()),
        Form::Packages(_) => false,
    }
}

/// Whether the CoreML provider of a library of this version takes weights that lie outside the graph.
///
/// # Errors
/// It ends the process: what was found and what is expected.
pub(super) fn takes_external_weights(version: Option<&str>, path: &Path) -> Result<(), String> {
    let [major, minor] = WITH_THE_FIX;
    let found = match version {
        Some(version) if numbers(version) >= Some(WITH_THE_FIX) => return Ok(()),
        Some(version) => format!("is version {version}"),
        None => "does not say its version".to_owned(),
    };
    Err(format!(
        "the ONNX Runtime at {} {found}, expected {major}.{minor} or later: before, its CoreML provider crashes on weights \
         that lie outside the graph (microsoft/onnxruntime#28005); a bundle of `fvlm-export --weights inside` has none",
        path.display()
    ))
}

/// Whether this processor has what the library multiplies `q4f16` with: arithmetic in float16, of ARMv8.2 and later. Elsewhere
/// than on AArch64 the library computes that in float32.
pub(super) fn has_half_arithmetic() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("fp16");
    #[cfg(not(target_arch = "aarch64"))]
    true
}

/// Whether the library computes graphs of a precision on a processor that may have arithmetic in float16.
///
/// # Errors
/// It ends the process by an instruction that the processor does not know, as version 1.32 does on a Cortex-A72.
pub(super) fn takes_precision(precision: Precision, half_arithmetic: bool) -> Result<(), String> {
    if precision != Precision::Q4F16 || half_arithmetic {
        return Ok(());
    }
    Err(
        "precision `q4f16` needs a processor with arithmetic in float16 (ARMv8.2 and later), which this one has not: ONNX \
         Runtime would end the process; `fvlm-export --precision q4` is for every processor"
            .to_owned(),
    )
}

/// Major and minor number.
fn numbers(version: &str) -> Option<[u64; 2]> {
    let mut parts = version.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some([major, minor]),
        _ => None,
    }
}

/// What the library at `path`, which is loaded, says that it is. `None` where it cannot be asked.
#[cfg(unix)]
pub(super) fn of(path: &Path) -> Option<String> {
    use std::ffi::{CStr, CString};
    use std::os::unix::ffi::OsStrExt as _;
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    #[expect(unsafe_code, reason = "the `ort` crate keeps the version to itself")]
    // SAFETY: the text ends with a zero. The library is loaded already: nothing of it runs now.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return None;
    }
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: the handle is one of `dlopen`; it is never closed, so that what is found stays.
    let symbol = unsafe { libc::dlsym(library, c"OrtGetApiBase".as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    type Base = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: ONNX Runtime's header declares a function of this name and type, and the `ort` crate has called it. It gives
    // a table that lives as long as the library; its version is a text that does so too.
    let version = unsafe {
        let base = std::mem::transmute::<*mut libc::c_void, Base>(symbol)();
        CStr::from_ptr(((*base).GetVersionString)())
    };
    Some(version.to_string_lossy().into_owned())
}

/// What the library at `path`, which is loaded, says that it is: nobody needs to know where there is no Core ML.
#[cfg(not(unix))]
pub(super) fn of(_path: &Path) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::super::OnnxRuntime;
    use super::*;
    use crate::backend::{Backend as _, Provider};

    #[test]
    fn blocks_with_float16_are_refused_where_the_processor_lacks_it() {
        for precision in Precision::ALL {
            assert_eq!(takes_precision(precision, true), Ok(()));
            assert_eq!(
                takes_precision(precision, false).is_ok(),
                precision != Precision::Q4F16,
                "{precision}"
            );
        }
    }

    #[test]
    fn older_libraries_are_refused_by_their_version() {
        let path = Path::new("libonnxruntime.1.24.2.dylib");
        for (version, works) in [
            (Some("1.26.0"), true),
            (Some("1.32.0"), true),
            (Some("2.0.0"), true),
            (Some("1.26.0-dev"), true),
            (Some("1.25.1"), false),
            (Some("1.9.0"), false),
            (Some("nonsense"), false),
            (None, false),
        ] {
            match takes_external_weights(version, path) {
                Ok(()) => assert!(works, "{version:?}"),
                Err(reason) => {
                    assert!(!works, "{version:?}");
                    let found = version.unwrap_or("does not say its version");
                    assert!(
                        reason.contains(found) && reason.contains("expected 1.26 or later"),
                        "{reason}"
                    );
                    assert!(reason.contains("`fvlm-export --weights inside`"), "{reason}");
                }
            }
        }
    }

    #[test]
    fn weights_inside_need_no_version() {
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        let bundle = models::bundle::Bundle::open(&bundle).unwrap();
        let mut variant = bundle.variants[0].clone();
        let mut graphs = [
            &mut variant.vision_encoder,
            &mut variant.embed_tokens,
            &mut variant.decoder,
        ];
        graphs.iter_mut().for_each(|graph| graph.data.clear());
        let inside = Form::Graphs(Box::new(variant.clone()));
        assert!(!has_weights_outside(&inside));
        variant.embed_tokens.data = vec!["onnx/embed_tokens.onnx_data".to_owned()];
        let outside = Form::Graphs(Box::new(variant));
        assert!(has_weights_outside(&outside));
        // Nothing else than the CoreML provider cares, and that one only about weights outside.
        let options = crate::backend::Options::default().with_onnxruntime(Some("/nowhere".into()));
        for (provider, form, works) in [
            (Provider::OrtCoreMl, Some(&inside), true),
            (Provider::OrtCoreMl, Some(&outside), false),
            (Provider::OrtCoreMl, None, false),
            (Provider::Cpu, Some(&outside), true),
            (Provider::Cpu, None, true),
        ] {
            let found = OnnxRuntime { provider }.check_form(form, &options);
            assert_eq!(found.is_ok(), works, "{provider} {form:?}");
        }
    }

    // Elsewhere it does not say which one it is.
    #[cfg(unix)]
    #[test]
    fn the_loaded_library_says_its_version() {
        let options = crate::backend::Options::default();
        // Where there is none, other tests say so.
        if let Ok(path) = super::super::load(&options) {
            let version = of(&path).unwrap();
            assert!(
                numbers(&version).is_some_and(|found| found >= [1, 24]),
                "{version}"
            );
        }
        assert_eq!(of(Path::new("/nowhere/libonnxruntime.so")), None);
    }
}
