//! ONNX Runtime's shared library: where it is looked for.
//!
//! Never in the current folder or above it: to run a program in a folder that somebody else filled must not
//! load code from there. Relative entries of the environment (an empty one in `PATH` is the current folder)
//! are passed over for the same reason. What is named by option or by [`VARIABLE`] is taken as it is.
//!
//! Nor from a place where another user could have put it (`trust.rs`).
//!
//! Python is never run to find out: its well-known folders are looked into.

mod trust;

pub(crate) use trust::check as check_trust;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Names the library, or a directory with it, where no option does.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";

/// How deep a folder is searched: `.ort/onnxruntime-1.32.0/onnxruntime/capi/libonnxruntime.so`.
const DEPTH: usize = 4;

/// What the system's loader calls it.
const BARE: &str = if cfg!(target_vendor = "apple") {
    "libonnxruntime.dylib"
} else if cfg!(windows) {
    "onnxruntime.dll"
} else {
    "libonnxruntime.so"
};

/// Libraries to try, the best first. One that is named, by option or by [`VARIABLE`], is the only one.
///
/// # Errors
/// The path that was named does not exist, or no library is in that directory.
pub fn candidates(named: Option<&Path>) -> Result<Vec<PathBuf>, String> {
    let variable = std::env::var_os(VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    match (named, variable) {
        (Some(path), _) => resolve(path, "the path given for ONNX Runtime"),
        (None, Some(path)) if is_bare(&path) => bare(&path, &Places::here()),
        (None, Some(path)) => resolve(&path, VARIABLE),
        (None, None) => Ok(well_known(&Places::here())),
    }
}

/// Whether it is a library's name without a folder, which is for the system's loader and not for the current
/// folder.
fn is_bare(path: &Path) -> bool {
    path.components().count() == 1 && (is_library(path) || !path.is_dir())
}

/// A bare name: beside the program, or where the system's loader finds it.
fn bare(name: &Path, places: &Places) -> Result<Vec<PathBuf>, String> {
    let beside = places.program.as_ref().map(|folder| folder.join(name));
    match beside.filter(|path| path.is_file()) {
        Some(path) => Ok(vec![path]),
        None if places.loader_is_safe() => Ok(vec![name.to_owned()]),
        None => Err(format!(
            "{VARIABLE}, {}: a name without a folder, which this system may find in the current folder; \
             expected a path",
            name.display()
        )),
    }
}

/// The folder of the program.
pub(crate) fn program_folder() -> Option<PathBuf> {
    Places::here().program
}

/// Whether the system's loader, given a name without a folder, keeps away from the current folder.
pub(crate) fn loader_is_safe() -> bool {
    Places::here().loader_is_safe()
}

/// What the process was started with, as far as it says where the library may be.
#[derive(Debug, Default)]
struct Places {
    /// The folder of the program.
    program: Option<PathBuf>,
    /// Active environments of Python: `VIRTUAL_ENV`, `CONDA_PREFIX`.
    environments: Vec<PathBuf>,
    /// `PATH`.
    path: Option<OsString>,
    /// `HOME`.
    home: Option<PathBuf>,
    /// `LD_LIBRARY_PATH`.
    loader_path: Option<OsString>,
    /// Windows' own folder, `SystemRoot`.
    system_root: Option<PathBuf>,
}

impl Places {
    fn here() -> Places {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = |name: &str| variable(name).map(PathBuf::from);
        let program = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
        Places {
            program: program.as_deref().and_then(Path::parent).map(Path::to_owned),
            environments: ["VIRTUAL_ENV", "CONDA_PREFIX"]
                .into_iter()
                .filter_map(folder)
                .collect(),
            path: variable("PATH"),
            home: folder("HOME"),
            loader_path: variable("LD_LIBRARY_PATH"),
            system_root: folder("SystemRoot"),
        }
    }

    /// Whether the system's loader, given a name without a folder, keeps away from the current folder. Those
    /// of Windows and macOS look into it; that of the other systems only where `LD_LIBRARY_PATH` has a
    /// relative or an empty entry.
    fn loader_is_safe(&self) -> bool {
        let entries = self.loader_path.as_deref().unwrap_or(OsStr::new("/"));
        cfg!(all(unix, not(target_vendor = "apple")))
            && std::env::split_paths(entries).all(|entry| entry.is_absolute())
    }
}

fn resolve(path: &Path, origin: &str) -> Result<Vec<PathBuf>, String> {
    let there = std::fs::metadata(path).map_err(|error| format!("{origin}, {}: {error}", path.display()))?;
    if !there.is_dir() {
        // The system's loader would wait for whoever writes to a pipe.
        if !there.is_file() {
            let what = "is neither a file nor a directory, expected ONNX Runtime's library";
            return Err(format!("{origin}, {}: {what}", path.display()));
        }
        return path
            .canonicalize()
            .map(|path| vec![path])
            .map_err(|error| format!("{}: {error}", path.display()));
    }
    let mut found = Vec::new();
    search(path, DEPTH, &mut found);
    if found.is_empty() {
        return Err(format!(
            "{origin}, {}: no ONNX Runtime library in this directory",
            path.display()
        ));
    }
    Ok(newest_first(found))
}

/// Beside the program, in `.ort/` up the program's tree, in the Python installations, in the system.
fn well_known(places: &Places) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut add = |folder: PathBuf, depth: usize| {
        let mut libraries = Vec::new();
        search(&folder, depth, &mut libraries);
        found.extend(newest_first(libraries));
    };
    if let Some(program) = &places.program {
        add(program.clone(), 0);
        if program.parent().is_some_and(|above| !is_drive(above)) {
            add(program.join("../lib"), 0);
        }
        for folder in program.ancestors().take_while(|folder| !is_drive(folder)) {
            add(folder.join(".ort"), DEPTH);
        }
    }
    for prefix in python_prefixes(places) {
        for site in site_packages(&prefix) {
            add(site.join("onnxruntime/capi"), 0);
        }
    }
    for folder in [
        "/opt/homebrew/lib",
        "/usr/local/lib",
        "/opt/onnxruntime/lib",
        "/usr/lib",
    ] {
        // On Windows they would be folders of the current drive.
        if Path::new(folder).is_absolute() {
            add(PathBuf::from(folder), 0);
        }
    }
    if let Some(root) = places.system_root.as_ref().filter(|root| root.is_absolute()) {
        add(root.join("System32"), 0);
    }
    let mut unique: Vec<PathBuf> = Vec::new();
    for path in found {
        let path = path.canonicalize().unwrap_or(path);
        if !unique.contains(&path) {
            unique.push(path);
        }
    }
    if places.loader_is_safe() {
        unique.push(PathBuf::from(BARE));
    }
    unique
}

