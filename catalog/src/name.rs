//! Names that clients ask for: DNS rules at the door, case folded for identity, display case kept.

use std::{borrow::Borrow, cmp::Ordering, fmt, hash};

use crate::Text;

/// The longest DNS label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// The longest host name that still leaves room for `.node.<datacenter>.<zone>` in a 253 byte DNS name.
const MAX_HOST: usize = 180;

/// A service or node name: equal, ordered and hashed without regard to case, shown as it was written.
///
/// One allocation and one counter: names are the keys of the catalog's trees, and are cloned with each part of a tree
/// that is edited.
#[derive(Clone)]
pub struct Name {
    /// The folded form; behind it the form it was written in, where that differs. Folding ASCII keeps the length.
    text: Text,
    /// How long each form is.
    length: usize,
}

/// Why a text is not a name. The message names the field, the value, the offence and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{field} is empty: give it a name of letters, digits and hyphens")]
    Empty {
        /// The field that was being set.
        field: &'static str,
    },
    /// A character that DNS labels do not have.
    #[error(
        "{field} {value:?} has {character:?} at position {position}: only letters, digits and hyphens make a DNS label"
    )]
    Character {
        /// The field that was being set.
        field: &'static str,
        /// What was given.
        value: String,
        /// The first character that may not stand there.
        character: char,
        /// Its position, counted in characters from 1.
        position: usize,
    },
    /// A label starts or ends with a hyphen, or is empty between two dots.
    #[error(
        "{field} {value:?} has a label that is empty or starts or ends with a hyphen: begin and end it with a letter or digit"
    )]
    Edge {
        /// The field that was being set.
        field: &'static str,
        /// What was given.
        value: String,
    },
    /// Longer than DNS allows.
    #[error("{field} {value:?} is {length} characters long: at most {limit} fit in a DNS name")]
    Length {
        /// The field that was being set.
        field: &'static str,
        /// What was given.
        value: String,
        /// Its length.
        length: usize,
        /// The longest permitted.
        limit: usize,
    },
}

impl Name {
    /// A name of one DNS label, as services have. `field` is named in the error.
    pub fn label(field: &'static str, value: &str) -> Result<Self, NameError> {
        check_label(field, value, value, 0)?;
        Ok(Self::folded(value))
    }

    /// A name of one or more dot-separated DNS labels, as nodes have. `field` is named in the error.
    pub fn host(field: &'static str, value: &str) -> Result<Self, NameError> {
        if value.len() > MAX_HOST {
            let (value, length) = (value.chars().take(MAX_HOST).collect(), value.len());
            return Err(NameError::Length { field, value, length, limit: MAX_HOST });
        }
        let mut offset = 0;
        for label in value.split('.') {
            check_label(field, value, label, offset)?;
            offset += label.chars().count() + 1;
        }
        Ok(Self::folded(value))
    }

    /// A name for looking up what may or may not exist: never refused, it simply matches nothing.
    pub fn lookup(value: &str) -> Self {
        Self::folded(value)
    }

    fn folded(value: &str) -> Self {
        let text = if value.bytes().any(|b| b.is_ascii_uppercase()) {
            Text::from(value.to_ascii_lowercase() + value)
        } else {
            Text::from(value)
        };
        Self { text, length: value.len() }
    }

    /// The same name as the `kept` one where both are written alike, so that names which are often compared share one
    /// text: comparing them then reads neither.
    pub(crate) fn shared_with(self, kept: &Self) -> Self {
        if *self.text == *kept.text { kept.clone() } else { self }
    }

    fn is_shared(&self, other: &Self) -> bool {
        Text::ptr_eq(&self.text, &other.text)
    }

    /// The lower-case form: what identity, order and keys use.
    pub fn as_key(&self) -> &str {
        &self.text[..self.length]
    }

    /// The form it was written in.
    pub fn as_str(&self) -> &str {
        &self.text[self.text.len() - self.length..]
    }
}

fn check_label(field: &'static str, value: &str, label: &str, offset: usize) -> Result<(), NameError> {
    if value.is_empty() {
        return Err(NameError::Empty { field });
    }
    let offence = label.chars().enumerate().find(|(_, c)| !c.is_ascii_alphanumeric() && *c != '-');
    if let Some((at, character)) = offence {
        let value = value.chars().take(MAX_HOST).collect();
        return Err(NameError::Character { field, value, character, position: offset + at + 1 });
    }
    if label.len() > MAX_LABEL {
        let (value, length) = (value.chars().take(MAX_HOST).collect(), label.len());
        return Err(NameError::Length { field, value, length, limit: MAX_LABEL });
    }
    if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::Edge { field, value: value.to_owned() });
    }
    Ok(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.is_shared(other) || self.as_key() == other.as_key()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.is_shared(other) { Ordering::Equal } else { self.as_key().cmp(other.as_key()) }
    }
}

impl hash::Hash for Name {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl Borrow<str> for Name {
    /// The folded form, so that maps keyed by `Name` are searched with lower-case text.
    fn borrow(&self) -> &str {
        self.as_key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_folded_for_identity_and_kept_for_display() {
        let (a, b) = (Name::label("name", "Web-1").unwrap(), Name::label("name", "web-1").unwrap());
        assert_eq!(a, b);
        assert_eq!((a.as_str(), a.as_key()), ("Web-1", "web-1"));
    }

    #[test]
    fn an_error_names_the_offending_character() {
        let error = Name::label("service.name", "my_web").unwrap_err().to_string();
        assert_eq!(
            error,
            "service.name \"my_web\" has '_' at position 3: only letters, digits and hyphens make a DNS label"
        );
        for bad in ["", "-a", "a-", "a.b", "ü", &"a".repeat(64)] {
            assert!(Name::label("name", bad).is_err(), "{bad:?} was accepted");
        }
        for bad in ["a..b", "a.b-", ".", "a.b_c", &"a.".repeat(100)] {
            assert!(Name::host("node", bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Name::host("node", "web-1.example.internal").is_ok());
        assert!(Name::host("node", "a.b_c").unwrap_err().to_string().contains("position 4"));
    }
}
