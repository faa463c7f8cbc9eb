//! Puts the recorded references, the demo model's scenes and its evaluation set into the program: an installed
//! `fvlm-conform` finds them anywhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("..");
    let mut assets = Vec::new();
    for folder in ["conformance/golden", "models/demo/scenes", "models/demo/eval"] {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
        collect(&root, Path::new(folder), &mut assets)?;
    }
    assets.sort();
    let mut source = String::from(
        "/// Path in the repository and contents, sorted.\npub(super) const ASSETS: &[(&str, &[u8])] = &[\n",
    );
    for path in assets {
        writeln!(source, "    ({path:?}, include_bytes!({:?})),", root.join(&path))?;
    }
    source.push_str("];\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("assets.rs"), source)?;
    Ok(())
}

fn collect(root: &Path, folder: &Path, assets: &mut Vec<String>) -> std::io::Result<()> {
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, assets)?;
        } else if let Some(path) = path.to_str() {
            assets.push(path.replace('\\', "/"));
        }
    }
    Ok(())
}
