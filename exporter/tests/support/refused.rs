//! What `fvlm-export` refuses.

use crate::ran::tree;
use crate::world::World;

impl World {
    /// Runs and expects an error that says all of these, exit code 2, and nothing new on the disk.
    pub(crate) fn refused(&self, arguments: &[&str], says: &[&str]) {
        let before = tree(self.directory.path());
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        for text in says {
            assert!(
                ran.stderr.contains(text),
                "{arguments:?} should say `{text}`: {}",
                ran.stderr
            );
        }
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
        assert!(
            tree(self.directory.path()) == before,
            "{arguments:?} left something behind"
        );
    }
}
