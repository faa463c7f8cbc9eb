//! `fvlm-export`: turns a FastVLM checkpoint into a bundle.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(exporter::command::main(std::env::args_os()))
}
