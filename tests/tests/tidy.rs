//! The house rules that a machine can hold: who may import whom, how long a file may be, what the pure crate
//! must not touch. A rule that gets in the way is changed here, with its reason, not worked around.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Floors of `node/src`, lowest first. A module imports only from lower floors; on the top floor from all.
const FLOORS: &[&[&str]] = &[
    &["clock", "dice", "tls", "telemetry"],
    &["snmp", "cluster", "routes"],
    &["device"],
    &["doctor"],
    &["collector", "leader", "upstream", "discovery", "console", "alerts"],
    &["config", "cli", "fuzz", "sim", "lib", "main"],
];

/// Longest source file, in lines.
const LONGEST: usize = 600;

/// What `coordinator/src` must not name: it decides, others act.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "std::io",
    "Instant",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "ToSocketAddrs",
    "async fn",
    "tokio",
];

/// What `coordinator/Cargo.toml` must not depend on.
const ACTING: &[&str] = &["tokio", "tonic", "openraft", "rocksdb", "rand", "reqwest", "getrandom", "futures"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every `.rs` file below `dir`, which may be absent.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("list a directory").path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of the product in a file: no comments, nothing behind the first `#[cfg(test)]` module.
fn product_lines(file: &Path) -> Vec<(usize, String)> {
    if file.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests")) {
        return Vec::new();
    }
    let text = fs::read_to_string(file).expect("read a source file");
    let mut lines = Vec::new();
    let mut rest = text.lines().enumerate().peekable();
    while let Some((n, line)) = rest.next() {
        let next_opens =
            rest.peek().is_some_and(|(_, next)| next.trim_start().starts_with("mod ") && next.ends_with('{'));
        if line.trim() == "#[cfg(test)]" && next_opens {
            break;
        }
        if !line.trim_start().starts_with("//") {
            lines.push((n + 1, line.to_owned()));
        }
    }
    lines
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The modules that a line names behind `crate::`, braces included.
fn named(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(word(rest)),
            Some(group) => {
                let mut depth = 0;
                let parts = group.split(|c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    c == ',' && depth == 0
                });
                found.extend(parts.map(|part| word(part.trim())).filter(|part| !part.is_empty()));
            }
        }
    }
    found
}

#[test]
fn the_nodes_modules_import_only_from_lower_floors() {
    let src = workspace().join("node/src");
    let mut broken = Vec::new();
    for file in sources(&src) {
        let inside = file.strip_prefix(&src).unwrap();
        let module = inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        let Some(floor) = floor_of(&module) else {
            broken.push(format!("{}: its module stands on no floor of the table", inside.display()));
            continue;
        };
        if floor == FLOORS.len() - 1 {
            continue;
        }
        for (n, line) in product_lines(&file) {
            for other in named(&line) {
                let allowed = other == module || floor_of(&other).is_none_or(|its| its < floor);
                if !allowed {
                    broken.push(format!("{}:{n}: {module} must not import {other}", inside.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn no_file_is_a_god() {
    let mut long = BTreeMap::new();
    for room in ["proto", "coordinator", "node", "admin", "tests", "deploy"] {
        for file in sources(&workspace().join(room)) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if lines > LONGEST {
                long.insert(file, lines);
            }
        }
    }
    assert!(long.is_empty(), "longer than {LONGEST} lines: {long:#?}");
}

#[test]
fn the_coordinator_only_decides() {
    let room = workspace().join("coordinator");
    let mut broken = Vec::new();
    for file in sources(&room.join("src")) {
        for (n, line) in product_lines(&file) {
            for word in IMPURE.iter().filter(|word| has_word(&line, word)) {
                broken.push(format!("{}:{n}: {word}", file.display()));
            }
        }
    }
    let manifest: toml::Table = fs::read_to_string(room.join("Cargo.toml")).unwrap().parse().unwrap();
    let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table).unwrap();
    broken.extend(
        ACTING
            .iter()
            .filter(|name| dependencies.contains_key(**name))
            .map(|name| format!("depends on {name}")),
    );
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_queue_has_a_bound() {
    let mut broken = Vec::new();
    for room in ["coordinator", "node", "admin"] {
        for file in sources(&workspace().join(room).join("src")) {
            for (n, line) in product_lines(&file) {
                if line.contains("unbounded_channel(")
                    || line.contains("mpsc::channel()")
                    || line.contains("unbounded()")
                {
                    broken.push(format!("{}:{n}: {}", file.display(), line.trim()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// SECURITY.md says of each defence where it is tested; a test that was renamed or removed must be named there anew.
#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string(workspace().join("SECURITY.md")).unwrap();
    let name = |word: &&str| {
        word.matches('_').count() >= 3
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(name).collect();
    assert!(named.len() > 20, "{} tests are named", named.len());
    let mut all = String::new();
    for room in ["coordinator", "node", "admin", "tests"] {
        for file in sources(&workspace().join(room)) {
            all.push_str(&fs::read_to_string(file).unwrap());
        }
    }
    let missing: Vec<_> = named.iter().filter(|name| !all.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "SECURITY.md names tests that are not there: {missing:?}");
}

/// `word` in `line`, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word)
        .any(|(at, _)| !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next()))
}

#[test]
fn the_rules_see_what_they_should() {
    assert_eq!(named("use crate::{snmp::{a, b}, device::x, tls};"), ["snmp", "device", "tls"]);
    assert_eq!(named("    let x = crate::console::Door::open(crate::clock::now());"), ["console", "clock"]);
    assert!(has_word("use std::time::Instant;", "Instant") && !has_word("Instantly", "Instant"));
}
