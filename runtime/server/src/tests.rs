//! The server over real sockets, with a worker that computes nothing.

mod attacks;
pub(crate) mod client;
pub(crate) mod fake;
mod fetching;
mod guarded;
mod stopping;
