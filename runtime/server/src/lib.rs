#![doc = include_str!("../README.md")]

pub mod schedule;
pub mod work;
