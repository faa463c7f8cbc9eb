#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::begin(), |data: &[u8]| fuzz::heif::run(data));