/// Where Python may be installed, absolute folders only: the active environment first.
fn python_prefixes(places: &Places) -> Vec<PathBuf> {
    let mut prefixes = places.environments.clone();
    for folder in places.path.iter().flat_map(std::env::split_paths) {
        let python = folder.join(if cfg!(windows) { "python.exe" } else { "python3" });
        if folder.is_absolute() && python.exists() {
            // The link's folder is a virtual environment's, the target's is the installation's.
            prefixes.extend(folder.parent().map(Path::to_owned));
            // On Windows an installation has it at its top.
            prefixes.extend(cfg!(windows).then(|| folder.clone()));
            let target = python.canonicalize().ok();
            prefixes.extend(
                target
                    .as_deref()
                    .and_then(Path::parent)
                    .and_then(Path::parent)
                    .map(Path::to_owned),
            );
        }
    }
    prefixes.extend(places.home.iter().map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr", "/opt/homebrew"].map(PathBuf::from));
    prefixes.retain(|prefix| prefix.is_absolute() && !is_drive(prefix));
    prefixes
}

/// The root of a drive of Windows, in which whoever likes makes folders.
pub(crate) fn is_drive(folder: &Path) -> bool {
    cfg!(windows) && folder.parent().is_none()
}

fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut sites = vec![prefix.join("Lib/site-packages")];
    for version in sorted(&prefix.join("lib")).into_iter().rev() {
        if version
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        {
            sites.push(version.join("site-packages"));
            sites.push(version.join("dist-packages"));
        }
    }
    sites
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for path in sorted(folder) {
        if is_library(&path) && path.is_file() {
            found.push(path);
        } else if depth > 0 && path.is_dir() {
            search(&path, depth - 1, found);
        }
    }
}

fn is_library(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    name == "onnxruntime.dll"
        || name == "libonnxruntime.so"
        || name.starts_with("libonnxruntime.so.")
        || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
}

