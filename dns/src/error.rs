//! Why there is no server, or none any more.

use std::io;

use tokio::task::JoinError;

use crate::ConfigError;

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is nothing to answer on.
    #[error("dns has neither a UDP nor a TCP socket: give it at least one address to listen on")]
    NoSockets,
    /// A socket does not know its own address.
    #[error("a DNS socket has no local address ({source}): bind it before handing it over")]
    Address {
        /// Why.
        source: io::Error,
    },
    /// A UDP socket fails again and again.
    #[error("a DNS UDP socket keeps failing ({source}): look at the interface it is bound to, then restart")]
    Receive {
        /// The last failure.
        source: io::Error,
    },
    /// A UDP socket could not be given a thread of its own.
    #[error("a DNS UDP socket got no thread ({source}): raise the limits of threads and open files, then restart")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// A task panicked.
    #[error("a DNS task ended unexpectedly: {0}")]
    Task(#[from] JoinError),
}
