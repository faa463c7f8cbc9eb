//! `fvlm-run`: answers questions about images with a FastVLM bundle.

fn main() {
    programs::finish(runtime::command::main(std::env::args_os()))
}
