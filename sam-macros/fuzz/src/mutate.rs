//! The fuzz target without libFuzzer and without a nightly toolchain: seeded mutations of the corpus.
//!
//! `cargo run --release --bin mutate -- SECONDS SEED`, in this directory.

use std::time::{Duration, Instant};
use std::{env, fs, panic, process};

/// Tokens that the macros know.
const PIECES: [&str; 59] = [
    "rho",
    "p",
    "adaptive",
    "unnormalized",
    "gsam",
    "wsam",
    "stable",
    "second_order",
    "vars",
    "buffers",
    "replay",
    "shards",
    "micro_batches",
    "hardest",
    "sharpest",
    "plain",
    "with",
    "crate",
    "=",
    ",",
    ";",
    "(",
    ")",
    "{",
    "}",
    "m = 3",
    "k = 1",
    "reduction = sum",
    "weights = w",
    "inf",
    "0.05",
    "-1",
    "\"{x:y$}\"",
    "'a",
    "x",
    "&",
    "mut ",
    "ref ",
    "self",
    "Self",
    "_",
    "..",
    "::",
    "->",
    "Result<Tensor>",
    "impl Optimizer",
    "async ",
    "unsafe ",
    "const ",
    "fn ",
    "struct ",
    "enum ",
    "#[sam]",
    "#![x]",
    "r#in",
    "include!",
    "|",
    "@",
    "\n",
];

fn main() {
    let number = |i: usize, default| env::args().nth(i).map_or(default, |text| text.parse().expect("a number"));
    let (seconds, seed) = (number(1, 60), number(2, 1));
    let mut corpus: Vec<String> = fs::read_dir("corpus/attribute")
        .expect("the corpus is in the working directory")
        .map(|file| fs::read_to_string(file.expect("a file").path()).expect("text"))
        .collect();
    corpus.sort();
    let mut random = Random(seed);
    let (end, mut runs) = (Instant::now() + Duration::from_secs(seconds), 0u64);
    while Instant::now() < end {
        let mut text = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            text = mutated(&text, &corpus, &mut random);
        }
        runs += 1;
        if panic::catch_unwind(|| attribute_text::check(&text)).is_err() {
            println!("after {runs} runs, seed {seed}:\n{text}");
            process::exit(1);
        }
    }
    println!("{runs} texts");
}

fn mutated(text: &str, corpus: &[String], random: &mut Random) -> String {
    let mut at = || {
        let at = random.below(text.len() + 1);
        (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
    };
    let (a, b) = (at(), at());
    let (a, b) = (a.min(b), a.max(b));
    match random.below(6) {
        0 => format!("{}{}", &text[..a], &text[b.min(a + 12)..]),
        1 => format!("{}{}{}", &text[..a], PIECES[random.below(PIECES.len())], &text[a..]),
        2 => format!("{}{}{}", &text[..a], PIECES[random.below(PIECES.len())], &text[b.min(a + 6)..]),
        3 => format!("{}{}{}", &text[..b], &text[a..b], &text[b..]),
        4 => {
            // The head of one and the tail of another.
            let other = &corpus[random.below(corpus.len())];
            let lines = other.split_once('\n').map_or(other.as_str(), |(_, item)| item);
            format!("{}\n{lines}", text.lines().next().unwrap_or_default())
        }
        _ => format!("{}{}{}", &text[..a], (b' ' + random.below(95) as u8) as char, &text[a..]),
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
