//! Answers the catalog as DNS, over UDP and TCP.
//!
//! **Owns**: the name forms ([`Question`]), the answers, EDNS, truncation, and the sockets' limits.
//!
//! **Deliberately does not**: read anything but a `View`, know where Views come from, bind sockets, read a clock
//! or the environment, or forward names outside its zones (they are refused).
//!
//! The flow:
//!
//! ```text
//! socket ──bytes──▶ wire ──▶ Request ──▶ Handler, which knows no socket ──▶ Reply ──▶ encode   (UDP, TCP)
//!                     │ check: refuses what is      │                         └─────▶ hickory  (what hickory-server serves)
//!                     ▼ not worth parsing           ├─ question: name → Question          (pure)
//!                   refusal                         ├─ answer: View × Question → Answer   (pure)
//!                                                   ├─ hold, if the replica lacks the service
//!                                                   └─ fit: trim glue, then answers with TC
//!
//! UDP, which is nearly all: the same steps without those that wait.
//! ```
//!
//! Both ways out write the same: a test asks generated questions and reads both.
//!
//! Answering does no I/O, except the first question for a service that the replica does not hold yet.

mod answer;
mod check;
mod config;
mod edns;
mod encode;
mod error;
mod fit;
#[cfg(any(test, feature = "fuzzing"))]
mod fixed;
#[cfg(test)]
#[path = "../tests/support/catalog.rs"]
mod fixture;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handler;
mod hickory;
mod metrics;
mod pick;
mod places;
mod question;
mod reply;
mod server;
mod tcp;
mod udp;
mod wire;
mod zone;

pub use answer::{Answer, Asked, NotHeld, answer};
pub use config::{ConfigError, DnsConfig};
pub use edns::{Ede, EdeCode};
pub use error::DnsError;
pub use handler::Clock;
pub use pick::Order;
pub use question::{Question, Selector, Subject, parse};
pub use server::{Dns, DnsHandle};
pub use zone::{Ttls, Zone, Zones};
