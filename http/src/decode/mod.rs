//! Bodies of requests, decoded by hand: keys in any case, with or without underscores, unknown ones refused, and
//! each error names the field by its whole path.

mod check;
mod mesh;
mod object;
mod probe;
mod registration;
mod service;

pub(crate) use check::{decode_check, decode_ttl_update};
pub(crate) use mesh::PROXY_KIND;
pub(crate) use object::clean_output;
pub(crate) use registration::{decode_deregistration, decode_registration};
pub(crate) use service::decode_service;

/// Why a body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Not JSON.
    #[error("{0}")]
    Json(String),
    /// A key that the endpoint does not know.
    #[error("json: unknown field {0:?}")]
    Unknown(String),
    /// One key twice, in two spellings.
    #[error("field {0:?} is given twice")]
    Twice(String),
    /// A value of the wrong type.
    #[error("field {field:?} must be {expected}, not {found}")]
    Type {
        /// The field's path.
        field: String,
        /// What it takes.
        expected: &'static str,
        /// What was given.
        found: &'static str,
    },
    /// A value that breaks a rule; the text names the remedy.
    #[error("field {field:?}: {reason}")]
    Value {
        /// The field's path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A rule whose words the dialect fixes.
    #[error("{0}")]
    Rule(String),
    /// Part of the dialect that is not built yet.
    #[error("field {field:?}: {what} not supported yet; leave the field out")]
    Unsupported {
        /// The field's path.
        field: String,
        /// What it would do, with its verb.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
