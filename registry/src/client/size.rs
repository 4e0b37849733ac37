//! How large rows are on the wire, for those who have to send them in parts.

use muster_catalog::{Check, Instance};
use prost::Message;

use crate::proto::catalog as pb;

/// What stands around a row in a Command: its key and its length.
const FRAME_BYTES: usize = 8;

/// The bytes of an instance in a Command.
pub fn instance_bytes(instance: &Instance) -> usize {
    pb::Instance::from(instance).encoded_len() + FRAME_BYTES
}

/// The bytes of a check in a Command.
pub fn check_bytes(check: &Check) -> usize {
    pb::Check::from(check).encoded_len() + FRAME_BYTES
}
