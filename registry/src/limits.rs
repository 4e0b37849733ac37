//! The limits of this crate that have to know each other. What one of them lets in fits all that it goes through.
//!
//! ```text
//! all different tags of a service   1 MiB   one row of the Directory; the leader refuses what would bring more
//! a Command                         2 MiB   an agent pushes more than that in parts
//! an event of a watch               3 MiB   what is larger is told in rows
//! a message that a member takes     4 MiB
//! a payload of the log              4 MiB   a quarter of a message between members
//! a step of a replica's journal    64 MiB   what is larger writes the replica anew
//! a row that is read              256 MiB   catalogs of earlier builds have larger ones than this one admits
//! a catalog that is restored      512 MiB   all members hold it beside the present one; a larger one is admitted, and every
//!                                           backup of it says that it cannot be restored
//! ```

use muster_catalog::MAX_TAG_BYTES;

use crate::{journal::MAX_STEP_BYTES, raft::MAX_PAYLOAD_BYTES, watch::stream::MAX_SCOPE};

/// The largest Command in its encoded form: an entry is copied to every member and every watcher.
pub const MAX_COMMAND_BYTES: usize = 2 * 1024 * 1024;
/// The largest message that a member takes: a Command at its largest and the frame around it.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// The largest event of a watch. What an entry does to a replica may be larger than the entry, for a node's row moves
/// every service on it: then rows are sent in place of the entry, in many messages.
pub(crate) const MAX_EVENT_BYTES: usize = 3 * 1024 * 1024;
/// The largest row of a Snapshot that is written and read. Rows that are admitted are far smaller; those of a catalog
/// that an earlier build let grow have to be kept, sent and restored all the same.
pub(crate) const MAX_ROW_BYTES: usize = 256 * 1024 * 1024;
/// The largest message that is taken from a member: one such row, and the frame around it.
pub(crate) const MAX_ANSWER_BYTES: usize = MAX_ROW_BYTES + FRAME_BYTES;
/// Bytes of the rows of a catalog that is restored: until its last piece it is held beside the present one. A catalog of a
/// million instances is less. Members decide by it while they apply the log: another number needs another catalog format.
pub(crate) const MAX_RESTORED_BYTES: usize = 512 * 1024 * 1024;
/// Rows that go together in one message, by their bytes; a larger one goes with as few others.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;
/// What stands around a row or a Command: keys, names, indexes, lengths.
const FRAME_BYTES: usize = 64 * 1024;
/// A service's name among others.
const NAME_BYTES: usize = 66;

const _: () = assert!(MAX_COMMAND_BYTES + FRAME_BYTES <= MAX_MESSAGE_BYTES, "a member takes the largest Command");
const _: () = assert!(MAX_COMMAND_BYTES + FRAME_BYTES <= MAX_PAYLOAD_BYTES, "the log takes the largest Command");
const _: () = assert!(MAX_COMMAND_BYTES + FRAME_BYTES <= MAX_EVENT_BYTES, "the largest Command is one event");
const _: () = assert!(MAX_EVENT_BYTES + FRAME_BYTES <= MAX_MESSAGE_BYTES, "agents of earlier builds take any event");
const _: () = assert!(MAX_COMMAND_BYTES + PIECE_BYTES + FRAME_BYTES <= MAX_MESSAGE_BYTES, "and any row");
const _: () = assert!(MAX_TAG_BYTES + FRAME_BYTES <= MAX_COMMAND_BYTES, "all tags of a service are no larger");
const _: () = assert!(MAX_SCOPE * NAME_BYTES + FRAME_BYTES <= MAX_MESSAGE_BYTES, "a member takes the widest Scope");
const _: () = assert!(MAX_MESSAGE_BYTES <= MAX_ROW_BYTES, "what was sent in one message can be written as one row");
const _: () = assert!(MAX_ROW_BYTES + FRAME_BYTES <= MAX_RESTORED_BYTES, "any row that is read can be restored");
const _: () = assert!(MAX_EVENT_BYTES + FRAME_BYTES <= MAX_STEP_BYTES, "a replica's journal takes any event");
