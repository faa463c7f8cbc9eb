//! How does a program find `libfvlm` again? By its name, wherever it was linked from.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let name = match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos" | "ios") => "-Wl,-install_name,@rpath/libfvlm.dylib",
        Ok("windows") | Err(_) => return,
        Ok(_elf) => "-Wl,-soname,libfvlm.so",
    };
    println!("cargo:rustc-cdylib-link-arg={name}");
}
