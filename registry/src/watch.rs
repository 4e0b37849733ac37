//! Streaming the catalog: the ring of what happened lately, and a stream that follows it at its reader's pace.

mod barriers;
mod pace;
mod rescope;
pub(crate) mod ring;
mod rows;
pub(crate) mod stream;
pub(crate) mod watchers;
pub(crate) mod wide;

#[cfg(test)]
mod tests;