/// Higher version numbers first: 1.32 before 1.9.
fn newest_first(mut libraries: Vec<PathBuf>) -> Vec<PathBuf> {
    let version = |path: &PathBuf| -> Vec<u64> {
        let text = path.to_string_lossy().into_owned();
        text.split(|character: char| !character.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    libraries.sort_by_key(|path| std::cmp::Reverse(version(path)));
    libraries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_searched_and_the_newest_taken() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for version in ["1.9.0", "1.32.0"] {
            let folder = root.join(format!("onnxruntime-{version}/onnxruntime/capi"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("libonnxruntime.so.{version}")), "").unwrap();
            std::fs::write(folder.join("libonnxruntime_providers_shared.so"), "").unwrap();
        }
        let found = candidates(Some(root)).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with("libonnxruntime.so.1.32.0"), "{found:?}");
        let empty = root.join("empty");
        std::fs::create_dir(&empty).unwrap();
        for wrong in [empty, root.join("missing")] {
            let error = candidates(Some(&wrong)).unwrap_err();
            assert!(error.contains(&wrong.display().to_string()), "{error}");
        }
    }

    fn plant(folder: PathBuf) -> PathBuf {
        std::fs::create_dir_all(&folder).unwrap();
        let library = folder.join(BARE);
        std::fs::write(&library, "").unwrap();
        library.canonicalize().unwrap()
    }

    #[test]
    fn the_program_and_active_environments_are_looked_at_in_this_order() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let program = root.join("a/release");
        let beside = plant(program.clone());
        let above = plant(root.join("a/.ort/onnxruntime"));
        let environment = plant(root.join("venv/lib/python3.12/site-packages/onnxruntime/capi"));
        let home = plant(root.join("home/.local/lib/python3.9/site-packages/onnxruntime/capi"));
        let places = Places {
            program: Some(program),
            environments: vec![root.join("venv")],
            home: Some(root.join("home")),
            ..Places::default()
        };
        let found = well_known(&places);
        assert_eq!(found[..4], [beside, above, environment, home], "{found:?}");
    }

    #[test]
    fn relative_places_are_none() {
        // Cargo runs tests in the package's folder.
        let directory = tempfile::Builder::new()
            .prefix("planted")
            .tempdir_in(".")
            .unwrap();
        let name = directory.path().file_name().unwrap();
        for folder in [
            "bin",
            "lib",
            ".ort",
            ".local/lib/python3.9/site-packages/onnxruntime/capi",
        ] {
            plant(directory.path().join(folder));
        }
        plant(
            directory
                .path()
                .join("lib/python3.9/site-packages/onnxruntime/capi"),
        );
        std::fs::write(directory.path().join("bin/python3"), "").unwrap();
        let relative = PathBuf::from(name);
        let places = Places {
            program: None,
            environments: vec![relative.clone()],
            path: Some(relative.join("bin").into()),
            home: Some(relative.clone()),
            loader_path: Some(relative.join("lib").into()),
            system_root: Some(relative),
        };
        let planted = directory.path().canonicalize().unwrap();
        let found = well_known(&places);
        assert!(
            found
                .iter()
                .all(|path| path.is_absolute() && !path.starts_with(&planted)),
            "{found:?}"
        );
    }

    #[test]
    fn a_name_without_a_folder_is_left_to_a_loader_that_keeps_away_from_the_current_folder() {
        let cases = [
            (None, true),
            (Some("/lib:/usr/lib"), true),
            (Some("/lib:"), false),
            (Some("lib"), false),
        ];
        for (loader_path, safe) in cases {
            let places = Places {
                loader_path: loader_path.map(OsString::from),
                ..Places::default()
            };
            let safe = safe && cfg!(all(unix, not(target_vendor = "apple")));
            assert_eq!(
                well_known(&places).contains(&PathBuf::from(BARE)),
                safe,
                "{loader_path:?}"
            );
            match bare(Path::new(BARE), &places) {
                Ok(found) => assert!(
                    safe && found == [PathBuf::from(BARE)],
                    "{loader_path:?}: {found:?}"
                ),
                Err(error) => assert!(!safe && error.contains("expected a path"), "{error}"),
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let beside = plant(directory.path().join("bin"));
        let places = Places {
            program: beside.parent().map(Path::to_owned),
            loader_path: Some("".into()),
            ..Places::default()
        };
        assert_eq!(bare(Path::new(BARE), &places), Ok(vec![beside]));
        for (name, expected) in [(BARE, true), ("./libonnxruntime.so", false), ("src", false)] {
            assert_eq!(is_bare(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn names_of_libraries() {
        let cases = [
            ("libonnxruntime.so", true),
            ("libonnxruntime.so.1.32.0", true),
            ("libonnxruntime.1.32.0.dylib", true),
            ("libonnxruntime.dylib", true),
            ("onnxruntime.dll", true),
            ("libonnxruntime_providers_shared.so", false),
            ("onnxruntime_pybind11_state.so", false),
        ];
        for (name, expected) in cases {
            assert_eq!(is_library(Path::new(name)), expected, "{name}");
        }
    }
}
