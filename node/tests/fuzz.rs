//! Every decoder with octets that nobody would send, for a bounded number of rounds: the targets of `make fuzz` without
//! its engine. Each test prints its seed; `QUIRE_SEED=N` replays a run, `QUIRE_ROUNDS=N` makes it longer or shorter.

#![allow(clippy::print_stderr, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use quire_node::fuzz::{TARGETS, Target};

/// Longest input that mutation makes, as libFuzzer's default of the longest seed, but bounded.
const LONGEST: usize = 256 * 1024;
/// A round that takes so long hangs: the slowest known one takes a second unoptimised, on a busy machine.
const HANGS: Duration = Duration::from_secs(180);

/// SplitMix64 (Steele, Lea, Flood 2014): every seed is as good as another.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    /// A range inside `length` octets, short ones more often.
    fn span(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let bits = self.below(12);
        let most = self.below(1 << bits) + 1;
        from..(from + most).min(length)
    }
}

/// Octets that decoders stumble over: limits of lengths, tags, digits, brackets.
const EDGES: &[&[u8]] = &[
    &[0],
    &[0x7f],
    &[0x80],
    &[0x81, 0xff],
    &[0x84, 0xff, 0xff, 0xff, 0xff],
    &[0xff],
    &[0xff; 8],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0; 8],
    b"-1",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"99999999999999999999999",
    b"1e999",
    b"NaN",
    b"\"",
    b"'",
    b"<",
    b"</",
    b"]]>",
    b"{{[[((",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"|",
    b".",
    b"=",
    b"%2e%2e",
    b"..",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let length = input.len();
        match random.below(10) {
            0 if length > 0 => input[random.below(length)] ^= 1 << random.below(8),
            1 if length > 0 => input[random.below(length)] = random.next().to_le_bytes()[0],
            2 => drop(input.drain(random.span(length))),
            3 => input.truncate(random.below(length + 1)),
            4 => {
                let copy = input[random.span(length)].to_vec();
                let (at, times) = (random.below(length + 1), 1 + random.below(8));
                let copies: Vec<u8> = copy.iter().copied().cycle().take(copy.len() * times).collect();
                input.splice(at..at, copies);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let part = other[random.span(other.len())].to_vec();
                let over = random.span(length);
                input.splice(over, part);
            }
            6 => {
                let edge = EDGES[random.below(EDGES.len())];
                let at = random.below(length + 1);
                let end = if random.below(2) == 0 { at } else { (at + edge.len()).min(length) };
                input.splice(at..end, edge.iter().copied());
            }
            7 if length > 0 => {
                let at = random.below(length);
                input[at] = input[at].wrapping_add(if random.below(2) == 0 { 1 } else { 255 });
            }
            8 => {
                let at = random.below(length + 1);
                let many = random.below(64);
                let octet = random.next().to_le_bytes()[0];
                input.splice(at..at, std::iter::repeat_n(octet, many));
            }
            _ => {
                // Digits are what counters, lengths and OIDs are written in.
                let digits: Vec<usize> =
                    input.iter().enumerate().filter(|(_, b)| b.is_ascii_digit()).map(|(at, _)| at).collect();
                if !digits.is_empty() {
                    input[digits[random.below(digits.len())]] =
                        b'0' + u8::try_from(random.below(10)).unwrap();
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// The recorded devices, where this machine has them.
fn devices() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/devices");
    let place = std::env::var_os("QUIRE_DEVICES").map_or(beside, PathBuf::from);
    if !place.is_dir() {
        eprintln!("no recorded devices at {}: the seeds are those of the source", place.display());
        return None;
    }
    Some(place)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Ends the process when a round does not end: nothing else can end a loop in the same thread. Whoever drops the sender
/// ends the watch.
fn watch(name: &'static str, round: Arc<AtomicU64>) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let mut seen = u64::MAX;
        while ended.recv_timeout(HANGS) == Err(mpsc::RecvTimeoutError::Timeout) {
            let now = round.load(Ordering::Relaxed);
            if now == seen {
                eprintln!("{name}: round {now} hangs");
                std::process::abort();
            }
            seen = now;
        }
    });
    alive
}

/// The same run everywhere unless told otherwise; new ground is `make fuzz`'s. This one found that a spool whose numbers
/// are nearly used up overflowed while it counted.
const SEED: u64 = 1_795_259_148_439_360_200;

fn fuzz(name: &'static str) {
    let target: &Target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seed = number("QUIRE_SEED").unwrap_or(SEED);
    let rounds = number("QUIRE_ROUNDS").unwrap_or(u64::from(target.rounds));
    let seeds = (target.seeds)(devices().as_deref());
    eprintln!("{name}: {rounds} rounds over {} seeds, QUIRE_SEED={seed}", seeds.len());
    let round = Arc::new(AtomicU64::new(0));
    let watched = watch(name, Arc::clone(&round));
    for input in &seeds {
        attempt(target, input, "a seed itself");
        round.fetch_add(1, Ordering::Relaxed);
    }
    let mut random = Random(seed);
    for n in 0..rounds {
        let input = mutate(&mut random, &seeds);
        attempt(target, &input, &format!("round {n} of QUIRE_SEED={seed}"));
        round.fetch_add(1, Ordering::Relaxed);
    }
    drop(watched);
}

fn attempt(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let head = &input[..input.len().min(4096)];
        panic!(
            "{}: {what} panicked on {} octets: {:?}",
            target.name,
            input.len(),
            head.escape_ascii().to_string()
        );
    }
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, run);
        }
    };
}

targets!(
    message, engine, recording, answers, pages, attributes, headers, gate, path, documents, script, rows,
    commands, settings, names, token, upstream, cluster, snapshot, spool,
);
