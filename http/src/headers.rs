//! The headers of the dialect that say how current an answer is.

use axum::http::HeaderName;

/// The version of the answer, for the next `?index`.
pub(crate) const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
/// Whether the registry has a leader, as far as this agent hears.
pub(crate) const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
/// How old the answer may be, in milliseconds.
pub(crate) const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
/// What consistency the answer has.
pub(crate) const EFFECTIVE_CONSISTENCY: HeaderName = HeaderName::from_static("x-consul-effective-consistency");
/// How old the answer is, in milliseconds; only there while the registry cannot be reached.
pub(crate) const STALE: HeaderName = HeaderName::from_static("x-muster-stale");
