//! Holds the sizes of ARCHITECTURE.md §5: a file is read in one sitting, a library says what it may not do.
//! Functions are held by clippy (`too-many-lines-threshold`).

#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as they do")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The longest a file may be before its tests.
const LINES_MOST: usize = 600;
/// From here on a file is listed, so that it is split before it has to be.
const LINES_WARN: usize = 450;
/// Half of the files are not longer than this.
const MEDIAN_MOST: usize = 200;
/// Inline tests longer than this move to `foo/tests.rs`, so that the file stays readable.
const INLINE_TESTS_MOST: usize = 200;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path().join("src")).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The lines of a file before its test module, and those of the module when it stands in the file.
fn lines(text: &str) -> (usize, usize) {
    let all = text.lines().count();
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{'));
    tests.map_or((all, 0), |at| (at, all - at))
}

#[test]
fn files_are_read_in_one_sitting() {
    let mut sizes = Vec::new();
    let mut wrong = Vec::new();
    for path in sources() {
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if is_test
            || path.components().any(|part| part.as_os_str() == "tests") && !path.starts_with(root().join("tests/src"))
        {
            continue;
        }
        let (prod, inline) = lines(&fs::read_to_string(&path).unwrap());
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        if prod > LINES_MOST {
            wrong.push(format!("{shown}: {prod} lines before its tests, {LINES_MOST} are allowed: split it by noun"));
        } else if prod > LINES_WARN {
            println!("warning: {shown} has {prod} lines before its tests, {LINES_MOST} are allowed");
        }
        if inline > INLINE_TESTS_MOST {
            wrong.push(format!("{shown}: {inline} lines of inline tests: move them to a tests.rs of their own"));
        }
        sizes.push(prod);
    }
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2];
    println!("{} files, median {median} lines, longest {}", sizes.len(), sizes[sizes.len() - 1]);
    if median > MEDIAN_MOST {
        wrong.push(format!("the median file has {median} lines, {MEDIAN_MOST} are the aim: split the longest"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for entry in fs::read_dir(root()).unwrap() {
        let manifest = entry.unwrap().path().join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        // The fuzz targets are a workspace of their own, which needs libFuzzer's.
        if manifest.contains_key("workspace") {
            continue;
        }
        let inherits =
            manifest.get("lints").and_then(|lints| lints.get("workspace")) == Some(&toml::Value::Boolean(true));
        assert!(inherits, "{}: [lints] workspace = true is missing", manifest["package"]["name"]);
    }
}

#[test]
fn lines_are_counted_before_the_tests() {
    assert_eq!(lines("a\nb\n"), (2, 0));
    assert_eq!(lines("a\n#[cfg(test)]\nmod tests {\n}\n"), (1, 3));
    assert_eq!(lines("#[cfg(test)]\nmod tests;\nb\n"), (3, 0), "tests in a file of their own");
    assert_eq!(lines("#[cfg(test)]\nuse x;\nb\n"), (3, 0), "a test-only import is no test module");
}
