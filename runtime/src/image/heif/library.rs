//! libheif: where its shared library is looked for, and what is said where it is not.
//!
//! As for ONNX Runtime, never in the current folder, and nowhere where another user could have put it; what
//! [`VARIABLE`] names is taken as it is.

use super::Codec;
use super::calls::Heif;
use crate::library::{check_trust, is_drive, loader_is_safe, program_folder};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Names libheif's library, or a folder with it. Without it, well-known places are looked into.
pub const VARIABLE: &str = "FVLM_LIBHEIF";

/// The first version that images were compared with; that of Debian 12.
pub(super) const OLDEST: [u32; 2] = [1, 15];

/// What the library is called, with the number of its interface where names have that.
const NAMES: &[&str] = if cfg!(target_vendor = "apple") {
    &["libheif.1.dylib", "libheif.dylib"]
} else if cfg!(windows) {
    &["heif.dll", "libheif.dll", "libheif-1.dll"]
} else {
    &["libheif.so.1"]
};

/// The library, opened once for all and never closed.
pub(super) fn get() -> Result<&'static Heif, String> {
    static LIBRARY: OnceLock<Result<Heif, String>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        find(named.map(PathBuf::from).as_deref(), program_folder().as_deref()).map_err(with_ways)
    });
    library.as_ref().map_err(Clone::clone)
}

/// What to do about it: to install it, or to convert the image.
fn with_ways(problem: String) -> String {
    let install = if cfg!(target_vendor = "apple") {
        "`brew install libheif`"
    } else if cfg!(windows) {
        "libheif's DLL beside the program"
    } else {
        "`apt install libheif1`"
    };
    format!("{problem}; install libheif ({install}), or {}", convert())
}

/// The command that makes something of an image that is decoded everywhere.
fn convert() -> String {
    let command = if cfg!(target_vendor = "apple") {
        "`sips -s format jpeg in.heic --out out.jpg`"
    } else {
        "`heif-convert in.heic out.png`"
    };
    format!("convert the image ({command})")
}

/// That the library decodes other formats only.
pub(super) fn no_plugin(heif: &Heif, codec: Codec) -> String {
    let (name, packages) = match codec {
        Codec::Hevc => ("HEVC", "libheif-plugin-libde265"),
        Codec::Av1 => ("AV1", "libheif-plugin-dav1d"),
    };
    format!(
        "libheif {} has no decoder for {name}; install one (`apt install {packages}`), or {}",
        heif.version(),
        convert()
    )
}

/// The first that works.
fn find(named: Option<&Path>, program: Option<&Path>) -> Result<Heif, String> {
    if let Some(named) = named {
        let path = resolve(named)?;
        return Heif::open(&path).map_err(|problem| format!("{VARIABLE}, {}: {problem}", named.display()));
    }
    let mut problems = Vec::new();
    for path in well_known(program) {
        match check_trust(&path).and_then(|()| Heif::open(&path)) {
            Ok(heif) => return Ok(heif),
            Err(problem) if path.is_absolute() || !problem.contains("cannot open") => problems.push(problem),
            // The system's loader does not know it.
            Err(_) => {}
        }
    }
    match problems.first() {
        Some(problem) => Err(problem.clone()),
        None => Err("libheif, which decodes these, was not found".to_owned()),
    }
}

/// The library that a path names: itself, or the one in it.
fn resolve(named: &Path) -> Result<PathBuf, String> {
    let said = |problem: String| format!("{VARIABLE}, {}: {problem}", named.display());
    let there = std::fs::metadata(named).map_err(|error| said(error.to_string()))?;
    if there.is_file() {
        return named.canonicalize().map_err(|error| said(error.to_string()));
    }
    let inside = NAMES.iter().map(|name| named.join(name));
    let found = inside
        .filter(|path| path.is_file())
        .find_map(|path| path.canonicalize().ok());
    found.ok_or_else(|| said(format!("expected {}, or a folder with it", NAMES.join(" or "))))
}

/// Beside the program, in the folders of package managers, where the system's loader looks.
fn well_known(program: Option<&Path>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(program) = program {
        folders.push(program.to_owned());
        let above = program.parent().is_some_and(|above| !is_drive(above));
        folders.extend(above.then(|| program.join("../lib")));
    }
    folders.extend(["/opt/homebrew/lib", "/opt/local/lib", "/usr/local/lib"].map(PathBuf::from));
    // On Windows those without a drive would be folders of the current one.
    folders.retain(|folder| folder.is_absolute());
    let paths = folders
        .iter()
        .flat_map(|folder| NAMES.iter().map(|name| folder.join(name)));
    let mut found: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
    if loader_is_safe() {
        found.extend(NAMES.iter().map(PathBuf::from));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_and_missing_is_an_error_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.so");
        let empty = folder.path().to_owned();
        let other = folder.path().join("other.so");
        std::fs::write(&other, "no library").unwrap();
        for (path, part) in [
            (&missing, "missing.so"),
            (&empty, "expected libheif"),
            (&other, "cannot open"),
        ] {
            let error = find(Some(path), None).unwrap_err();
            assert!(error.contains(part) && error.starts_with(VARIABLE), "{error}");
        }
    }

    #[test]
    fn a_library_beside_the_program_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bin");
        let beside = program.join(NAMES[0]);
        std::fs::create_dir(&program).unwrap();
        std::fs::write(&beside, "no library").unwrap();
        assert_eq!(well_known(Some(&program)).first(), Some(&beside));
        assert!(!well_known(None).contains(&beside));
        // It is passed over for the next, or it is what the error is about.
        match find(None, Some(&program)) {
            Ok(heif) => assert!(!heif.version().is_empty()),
            Err(error) => assert!(error.contains("cannot open"), "{error}"),
        }
    }

    #[test]
    fn what_to_do_is_said_in_one_sentence() {
        let said = with_ways("libheif was not found".to_owned());
        assert!(
            said.contains("install libheif") && said.contains("convert the image (`"),
            "{said}"
        );
    }
}
