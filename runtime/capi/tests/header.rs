//! `include/fvlm.h` is what cbindgen makes of the sources; `UPDATE_HEADER=1 cargo test -p capi` writes it.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_sources() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(directory.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in [
        "src/types.rs",
        "src/calls.rs",
        "src/models.rs",
        "src/structured.rs",
    ] {
        builder = builder.with_src(directory.join(name));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = directory.join("include/fvlm.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "include/fvlm.h is not that of the sources: UPDATE_HEADER=1 cargo test -p capi"
    );
}
