//! The names of what is no service. Services are DNS labels, so the dot keeps these apart from theirs.

/// The HTTP listener, and its routes.
pub(crate) const HTTP: &str = "mesh.http";
/// A proxy's listener for its own service.
pub(super) const INBOUND: &str = "mesh.inbound";
/// The cluster of a proxy's own service.
pub(super) const LOCAL: &str = "mesh.local";
