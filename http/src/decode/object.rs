//! A JSON object as a client wrote it, taken apart field by field.

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::{Meta, Text};
use serde_json::{Map, Value};

use super::DecodeError;
use crate::duration;

/// Free data has at most so many pairs, as the dialect limits it: rows stay small.
const MAX_META_PAIRS: usize = 64;
/// The longest key of free data, as the dialect limits it.
const MAX_META_KEY: usize = 128;
/// The longest value of free data, as the dialect limits it.
const MAX_META_VALUE: usize = 512;

/// An object whose fields are taken one after the other; what is left at the end is unknown.
pub(crate) struct Object {
    path: String,
    fields: BTreeMap<String, (String, Value)>,
}

impl Object {
    /// The object that a body holds.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| DecodeError::Json(error.to_string()))?;
        Self::new(String::new(), value)
    }

    /// The object at `path`, which is empty for the body itself.
    pub(crate) fn new(path: String, value: Value) -> Result<Self, DecodeError> {
        let Value::Object(map) = value else {
            let field = if path.is_empty() { "body".to_owned() } else { path };
            return Err(DecodeError::Type { field, expected: "an object", found: kind(&value) });
        };
        let mut fields = BTreeMap::new();
        for (key, value) in map {
            let folded = fold_key(&key);
            if fields.contains_key(&folded) {
                return Err(DecodeError::Twice(join(&path, &key)));
            }
            // The dialect's clients send null for what they leave out; it only has to be a known key.
            fields.insert(folded, (key, value));
        }
        Ok(Self { path, fields })
    }

    /// The field's path, for errors.
    pub(crate) fn path(&self, field: &str) -> String {
        join(&self.path, field)
    }

    /// A rule that a field breaks.
    pub(crate) fn broken(&self, field: &str, reason: impl Into<String>) -> DecodeError {
        DecodeError::Value { field: self.path(field), reason: reason.into() }
    }

    /// The field's value, unless it is absent or null.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        let (_, value) = self.fields.remove(&fold_key(field))?;
        (!value.is_null()).then_some(value)
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.fields.into_values().next() {
            None => Ok(()),
            Some((key, _)) => Err(DecodeError::Unknown(join(&self.path, &key))),
        }
    }

    /// A text without control characters; empty when absent.
    pub(crate) fn text(&mut self, field: &str) -> Result<Text, DecodeError> {
        let text = self.raw_text(field)?;
        refuse_control(&text, |_| false).map_err(|reason| self.broken(field, reason))?;
        Ok(text)
    }

    /// A text of several lines without other control characters; empty when absent.
    pub(crate) fn lines(&mut self, field: &str) -> Result<Text, DecodeError> {
        let text = self.raw_text(field)?;
        refuse_control(&text, is_layout).map_err(|reason| self.broken(field, reason))?;
        Ok(text)
    }

    /// A text as it is, for what is only sent on to a probed service; empty when absent.
    pub(crate) fn raw_text(&mut self, field: &str) -> Result<Text, DecodeError> {
        match self.take(field) {
            None => Ok(Text::from("")),
            Some(Value::String(text)) => Ok(Text::from(text)),
            Some(other) => Err(self.wrong(field, "a string", &other)),
        }
    }

    /// A text; `None` when absent or empty.
    pub(crate) fn find_text(&mut self, field: &str) -> Result<Option<Text>, DecodeError> {
        Ok(Some(self.text(field)?).filter(|text| !text.is_empty()))
    }

    /// A truth value; false when absent.
    pub(crate) fn flag(&mut self, field: &str) -> Result<bool, DecodeError> {
        Ok(self.find_flag(field)?.unwrap_or(false))
    }

    /// A truth value; `None` when absent.
    pub(crate) fn find_flag(&mut self, field: &str) -> Result<Option<bool>, DecodeError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(field, "true or false", &other)),
        }
    }

    /// A whole number up to `max`.
    pub(crate) fn number(&mut self, field: &str, max: u32) -> Result<Option<u32>, DecodeError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Value::Number(number) = &value else { return Err(self.wrong(field, "a whole number", &value)) };
        let small = number.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number <= max);
        match small {
            Some(number) => Ok(Some(number)),
            None => Err(self.broken(field, format!("{number} is not a whole number from 0 to {max}"))),
        }
    }

    /// A number that fits a port or a weight.
    pub(crate) fn short(&mut self, field: &str) -> Result<Option<u16>, DecodeError> {
        let number = self.number(field, u32::from(u16::MAX))?;
        Ok(number.and_then(|number| u16::try_from(number).ok()))
    }

    /// A duration in text or nanoseconds; `None` when absent, empty or zero.
    pub(crate) fn duration(&mut self, field: &str) -> Result<Option<Duration>, DecodeError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let read = match &value {
            Value::String(text) if text.is_empty() => Some(Duration::ZERO),
            Value::String(text) => duration::parse(text),
            Value::Number(number) => number.as_u64().and_then(duration::from_nanoseconds),
            other => return Err(self.wrong(field, "a duration such as \"10s\" or nanoseconds", other)),
        };
        match read {
            Some(read) => Ok((!read.is_zero()).then_some(read)),
            None => Err(self.broken(field, format!("{value} is not a duration: write one like \"10s\" or \"1m30s\""))),
        }
    }

    /// A list; empty when absent.
    pub(crate) fn list(&mut self, field: &str) -> Result<Vec<Value>, DecodeError> {
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => Err(self.wrong(field, "a list", &other)),
        }
    }

    /// A list of texts without duplicates, in the order given.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Vec<Text>, DecodeError> {
        let mut texts: Vec<Text> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for value in self.list(field)? {
            let Value::String(text) = value else { return Err(self.wrong(field, "a list of strings", &value)) };
            refuse_control(&text, |_| false).map_err(|reason| self.broken(field, reason))?;
            let text = Text::from(text);
            if seen.insert(text.clone()) {
                texts.push(text);
            }
        }
        Ok(texts)
    }

    /// An object inside this one.
    pub(crate) fn object(&mut self, field: &str) -> Result<Option<Self>, DecodeError> {
        let path = self.path(field);
        self.take(field).map(|value| Self::new(path, value)).transpose()
    }

    /// A map whose keys are the client's own.
    pub(crate) fn map(&mut self, field: &str) -> Result<Map<String, Value>, DecodeError> {
        match self.take(field) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(other) => Err(self.wrong(field, "an object", &other)),
        }
    }

    /// Free data, within the dialect's limits.
    pub(crate) fn meta(&mut self, field: &str) -> Result<Meta, DecodeError> {
        let map = self.map(field)?;
        if map.len() > MAX_META_PAIRS {
            return Err(self.broken(field, format!("{} pairs: at most {MAX_META_PAIRS} are kept", map.len())));
        }
        let mut meta = Meta::new();
        for (key, value) in map {
            let Value::String(value) = value else { return Err(self.wrong(field, "a map of strings", &value)) };
            let key_ok = !key.is_empty()
                && key.len() <= MAX_META_KEY
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !key_ok {
                let reason = format!("key {key:?}: use 1 to {MAX_META_KEY} letters, digits, '-' and '_'");
                return Err(self.broken(field, reason));
            }
            refuse_control(&value, |_| false)
                .map_err(|reason| self.broken(field, format!("the value of {key:?}: {reason}")))?;
            if value.len() > MAX_META_VALUE {
                let reason = format!("the value of {key:?} has {} bytes: at most {MAX_META_VALUE}", value.len());
                return Err(self.broken(field, reason));
            }
            meta.insert(key.into(), value.into());
        }
        Ok(meta)
    }

    /// Whether no field says anything: a client that writes out its whole structure sends such an object for none.
    pub(crate) fn says_nothing(&self) -> bool {
        self.fields.values().all(|(_, value)| is_blank(value))
    }

    /// Takes fields that only mean something when they hold something, and are not built.
    pub(crate) fn refuse(&mut self, field: &str, what: &'static str) -> Result<(), DecodeError> {
        match self.take(field) {
            Some(value) if !is_blank(&value) => Err(DecodeError::Unsupported { field: self.path(field), what }),
            _ => Ok(()),
        }
    }

    /// Takes fields that clients send back as they read them, and that say nothing in a write.
    pub(crate) fn pass_over(&mut self, fields: &[&str]) {
        for field in fields {
            self.take(field);
        }
    }

    /// The error for a value of the wrong type.
    pub(crate) fn wrong(&self, field: &str, expected: &'static str, found: &Value) -> DecodeError {
        DecodeError::Type { field: self.path(field), expected, found: kind(found) }
    }
}

/// The output of a check, safe to print. A program's own output is not refused for a colour code: a report that is
/// turned away would let its check expire.
pub(crate) fn clean_output(text: &str) -> Text {
    text.chars()
        .map(|c| if c.is_control() && !is_layout(c) { char::REPLACEMENT_CHARACTER } else { c })
        .collect::<String>()
        .into()
}

fn is_layout(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t')
}

/// Refuses characters that steer a terminal or end a line of a log: what is registered is printed by both.
fn refuse_control(text: &str, is_allowed: impl Fn(char) -> bool) -> Result<(), String> {
    match text.chars().find(|c| c.is_control() && !is_allowed(*c)) {
        None => Ok(()),
        Some(found) => Err(format!("{text:?} has the control character {found:?}: leave it out")),
    }
}

/// Whether a value says nothing: null, false, 0, "", [] or an object of such.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.values().all(is_blank),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The dialect's decoders do not tell `ServiceID`, `serviceid` and `service_id` apart.
fn fold_key(key: &str) -> String {
    key.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
