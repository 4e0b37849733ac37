//! `validate`: reads what the agent would read, and says what is wrong with it.

use std::path::{Path, PathBuf};

use super::{Failure, Outcome, say};
use crate::{config::Config, definition};

pub(super) fn validate(paths: &[PathBuf], config: Option<&Path>) -> Outcome {
    if paths.is_empty() && config.is_none() {
        return Err(Failure::Usage("nothing to validate: name definition files, directories, or --config FILE".into()));
    }
    let mut problems = Vec::new();
    if let Some(path) = config {
        match Config::load(path) {
            Ok(_) => say(&format!("{}: a valid configuration", path.display()))?,
            Err(error) => problems.push(error.to_string()),
        }
    }
    for path in paths {
        // What an operator names may be a pipe; in a directory a pipe is a mistake, and would wait for ever.
        let read = if path.is_dir() { definition::read_regular } else { definition::read };
        let files = files(path)?;
        if files.is_empty() {
            problems.push(format!(
                "{}: there is no definition in this directory: the agent takes up the files in it whose names end with \
                 .toml and begin with no dot, and none of the directories below it",
                path.display()
            ));
        }
        for file in files {
            match read(&file) {
                Ok(services) => {
                    let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
                    say(&format!("{}: defines {}", file.display(), names.join(", ")))?;
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::Usage(problems.join("\nmuster: "))) }
}

/// The file itself, or the definitions of a directory.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // The same as the agent takes up.
    let hidden = |file: &Path| file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    files.retain(|file| {
        file.extension().is_some_and(|extension| extension == "toml") && !hidden(file) && !file.is_dir()
    });
    files.sort();
    Ok(files)
}
