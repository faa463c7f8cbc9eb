//! May a library be loaded that nobody named? Not from a place where another user can put one: its code would run
//! with the rights of whoever runs the program.
//!
//! The file and every folder above it must belong to root, to this user, or to whoever owns the program, who could
//! replace that as well; and none may be writable for everybody, but for folders with the sticky bit (`/tmp`), where
//! nobody replaces what is another's. Groups are trusted: many systems give each user one, and package managers
//! install by one. What is named by option or variable is taken as it is.

use std::path::Path;

/// Whether only trusted users could have put a library at `path`.
///
/// # Errors
/// Who else could, in a sentence.
#[cfg(unix)]
pub(crate) fn check(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    #[expect(
        unsafe_code,
        reason = "the standard library does not say who runs the process"
    )]
    // SAFETY: it takes nothing, returns a number and cannot fail.
    let user = unsafe { libc::geteuid() };
    let owner = |path: &Path| path.metadata().ok().map(|found| found.uid());
    let program = std::env::current_exe().ok();
    let trusted = [
        Some(0),
        Some(user),
        program.as_deref().and_then(owner),
        // Root's number in a container that does not know it.
        owner(Path::new("/")),
    ];
    check_for(path, &trusted)
}

/// Elsewhere the system's own rules for folders hold.
#[cfg(not(unix))]
pub(crate) fn check(_path: &Path) -> Result<(), String> {
    Ok(())
}

#[cfg(unix)]
fn check_for(path: &Path, trusted: &[Option<u32>]) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    /// Writable for everybody.
    const EVERYBODY: u32 = 0o002;
    /// Only owners replace what is in it.
    const STICKY: u32 = 0o1000;
    if path.is_relative() {
        // A name for the system's loader, which has rules of its own.
        return Ok(());
    }
    let real = path.canonicalize();
    let real = real.map_err(|error| format!("{}: {error}", path.display()))?;
    for place in real.ancestors() {
        let found = place.metadata();
        let found = found.map_err(|error| format!("{}: {error}", place.display()))?;
        let refused = |why: String| {
            Err(format!(
                "{} is passed over: {why}, expected a place that only root and this user write to; \
                 a path that is named is taken as it is",
                path.display()
            ))
        };
        if !trusted.contains(&Some(found.uid())) {
            return refused(format!("{} belongs to user {}", place.display(), found.uid()));
        }
        let sticky = found.is_dir() && found.mode() & STICKY != 0;
        if found.mode() & EVERYBODY != 0 && !sticky {
            return refused(format!("everybody may write to {}", place.display()));
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn what_others_can_write_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let library = inner.join("libonnxruntime.so");
        std::fs::write(&library, "").unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        check(&library).unwrap();
        let cases = [
            (&library, 0o644, true),
            (&library, 0o664, true),
            (&library, 0o666, false),
            (&library, 0o644, true),
            (&inner, 0o777, false),
            (&inner, 0o1777, true),
            (&inner, 0o775, true),
        ];
        for (path, mode, expected) in cases {
            set(path, mode);
            let found = check(&library);
            assert_eq!(found.is_ok(), expected, "{mode:o}: {found:?}");
            if let Err(problem) = found {
                assert!(problem.contains("everybody may write"), "{problem}");
            }
        }
        let owner = library.metadata().unwrap().uid();
        let others = [Some(0), Some(1)].map(|id| id.filter(|id| *id != owner));
        let problem = check_for(&library, &others).unwrap_err();
        assert!(problem.contains("belongs to user"), "{problem}");
        check(Path::new("libonnxruntime.so")).unwrap();
        assert!(check(&inner.join("missing")).is_err());
    }
}
