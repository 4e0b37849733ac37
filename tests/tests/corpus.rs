//! The seeds of `fuzz/`, and every input that once broke something, run through the same functions on every build. The
//! fuzzing itself is done by hand: see `fuzz/README.md`.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};

/// A target's function over one input.
type Target = fn(&[u8]);

/// What `fuzz/fuzz_targets/` names, each with what it runs.
const TARGETS: [(&str, Target); 9] = [
    ("commands", muster_registry::fuzzing::commands),
    ("definition", definition),
    ("log_segment", |bytes| in_folder(bytes, muster_registry::fuzzing::log_segment)),
    ("message", muster_registry::fuzzing::message),
    ("query", muster_http::fuzzing::query),
    ("question", muster_dns::fuzzing::question),
    ("registration", muster_http::fuzzing::registration),
    ("snapshot", muster_registry::fuzzing::snapshot),
    ("snapshot_file", |bytes| in_folder(bytes, muster_registry::fuzzing::snapshot_file)),
];

/// Mutations of each seed that are tried beside it.
const MUTATIONS: usize = 40;

fn definition(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = muster_agent::definition::parse("corpus.toml".as_ref(), text) {
        assert!(!error.to_string().is_empty(), "an error without words");
    }
}

fn in_folder(bytes: &[u8], run: fn(&Path, &[u8])) {
    match tempfile::tempdir() {
        Ok(folder) => run(folder.path(), bytes),
        Err(error) => panic!("no folder: {error}"),
    }
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries
        .map(|entry| {
            let path = entry?.path();
            Ok(path.file_stem().context("no name")?.to_string_lossy().into_owned())
        })
        .collect()
}

/// One byte changed, cut or doubled, always the same for the same seed and number.
fn mutate(seed: &[u8], number: usize) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    // A step that shares no factor with usual lengths reaches every place in time.
    let at = (number * 7919 + 13) % bytes.len().max(1);
    match number % 4 {
        0 if at < bytes.len() => bytes[at] ^= 1 << (number % 8),
        1 if at < bytes.len() => bytes[at] = 0xff,
        2 => bytes.truncate(at),
        _ => {
            let tail = bytes[at.min(bytes.len())..].to_vec();
            bytes.extend(tail);
        }
    }
    bytes
}

#[test]
fn every_seed_and_its_neighbours_pass_their_target() -> Result<()> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let listed: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    ensure!(names(&fuzz.join("fuzz_targets"))? == listed, "fuzz/fuzz_targets/ and the list here differ");
    ensure!(names(&fuzz.join("seeds"))? == listed, "fuzz/seeds/ and the list here differ");
    let mut inputs = 0;
    for (target, run) in TARGETS {
        for entry in fs::read_dir(fuzz.join("seeds").join(target))? {
            let path = entry?.path();
            let seed = fs::read(&path)?;
            ensure!(seed.len() <= 16 * 1024, "{} is too large for a seed: shorten it", path.display());
            // Shown where the test fails.
            println!("{}", path.display());
            run(&seed);
            (0..MUTATIONS).for_each(|number| run(&mutate(&seed, number)));
            inputs += 1;
        }
    }
    ensure!(inputs > 40, "only {inputs} seeds");
    Ok(())
}
