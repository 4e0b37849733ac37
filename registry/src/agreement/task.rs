//! Comparing the catalogs: every member asks all others each second, and acts on what they say.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use muster_catalog::{CHECKSUM_VERSION, Checksum};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Agreement, Disagreement, Verdict, follow, judge};
use crate::{
    proto::registry as pb,
    raft::{Member, MemberChange, id_text},
    service::Core,
    store::directory,
};

/// How often the catalogs are compared: a member that differs serves about this long.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long after it was reached here an index is asked for: the others have it by then.
const SETTLE: Duration = Duration::from_millis(200);
/// A member that does not answer within this is passed over.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// What another member said.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    /// Its checksum at the index, where it has one that can be compared.
    sum: Option<Checksum>,
    fault: String,
}

impl Core {
    /// Why this member serves nothing, where that is so.
    pub(crate) fn disagreement(&self) -> Option<Arc<str>> {
        self.agreement.borrow().own.as_ref().map(|found| found.why.clone())
    }

    /// Refuses on behalf of a member that serves nothing.
    pub(crate) fn check_serves(&self) -> Result<(), Status> {
        self.disagreement().map_or(Ok(()), |why| Err(Status::unavailable(&*why)))
    }

    /// Answers another member's question.
    pub(crate) fn checksum(&self, index: u64) -> pb::ChecksumReply {
        let own = self.agreement.borrow().own.clone();
        // One that was found to differ is no witness any more: the last good member would stop because of it.
        let decided = own.as_ref().is_some_and(|found| found.decided);
        let sum = self.catalog.sums.at(index).filter(|_| !decided);
        pb::ChecksumReply {
            member: self.log.id(),
            version: CHECKSUM_VERSION,
            sum: sum.map(|sum| Bytes::copy_from_slice(&sum.0.to_be_bytes())).unwrap_or_default(),
            fault: own.map(|found| found.why.to_string()).unwrap_or_default(),
        }
    }

    /// Whether the member itself answers at its address, and no other one.
    pub(crate) async fn answers_as_itself(&self, member: &Member) -> bool {
        self.ask_checksum(member, 0).await.is_some()
    }

    /// Asks one. An older build does not know the question.
    async fn ask_checksum(&self, member: &Member, index: u64) -> Option<Heard> {
        let mut client = self.peers.client(&member.address).ok()?;
        let answer = timeout(ANSWER_TIMEOUT, client.checksum(pb::ChecksumRequest { index })).await;
        heard(member.id, answer.ok()?.ok()?.into_inner())
    }
}

/// Reads the answer of a member. Somebody else may have its address by now.
fn heard(id: u64, reply: pb::ChecksumReply) -> Option<Heard> {
    let pb::ChecksumReply { member, version, sum, fault } = reply;
    let sum = <[u8; 16]>::try_from(&*sum).ok().filter(|_| version == CHECKSUM_VERSION);
    (member == id).then(|| Heard { sum: sum.map(|bytes| Checksum(u128::from_be_bytes(bytes))), fault })
}

/// What a data folder says of its member, where it was found to differ.
pub(crate) fn marked(why: String) -> Agreement {
    Agreement { own: Some(Disagreement { decided: true, why: why.into() }), ..Agreement::default() }
}

/// Compares until the member stops. What is found for good is marked in `folder`.
pub(crate) async fn run(
    core: Arc<Core>,
    folder: Option<PathBuf>,
    shown: watch::Sender<Agreement>,
    stop: CancellationToken,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let is_marked = shown.borrow().own.is_some();
    let mut comparing = Comparing { core, folder, shown, is_marked };
    if let Some(found) = &comparing.shown.borrow().own {
        tracing::error!(why = &*found.why, "this member serves nothing, as before its restart");
    }
    comparing.show();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = comparing.compare() => {}
        }
    }
}

struct Comparing {
    core: Arc<Core>,
    /// `None` in tests without a disk.
    folder: Option<PathBuf>,
    shown: watch::Sender<Agreement>,
    /// Whether the folder says that this member differs.
    is_marked: bool,
}

