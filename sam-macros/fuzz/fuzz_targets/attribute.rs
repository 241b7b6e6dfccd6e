#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| attribute_text::check(text));
