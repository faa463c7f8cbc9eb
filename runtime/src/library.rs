//! Where is ONNX Runtime's shared library?
//!
//! Python is never run to find out: its well-known folders are looked into.

use std::path::{Path, PathBuf};

/// Names the library, or a directory with it, where no option does.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";

/// How deep a folder is searched: `.ort/onnxruntime-1.32.0/onnxruntime/capi/libonnxruntime.so`.
const DEPTH: usize = 4;

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
        // A bare name is for the system's loader, as the `ort` crate has it.
        (None, Some(path)) if path.components().count() == 1 && !path.exists() => Ok(vec![path]),
        (None, Some(path)) => resolve(&path, VARIABLE),
        (None, None) => Ok(well_known()),
    }
}

fn resolve(path: &Path, origin: &str) -> Result<Vec<PathBuf>, String> {
    let there = std::fs::metadata(path).map_err(|error| format!("{origin}, {}: {error}", path.display()))?;
    if !there.is_dir() {
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

/// Beside the program, in `.ort/` and `.venv/` up the tree, in the Python installations, in the system.
fn well_known() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let beside = executable.as_deref().and_then(Path::parent).map(Path::to_owned);
    let current = std::env::current_dir().ok();
    let mut add = |folder: PathBuf, depth: usize| {
        let mut libraries = Vec::new();
        search(&folder, depth, &mut libraries);
        found.extend(newest_first(libraries));
    };
    if let Some(beside) = &beside {
        add(beside.clone(), 0);
        add(beside.join("../lib"), 0);
    }
    for start in [&current, &beside].into_iter().flatten() {
        for folder in start.ancestors() {
            add(folder.join(".ort"), DEPTH);
        }
    }
    for prefix in python_prefixes(current.as_deref()) {
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
        add(PathBuf::from(folder), 0);
    }
    let mut unique: Vec<PathBuf> = Vec::new();
    for path in found {
        let path = path.canonicalize().unwrap_or(path);
        if !unique.contains(&path) {
            unique.push(path);
        }
    }
    unique.push(PathBuf::from(if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else if cfg!(windows) {
        "onnxruntime.dll"
    } else {
        "libonnxruntime.so"
    }));
    unique
}

/// Where Python may be installed: the active environment first.
fn python_prefixes(current: Option<&Path>) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = Vec::new();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        prefixes.extend(
            std::env::var_os(variable)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
        );
    }
    prefixes.extend(
        current
            .into_iter()
            .flat_map(Path::ancestors)
            .map(|folder| folder.join(".venv")),
    );
    for folder in std::env::var_os("PATH").iter().flat_map(std::env::split_paths) {
        let python = folder.join(if cfg!(windows) { "python.exe" } else { "python3" });
        if python.exists() {
            // The link's folder is a virtual environment's, the target's is the installation's.
            prefixes.extend(folder.parent().map(Path::to_owned));
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
    prefixes.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    prefixes.extend(["/usr/local", "/usr", "/opt/homebrew"].map(PathBuf::from));
    prefixes
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
