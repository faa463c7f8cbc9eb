//! The end of a process whose main thread uses no model, while another thread opens one. Whoever loads this library is
//! most often the main thread: it is watched from then on, so that its end waits for what ONNX Runtime opens.

/// What the system calls when it loads the library, or a program that the library is linked into.
#[used]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
static LOADED: extern "C" fn() = loaded;

/// Has a linker take this out of the static library, of which it takes only what something refers to.
pub(crate) fn link() {
    std::hint::black_box(&LOADED);
}

extern "C" fn loaded() {
    runtime::backend::watch_thread();
}
