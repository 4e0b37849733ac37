//! A file of definitions: TOML around the written form, and errors with their line.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::{InvalidDefinition, ServiceDefinition, ServiceText, service::limit};

/// More belong into several files: an error holds back a whole file.
pub const MAX_SERVICES_PER_FILE: usize = 256;
/// What the largest permitted file of ordinary services needs, several times over.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    service: Option<ServiceText>,
    #[serde(default)]
    services: Vec<ServiceText>,
}

/// A file that cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1, where one can be named.
    pub line: Option<usize>,
    /// The key, the value and the remedy.
    pub message: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.message),
            None => write!(f, "{}: {}", self.path.display(), self.message),
        }
    }
}

impl std::error::Error for FileError {}

impl FileError {
    fn of(path: &Path, message: String) -> Self {
        Self { path: path.to_owned(), line: None, message }
    }
}

/// Reads and parses a file that an operator named, whatever it is: a pipe will do. Blocks.
pub fn read(path: &Path) -> Result<Vec<ServiceDefinition>, FileError> {
    let file = File::open(path).map_err(|error| FileError::of(path, format!("cannot be opened: {error}")))?;
    read_from(path, file)
}

/// Reads and parses a file of a services directory: a regular one, or it is refused. Opening it never waits for
/// somebody at its other end.
pub fn read_regular(path: &Path) -> Result<Vec<ServiceDefinition>, FileError> {
    let file = open_regular(path).map_err(|error| FileError::of(path, format!("cannot be opened: {error}")))?;
    read_from(path, file)
}

/// Opens a regular file and nothing else: to open a FIFO waits for a writer, and to open a device may do anything.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

fn read_from(path: &Path, file: File) -> Result<Vec<ServiceDefinition>, FileError> {
    let fail = |message: String| FileError::of(path, message);
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| fail(format!("cannot be read as UTF-8 text: {error}")))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(fail(format!("it is longer than {MAX_FILE_BYTES} bytes: split it into several files")));
    }
    parse(path, &text)
}

/// Parses the text of a file; `path` is for errors.
pub fn parse(path: &Path, text: &str) -> Result<Vec<ServiceDefinition>, FileError> {
    let file: FileText = toml::from_str(text).map_err(|error| syntax_error(path, text, &error))?;
    let invalid = |error: InvalidDefinition| {
        let line = find_span(text, &error.key).map(|span| line_of(text, span.start));
        FileError { path: path.to_owned(), line, message: error.to_string() }
    };
    limit("services", "services", file.services.len(), MAX_SERVICES_PER_FILE).map_err(invalid)?;
    let first = file.service.iter().map(|service| ("service".to_owned(), service));
    let more = file.services.iter().enumerate().map(|(index, service)| (format!("services[{index}]"), service));
    let mut services: Vec<ServiceDefinition> = Vec::with_capacity(file.services.len() + 1);
    for (at, written) in first.chain(more) {
        let service = written.validate(&at).map_err(invalid)?;
        if services.iter().any(|earlier| earlier.id == service.id) {
            let message =
                format!("{:?} is the id of an earlier service in this file: give each its own id", service.id);
            return Err(invalid(InvalidDefinition { key: format!("{at}.id"), message }));
        }
        services.push(service);
    }
    if services.is_empty() {
        let message = "it defines no service: write [service] or [[services]]".to_owned();
        return Err(FileError { path: path.to_owned(), line: None, message });
    }
    Ok(services)
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> FileError {
    let line = error.span().map(|span| line_of(text, span.start));
    let found = error.span().and_then(|span| {
        let document = DeTable::parse(text).ok()?;
        let mut key = String::new();
        find_key(document.get_ref(), &span, &mut key).then_some((key, span))
    });
    let message = error.message().trim_end();
    let message = match found {
        Some((key, span)) => {
            let value: String = text.get(span).unwrap_or_default().chars().take(80).collect();
            format!("{key}: {message}, found `{}`", value.lines().next().unwrap_or_default())
        }
        None => message.to_owned(),
    };
    FileError { path: path.to_owned(), line, message }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The span of the deepest part of the key that the document has.
fn find_span(text: &str, key: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let mut span = None;
    let mut names = key.split(['.', '[']).map(|name| name.trim_end_matches(']'));
    let (name, value) = document.get_ref().get_key_value(names.next()?)?;
    span.replace(name.span());
    let mut at = value;
    for name in names {
        let next = match at.get_ref() {
            DeValue::Table(table) => table.get_key_value(name).map(|(key, value)| (key.span(), value)),
            DeValue::Array(array) => {
                name.parse().ok().and_then(|index: usize| array.get(index)).map(|value| (value.span(), value))
            }
            _ => None,
        };
        let Some((found, value)) = next else { break };
        span.replace(found);
        at = value;
    }
    span
}

/// Walks to the key or value that has exactly this span, and writes the way there.
fn find_key(table: &DeTable<'_>, span: &Range<usize>, way: &mut String) -> bool {
    let start = way.len();
    for (name, value) in table {
        if !way.is_empty() {
            way.push('.');
        }
        way.push_str(name.get_ref());
        if name.span() == *span || find_in_value(value, span, way) {
            return true;
        }
        way.truncate(start);
    }
    false
}

fn find_in_value(value: &toml::Spanned<DeValue<'_>>, span: &Range<usize>, way: &mut String) -> bool {
    let start = way.len();
    let found = match value.get_ref() {
        DeValue::Table(table) => find_key(table, span, way),
        DeValue::Array(array) => array.iter().enumerate().any(|(index, item)| {
            way.push_str(&format!("[{index}]"));
            let found = find_in_value(item, span, way);
            if !found {
                way.truncate(start);
            }
            found
        }),
        _ => false,
    };
    found || value.span() == *span
}
