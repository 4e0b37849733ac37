//! Every setting of openraft, with its value and the reason.
//!
//! Nothing is left to a default: a default may change with a version, and one of them (a leader that restarts leads on)
//! once cost acknowledged writes. A version that brings a new setting does not compile before somebody has decided it here.

use std::time::Duration;

use super::config::{ConsensusConfig, StartError};
use super::network::SNAPSHOT_TIMEOUT;

/// Entries of one append to a follower. The bytes are bounded by the log's reader, which stops earlier with large ones.
const MAX_PAYLOAD_ENTRIES: u64 = 300;
/// Entries written to the own log at once: as many as are taken from the callers at once.
const MAX_APPEND_ENTRIES: u64 = 4096;
/// Calls that wait for the core: writers wait in the callers' own bounded queues long before.
const CALLS: u64 = 65_536;
/// Messages between the core and its tasks (flushed, replicated, tick): each writer has a few of them on the way.
const NOTICES: u64 = 65_536;
/// Batches that wait to be applied, each of many entries: beyond them the core waits for the machine.
const APPLIES: u64 = 1024;
/// How long a leader that was voted out goes on, so that the others hear that the change was committed: a heartbeat.
const STEP_DOWN_MILLISECONDS: u64 = 150;
/// openraft's pieces of a snapshot. Ours are streamed as files, in pieces of our own: nothing reads this.
const UNUSED_CHUNK_BYTES: u64 = 3 * 1024 * 1024;

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// openraft's configuration, checked.
pub(super) fn openraft(config: &ConsensusConfig) -> Result<openraft::Config, StartError> {
    settings(config).validate().map_err(|error| StartError::Timing(error.to_string()))
}

#[expect(deprecated, reason = "every field is named, so that a new one does not compile; this one is set to `off`")]
fn settings(config: &ConsensusConfig) -> openraft::Config {
    openraft::Config {
        // For its logs alone.
        cluster_name: "muster".into(),

        // --- Who leads ---
        election_timeout_min: milliseconds(config.election_timeout_min),
        // Also the leader's lease.
        election_timeout_max: milliseconds(config.election_timeout_max),
        heartbeat_interval: milliseconds(config.heartbeat_interval),
        // Every heartbeat is sent, writes or not: one held back because of a write would come later than its interval.
        heartbeat_min_interval: Some(0),
        // Ticks, heartbeats and elections by the clock; they can be turned off for tests of openraft's own.
        enable_tick: true,
        enable_heartbeat: true,
        enable_elect: true,
        // A member that was cut off, or is behind, does not depose a leader that the others hear.
        enable_pre_vote: Some(true),
        // A leader that restarts within its lease must not lead on in its term. It has lost what it had not flushed,
        // and followers may hold that already (see `broadcast_submitted_on_append`): it would give the same term and
        // index to other entries, followers would keep their own under them, and acknowledged writes would be gone.
        // The new term of an election is what tells the two apart.
        enable_leader_restore: Some(false),
        removed_leader_step_down: openraft::StepDownPolicy::After(STEP_DOWN_MILLISECONDS),
        // Off: a leader that hears no quorum goes on sending heartbeats, so that it is heard at once when the network
        // is back. It serves no read and commits nothing meanwhile.
        quorum_loss_probe_interval: None,

        // --- Replication ---
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        max_append_entries: Some(MAX_APPEND_ENTRIES),
        // Followers write while the leader writes: one disk's time per write instead of two. An entry counts as the
        // leader's own only once it is flushed here, so a quorum has flushed what is committed. Needs
        // `enable_leader_restore` off.
        broadcast_submitted_on_append: Some(true),
        // First retries come fast, for a member that just restarts; later ones spare a dead one's address.
        backoff: "20ms 50ms 100ms ...1s".into(),
        // A member that is to lead is sent what it lacks at once.
        reset_backoff_on_transfer_leader: Some(true),
        // A follower that has less than it once acknowledged has a disk that went back in time. A quorum was counted on
        // what is gone, so that until it has it again a few members could elect one without it: it is sent at once,
        // and the leader logs an error that names the member (`Link::note_conflict`).
        allow_log_reversion: Some(true),

        // --- Snapshots and the log behind them ---
        // Ours goes by the state's size, too (`apply.rs`).
        snapshot_policy: openraft::SnapshotPolicy::Never,
        install_snapshot_timeout: milliseconds(SNAPSHOT_TIMEOUT),
        // Off; the one before holds for the whole snapshot.
        send_snapshot_timeout: 0,
        snapshot_max_chunk_size: UNUSED_CHUNK_BYTES,
        // A follower further behind than this is sent a snapshot; less would race with the snapshots themselves.
        replication_lag_threshold: config.snapshot_entries.saturating_add(config.kept_entries),
        max_in_snapshot_log_to_keep: config.kept_entries,
        // Purging is a write: a batch of entries each, but never so large that a small log is never purged.
        purge_batch_size: (config.snapshot_entries / 64).clamp(1, 256),

        // --- Queues within the process ---
        api_channel_size: Some(CALLS),
        api_batch_capacity: MAX_APPEND_ENTRIES,
        // A write does not wait for company: those that come while a flush runs go together anyway.
        api_batch_linger_ms: 0,
        notification_channel_size: Some(NOTICES),
        state_machine_channel_size: Some(APPLIES),
        // Used with openraft's feature `runtime-stats` alone, which we do not build.
        log_stage_capacity: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new setting does not compile. One that is there but left open (`None` is "as this version likes") fails here,
    /// as does a change of what keeps the log safe.
    #[test]
    fn nothing_is_left_to_a_default_of_openraft() {
        let config = ConsensusConfig::new("m1", "127.0.0.1:8300", "/nowhere");
        let set = openraft(&config).unwrap();
        let shown = format!("{set:#?}");
        let open: Vec<&str> = shown.lines().filter_map(|line| line.trim().strip_suffix(": None,")).collect();
        assert_eq!(open, ["log_stage_capacity", "quorum_loss_probe_interval"], "these two are off where they are None");
        assert_eq!(set.enable_leader_restore, Some(false), "a leader that restarts must be elected anew");
        assert_eq!(set.allow_log_reversion, Some(true), "what a follower lost is sent again while the leader lives");
        assert_eq!(set.enable_pre_vote, Some(true));
    }
}