impl Comparing {
    async fn compare(&mut self) {
        let Some((index, own)) = self.core.catalog.sums.last() else { return };
        sleep(SETTLE).await;
        let (me, members) = (self.core.log.id(), self.core.log.members());
        let others: Vec<&Member> = members.iter().filter(|member| member.id != me).collect();
        let heard = join_all(others.iter().map(|member| self.core.ask_checksum(member, index))).await;
        let heard: Vec<(&Member, Heard)> =
            others.into_iter().zip(heard).filter_map(|(member, heard)| Some((member, heard?))).collect();
        let voters = members.iter().filter(|member| member.voter).count();
        let votes = members.iter().any(|member| member.voter && member.id == me);
        let given = heard.iter().filter(|(member, _)| member.voter).filter_map(|(_, heard)| heard.sum);
        let verdict = judge(own, votes, voters, &given.collect::<Vec<_>>());
        self.note(verdict, index, voters, &heard);
        self.mark().await;
        self.leave_the_lead(&heard).await;
    }

    fn note(&self, verdict: Verdict, index: u64, voters: usize, heard: &[(&Member, Heard)]) {
        let faults = heard.iter().filter(|(_, heard)| !heard.fault.is_empty());
        let others = faults.map(|(member, heard)| (member.id, heard.fault.clone())).collect();
        let Agreement { own: before, confirmed, .. } = self.shown.borrow().clone();
        let own = follow(before.clone(), verdict, index, voters);
        let confirmed = if verdict == Verdict::Confirmed { index } else { confirmed };
        match (&before, &own) {
            (before, Some(found)) if before.as_ref() != Some(found) => {
                tracing::error!(why = &*found.why, "this member serves nothing");
            }
            (Some(_), None) => tracing::info!(index, "a majority of voters has this member's catalog: it serves again"),
            _ => {}
        }
        let next = Agreement { own, others, confirmed };
        self.shown.send_if_modified(|shown| {
            // Whoever waits is not woken because all is well.
            let changed = shown.own != next.own || shown.others != next.others;
            *shown = next;
            changed
        });
        self.show();
    }

    fn show(&self) {
        let Agreement { own, confirmed, .. } = &*self.shown.borrow();
        metrics::gauge!("muster_registry_checksum_differs").set(if own.is_some() { 1.0 } else { 0.0 });
        metrics::gauge!("muster_registry_checksum_confirmed_index").set(*confirmed as f64);
    }

    /// Notes in the data folder what was decided, so that the member does not serve after a restart either.
    async fn mark(&mut self) {
        let decided = self.shown.borrow().own.clone().filter(|found| found.decided && !self.is_marked);
        let (Some(found), Some(folder)) = (decided, self.folder.clone()) else { return };
        let marked = tokio::task::spawn_blocking(move || directory::mark_differing(&folder, &found.why)).await;
        match marked.map_err(std::io::Error::other).and_then(|marked| marked) {
            Ok(()) => self.is_marked = true,
            Err(error) => tracing::warn!(%error, "the data folder could not be marked as one that differs"),
        }
    }

    /// A leader answers writes and watches over leases by its catalog: one that differs hands the lead to a voter that serves.
    async fn leave_the_lead(&self, heard: &[(&Member, Heard)]) {
        let decided = self.shown.borrow().own.as_ref().is_some_and(|found| found.decided);
        if !decided || !self.core.log.leadership().borrow().is_leader {
            return;
        }
        let next = heard.iter().find(|(member, heard)| member.voter && heard.fault.is_empty());
        let Some((next, _)) = next else { return };
        match self.core.log.change_members(MemberChange::Transfer(Some(id_text(next.id)))).await {
            Ok(done) => tracing::info!(done, "this member's catalog differs: it gave the lead away"),
            // It is tried again with the next comparison.
            Err(error) => tracing::warn!(%error, to = next.name, "the lead was not handed on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_checksum_of_the_same_kind_from_the_member_that_was_asked_is_compared() {
        let fault = "it differs".to_owned();
        let sum = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        let said = pb::ChecksumReply { member: 7, version: CHECKSUM_VERSION, sum, fault: fault.clone() };
        assert_eq!(heard(7, said.clone()), Some(Heard { sum: Some(Checksum(258)), fault: fault.clone() }));
        assert_eq!(heard(8, said.clone()), None);
        let none = Some(Heard { sum: None, fault });
        assert_eq!(heard(7, pb::ChecksumReply { version: CHECKSUM_VERSION + 1, ..said.clone() }), none);
        assert_eq!(heard(7, pb::ChecksumReply { sum: Bytes::new(), ..said }), none);
    }
}
