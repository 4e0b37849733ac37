//! Streaming the catalog: the ring of what happened lately, and a stream that follows it at its reader's pace.

mod barriers;
pub(crate) mod ring;
pub(crate) mod stream;
