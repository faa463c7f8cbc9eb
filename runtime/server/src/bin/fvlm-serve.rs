//! `fvlm-serve`: answers questions about images over HTTP, as OpenAI's and Ollama's servers do.

fn main() {
    programs::finish(server::command::main(std::env::args_os()))
}
