//! The rules for the workspace's files, as tests: purpose lines, sizes, where `unsafe` may stand, names and links that exist.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "it is all test code, and reads the workspace's own files"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Lines of a file without its tests.
const MOST_LINES: usize = 800;
/// Where `unsafe` may stand: the engine's drivers, the ring of the bare writer that they are compared with, and the test whose child
/// sets a signal to what hosts in other languages leave it at.
const UNSAFE: [&str; 3] = ["engine/src/io/", "bench/src/limit/ring.rs", "wire/tests/link/signals.rs"];
/// What a build or a run leaves behind.
const LEFT_BEHIND: [&str; 5] = ["target", "meridian-report", "corpus", "artifacts", "node_modules"];

struct File {
    /// From the workspace's root.
    path: PathBuf,
    text: String,
}

impl File {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether it holds nothing but tests.
    fn is_test(&self) -> bool {
        let in_tests = self.path.components().any(|part| part == Component::Normal("tests".as_ref()));
        in_tests || self.path.ends_with("tests.rs")
    }

    /// What comes before its inline tests.
    fn code(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the engine lies in the workspace").to_owned()
}

/// Every file of the workspace with this ending.
fn files(ending: &str) -> Vec<File> {
    let (root, mut found, mut folders) = (root(), Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !LEFT_BEHIND.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let text = fs::read_to_string(&path).unwrap();
                found.push(File { path: path.strip_prefix(&root).unwrap().to_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 3, "no files ending in .{ending} below {}", root.display());
    found
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Lines without comments and string literals on one line, with their numbers.
fn plain_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    (1..).zip(text.lines()).map(|(number, line)| {
        let code = line.split("//").next().unwrap_or_default();
        // Every second piece between quotes is a literal.
        (number, code.split('"').step_by(2).collect::<Vec<_>>().join("\"\""))
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

#[test]
fn every_source_file_opens_with_its_purpose() {
    let without = files("rs").into_iter().filter(|file| !file.text.starts_with("//! "));
    report(&without.map(|file| format!("{}: the first line is no `//!` line", file.name())).collect::<Vec<_>>());
}

#[test]
fn no_source_file_grows_beyond_its_limit() {
    let code = files("rs").into_iter().filter(|file| !file.is_test());
    let sizes = code.map(|file| (file.name(), file.code().lines().count()));
    let long = sizes.filter(|(_, lines)| *lines > MOST_LINES);
    report(&long.map(|(name, lines)| format!("{name}: {lines} lines, {MOST_LINES} allowed")).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_to_be_written() {
    let mut broken = Vec::new();
    for file in files("rs") {
        for (number, line) in plain_lines(&file.text) {
            if has_word(&line, "todo") || has_word(&line, "unimplemented") {
                broken.push(format!("{}:{number}: a stub", file.name()));
            }
            if line.contains("#[ignore]") {
                broken.push(format!("{}:{number}: an ignored test says why", file.name()));
            }
        }
    }
    report(&broken);
}

#[test]
fn unsafe_stands_only_where_the_drivers_are() {
    let mut broken = Vec::new();
    for file in files("rs") {
        if UNSAFE.iter().any(|place| file.name().starts_with(place)) {
            continue;
        }
        let lines = plain_lines(&file.text).filter(|(_, line)| has_word(line, "unsafe"));
        broken.extend(lines.map(|(number, _)| format!("{}:{number}: unsafe", file.name())));
    }
    report(&broken);
}

/// The names of all functions marked as tests.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files("rs") {
        let mut marked = false;
        for line in file.text.lines().map(str::trim) {
            marked |= line == "#[test]";
            if let (true, Some(rest)) = (marked, line.strip_prefix("fn ")) {
                names.extend(rest.split(['(', '<']).next().map(str::to_owned));
                marked = false;
            }
        }
    }
    names
}

#[test]
fn every_test_that_the_acceptance_table_names_exists() {
    let table = fs::read_to_string(root().join("docs/ACCEPTANCE.md")).unwrap();
    let tests = tests();
    let (mut rows, mut broken) = (0, Vec::new());
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let is_row = cells[0].len() >= 2 && cells[0][1..].bytes().all(|b| b.is_ascii_digit());
        if !is_row {
            continue;
        }
        rows += 1;
        let [id, _, _, shown] = cells[..] else {
            broken.push(format!("{}: {} columns, not 4", cells[0], cells.len()));
            continue;
        };
        if shown == "—" {
            continue;
        }
        let named: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            broken.push(format!("{id}: names no test, and is not `—`"));
        }
        let missing = named.into_iter().filter(|name| !tests.contains(*name));
        broken.extend(missing.map(|name| format!("{id}: there is no test {name}")));
    }
    assert_eq!(rows, 94, "the table has a row for each behaviour");
    report(&broken);
}

#[test]
fn every_link_in_a_document_leads_somewhere() {
    let mut broken = Vec::new();
    for file in files("md") {
        let folder = root().join(file.path.parent().unwrap());
        let inline = file.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let listed = file.text.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split("]: ").nth(1));
        for link in inline.chain(listed) {
            let place = link.split('#').next().unwrap_or_default();
            if !place.is_empty() && !place.contains("://") && !folder.join(place).exists() {
                broken.push(format!("{}: {place} does not exist", file.name()));
            }
        }
    }
    report(&broken);
}

#[test]
fn decisions_are_numbered_without_gaps_and_titled_by_number() {
    let mut records: Vec<File> = files("md").into_iter().filter(|file| file.path.starts_with("docs/adr")).collect();
    records.sort_by(|a, b| a.path.cmp(&b.path));
    let mut broken = Vec::new();
    for (number, record) in (1..).zip(&records) {
        let number = format!("{number:04}");
        let name = record.path.file_name().unwrap().to_string_lossy();
        if !name.starts_with(&number) || !record.text.starts_with(&format!("# {number}: ")) {
            broken.push(format!("{name}: should be {number}, in its name and its title"));
        }
    }
    assert!(!records.is_empty(), "docs/adr holds the decisions");
    report(&broken);
}

#[test]
fn every_variable_that_changes_a_test_is_explained() {
    let explained = fs::read_to_string(root().join("docs/TESTING.md")).unwrap();
    let mut broken = BTreeSet::new();
    for file in files("rs").into_iter().filter(File::is_test) {
        for literal in file.text.split('"').filter(|literal| literal.starts_with("MERIDIAN_") && literal.len() > 9) {
            if literal.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') && !explained.contains(literal) {
                broken.insert(format!("{}: {literal} is not in docs/TESTING.md", file.name()));
            }
        }
    }
    report(&broken.into_iter().collect::<Vec<_>>());
}
