#![doc = include_str!("../README.md")]

mod about;
mod answer;
mod app;
mod asked;
mod body;
mod budget;
pub mod command;
mod error;
mod fetch;
mod guard;
mod http;
mod interface;
mod json;
mod metrics;
mod ollama;
mod openai;
mod page;
mod pictures;
pub mod schedule;
mod serve;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod work;

pub use about::About;
pub use app::{App, Settings, Words};
pub use guard::{Hosts, Key};
pub use serve::{Stop, serve};

/// A line for whoever keeps the log, if stderr is open. What stands in it drives no terminal.
fn log(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "{}", models::plain::line(line)));
}
