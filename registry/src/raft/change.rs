//! Changing the members by command, one change at a time, each waited for.
//!
//! Everything is refused that would leave the registry without a quorum of members that are heard, with what to do
//! instead. A change goes through two sets of voters that both have to agree (joint consensus); a leader that goes in
//! between leaves it half done, and the next leader's autopilot completes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use tracing::{info, warn};

use super::config::MAX_MEMBERS;
use super::membership::{Contacts, Membership, too_old};
use super::wire::{self, proto};
use super::{Machine, Member, Peer, StoredMembership, Types};

/// Learners beside the voters: the leader sends every write to each of them.
const MAX_LEARNERS: usize = 16;
/// A member that answered within this counts as heard: ten heartbeats, and more than a slow disk takes.
const HEARD: Duration = Duration::from_secs(2);
/// How long a leader that was just elected waits for every member's first answer.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Entries that a member may lack when it is given a vote: less than a second of writes at full speed.
const NEARLY_EQUAL: u64 = 5_000;
/// How long a change waits for another one before it is refused.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Builds that know this format know members without a vote; earlier ones would hand the membership on without the mark.
const READERS_SINCE: u32 = 2;
/// How long a committed change may take to be confirmed.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a new member may take to catch up before the command returns without it.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the lead may take to move: an election at default timeouts, and a second more.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is asked of the membership. Members are named by their name or by their id in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Takes up the empty member that answers at an address.
    Add {
        /// `host:port`, as the member itself advertises it.
        address: String,
        /// It stays without a vote until it is promoted.
        read_only: bool,
    },
    /// Gives a learner its vote.
    Promote(String),
    /// Takes a member out.
    Remove(String),
    /// Takes up the empty member at an address in the place of another one, in one step.
    Replace {
        /// The member that goes.
        member: String,
        /// Where the new one answers.
        address: String,
    },
    /// Hands the lead on, to the best voter where none is named.
    Transfer(Option<String>),
    /// Completes a change that an earlier leader left half done.
    Complete,
}

/// Why the members were not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was done: ask the leader, or, where none is known, again in a moment.
    #[error("this member does not lead")]
    NotLeader {
        /// Where known.
        leader: Option<Member>,
    },
    /// Nothing was done, and asking again will not help before something else is.
    #[error("{0}")]
    Refused(String),
    /// It may be done or not: look at the members.
    #[error("{0}")]
    Unknown(String),
}

type Changed = Result<String, ChangeError>;

fn refused<T>(why: impl Into<String>) -> Result<T, ChangeError> {
    Err(ChangeError::Refused(why.into()))
}

pub(super) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// An id as people are shown it.
pub(crate) fn shown(id: u64) -> String {
    format!("{id:016x}")
}

/// The member of that name or id. A name that several members have is no name.
fn find(membership: &StoredMembership, given: &str) -> Result<(u64, Peer), ChangeError> {
    let by_id = u64::from_str_radix(given, 16).ok().filter(|_| given.len() == 16);
    if let Some((id, peer)) = by_id.and_then(|id| membership.get_node(&id).map(|peer| (id, peer.clone()))) {
        return Ok((id, peer));
    }
    let mut named = membership.nodes().filter(|(_, peer)| peer.name == given);
    match (named.next(), named.next()) {
        (Some((id, peer)), None) => Ok((*id, peer.clone())),
        (Some(_), Some(_)) => refused(format!("several members are called {given:?}: name the one by its id")),
        (None, _) => {
            let names: Vec<&str> = membership.nodes().map(|(_, peer)| peer.name.as_str()).collect();
            refused(format!("no member is called {given:?} or has that id: there are {}", names.join(", ")))
        }
    }
}

fn is_heard(contacts: &Contacts, id: u64) -> bool {
    contacts.members.get(&id).and_then(|contact| contact.silent).is_some_and(|silent| silent <= HEARD)
}

/// Refuses a set of voters of which no majority is heard.
fn check_quorum(membership: &StoredMembership, contacts: &Contacts, next: &BTreeSet<u64>) -> Result<(), ChangeError> {
    if next.is_empty() {
        return refused("it is the last voter: promote another member first");
    }
    let silent: Vec<String> = next
        .iter()
        .filter(|id| !is_heard(contacts, **id))
        .map(|id| membership.get_node(id).map_or_else(|| shown(*id), |peer| peer.name.clone()))
        .collect();
    if next.len() - silent.len() >= majority(next.len()) {
        return Ok(());
    }
    refused(format!(
        "of the {} voters that would be left, {} would not answer, and the registry could write no more: bring {} back, or \
         add a member in its place, first",
        next.len(),
        silent.join(", "),
        silent.join(", ")
    ))
}

impl<M: Machine> Membership<M> {
    /// Changes the members, as the leader. Says what was done.
    pub(crate) async fn change(&self, change: MemberChange) -> Changed {
        if !self.shared.raft.is_leader() {
            return Err(self.not_leader());
        }
        let Ok(_one) = tokio::time::timeout(TURN_TIMEOUT, self.shared.changing.lock()).await else {
            return refused("another change of members is under way: try again when it is done");
        };
        let Some(contacts) = self.settled_contacts().await else { return Err(self.not_leader()) };
        let membership = self.effective();
        if contacts.joint && change != MemberChange::Complete {
            return refused(
                "an earlier change of members is half done: it is completed within seconds; try again then",
            );
        }
        match change {
            MemberChange::Add { address, read_only } => self.add(&membership, &address, read_only).await,
            MemberChange::Promote(member) => self.promote(&membership, &contacts, &member).await,
            MemberChange::Remove(member) => self.remove(&membership, &contacts, &member).await,
            MemberChange::Replace { member, address } => self.replace(&membership, &contacts, &member, &address).await,
            MemberChange::Transfer(to) => self.transfer(&membership, &contacts, to.as_deref()).await,
            MemberChange::Complete => {
                self.commit(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await?;
                Ok("completed the change of members".to_owned())
            }
        }
    }

    /// What is known of the others. A leader that was just elected waits a moment for their first word.
    async fn settled_contacts(&self) -> Option<Contacts> {
        let heard_all = |contacts: &Contacts| contacts.members.values().all(|contact| contact.silent.is_some());
        let wait = self.shared.raft.wait(Some(FIRST_WORD));
        let heard =
            wait.metrics(|_| self.contacts().is_none_or(|contacts| heard_all(&contacts)), "a word of all members");
        // Who stays silent is silent: the checks say what follows from it.
        drop(heard.await);
        self.contacts()
    }

    /// As the leader: who would lead best after it.
    pub(crate) fn next_leader(&self) -> Option<u64> {
        let contacts = self.contacts()?;
        best_voter(&self.effective(), &contacts, self.shared.id).map(|(id, _)| id)
    }

    fn not_leader(&self) -> ChangeError {
        let leader = self.leader().map(|leader| {
            let (id, peer) = wire::member_from(leader);
            Member { id, name: peer.name, address: peer.address, voter: true, read_only: false, is_leader: true }
        });
        // Just handed on, or just lost: this member is no leader to ask.
        ChangeError::NotLeader { leader: leader.filter(|leader| leader.id != self.shared.id) }
    }

    async fn add(&self, membership: &StoredMembership, address: &str, read_only: bool) -> Changed {
        let (id, peer) = match self.empty_member_at(membership, address, read_only).await? {
            Found::New(id, peer) => (id, peer),
            Found::Known(peer) => return Ok(format!("{} at {address} is a member already", peer.name)),
        };
        if let Some((_, old)) = membership.nodes().find(|(_, old)| old.address == address) {
            let old = &old.name;
            return refused(format!("{address} is the address of member {old}: `replace {old} {address}` instead"));
        }
        if membership.nodes().any(|(_, other)| other.name == peer.name) {
            return refused(format!(
                "another member is called {:?} already: give this one its own node.name",
                peer.name
            ));
        }
        let name = peer.name.clone();
        let caught_up = self.take_up(id, peer).await?;
        let next = match (caught_up, read_only) {
            (false, _) => "it has not caught up yet: look at `muster registry members`",
            (true, true) => "it has all data and no vote, until it is promoted",
            (true, false) => "it has all data, and gets its vote when it has been healthy for autopilot's stable_after",
        };
        Ok(format!("added {name} at {address}: {next}"))
    }

    async fn promote(&self, membership: &StoredMembership, contacts: &Contacts, given: &str) -> Changed {
        let (id, peer) = find(membership, given)?;
        let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
        if voters.contains(&id) {
            return Ok(format!("{} is a voter already", peer.name));
        }
        if voters.len() >= MAX_MEMBERS {
            return refused(format!("there are {MAX_MEMBERS} voters, and more make writes slower, not safer"));
        }
        let matched = contacts.members.get(&id).and_then(|contact| contact.matched).unwrap_or_default();
        if !is_heard(contacts, id) || matched.saturating_add(NEARLY_EQUAL) < contacts.last {
            return refused(format!(
                "{} has entry {matched} of {}, or does not answer: it is promoted when it has caught up",
                peer.name, contacts.last
            ));
        }
        voters.insert(id);
        check_quorum(membership, contacts, &voters)?;
        let vote = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        let change = if peer.read_only {
            // The address stays as it is, so that this replaces nobody.
            let peer = Peer { read_only: false, ..peer.clone() };
            ChangeMembers::Batch(vec![ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), vote])
        } else {
            vote
        };
        self.commit(change, true).await?;
        Ok(format!("{} has a vote now: {}", peer.name, tolerance(voters.len())))
    }

    async fn remove(&self, membership: &StoredMembership, contacts: &Contacts, given: &str) -> Changed {
        let (id, peer) = find(membership, given)?;
        let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
        if !voters.remove(&id) {
            self.commit(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await?;
            return Ok(format!("removed {}, which had no vote", peer.name));
        }
        check_quorum(membership, contacts, &voters)?;
        if id == self.shared.id {
            return Err(self.step_aside(membership, contacts).await);
        }
        self.commit(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await?;
        Ok(format!("removed {}: {}", peer.name, tolerance(voters.len())))
    }

    async fn replace(&self, membership: &StoredMembership, contacts: &Contacts, given: &str, address: &str) -> Changed {
        let found = find(membership, given);
        let (new, peer) = match self.empty_member_at(membership, address, false).await? {
            Found::New(new, peer) => (new, peer),
            Found::Known(peer) if found.is_err() => {
                return Ok(format!("{} at {address} is a member already, and {given} is none any more", peer.name));
            }
            // It was taken up by a command that did not come to its end.
            Found::Known(peer) => match membership.nodes().find(|(_, known)| known.address == address) {
                Some((id, _)) => (*id, peer),
                None => return refused(format!("the member at {address} is being changed: try again")),
            },
        };
        let (old, gone) = found?;
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let others = membership.nodes().filter(|(id, _)| **id != old && **id != new);
        if others.into_iter().any(|(_, other)| other.name == peer.name) {
            return refused(format!(
                "another member is called {:?} already: give this one its own node.name",
                peer.name
            ));
        }
        if old == self.shared.id {
            return Err(self.step_aside(membership, contacts).await);
        }
        let name = peer.name.clone();
        let peer = Peer { read_only: gone.read_only, ..peer };
        if !self.take_up(new, peer).await? {
            return Err(ChangeError::Unknown(format!(
                "{name} was added and has not caught up yet, {} is still a member: repeat the command when `muster registry \
                 members` shows it healthy",
                gone.name
            )));
        }
        let change = if voters.contains(&old) {
            let next = voters.into_iter().filter(|id| *id != old).chain([new]).collect();
            let contacts = self.contacts().ok_or_else(|| self.not_leader())?;
            check_quorum(&self.effective(), &contacts, &next)?;
            ChangeMembers::ReplaceAllVoters(next)
        } else {
            ChangeMembers::RemoveNodes(BTreeSet::from([old]))
        };
        self.commit(change, false).await?;
        Ok(format!("{name} at {address} has taken the place of {}", gone.name))
    }

    async fn transfer(&self, membership: &StoredMembership, contacts: &Contacts, to: Option<&str>) -> Changed {
        let (id, peer) = match to {
            Some(given) => find(membership, given)?,
            None => match best_voter(membership, contacts, self.shared.id) {
                Some(best) => best,
                None => return refused("no other voter is heard that could lead"),
            },
        };
        if id == self.shared.id {
            return Ok(format!("{} leads already", peer.name));
        }
        if membership.voter_ids().all(|voter| voter != id) {
            return refused(format!("{} has no vote, so it cannot lead: promote it first", peer.name));
        }
        if !is_heard(contacts, id) {
            return refused(format!("{} is not heard: the lead would be lost with it", peer.name));
        }
        let failed = |error: String| ChangeError::Unknown(format!("the lead was not handed on: {error}"));
        self.shared.raft.trigger().transfer_leader(id).await.map_err(|error| failed(error.to_string()))?;
        let wait = self.shared.raft.wait(Some(TRANSFER_TIMEOUT));
        let moved = wait.metrics(
            |metrics| metrics.current_leader.is_some_and(|leader| leader != self.shared.id),
            "the lead to move",
        );
        let now = moved.await.map_err(|error| failed(error.to_string()))?;
        match now.current_leader.and_then(|leader| now.membership_config.get_node(&leader).cloned()) {
            Some(leader) if leader == peer => Ok(format!("{} leads now", leader.name)),
            Some(leader) => Ok(format!("{} leads now: {} did not take the lead in time", leader.name, peer.name)),
            None => Err(failed("nobody is known to lead yet".to_owned())),
        }
    }

    /// Hands the lead on, because the leader itself is to go; the next leader is asked then.
    async fn step_aside(&self, membership: &StoredMembership, contacts: &Contacts) -> ChangeError {
        match self.transfer(membership, contacts, None).await {
            Ok(_) => self.not_leader(),
            Err(error) => error,
        }
    }

    /// The member that answers at an address, and may come in.
    async fn empty_member_at(
        &self,
        membership: &StoredMembership,
        address: &str,
        read_only: bool,
    ) -> Result<Found, ChangeError> {
        let reply = self.greet(address).await;
        let Some((reply, member)) = reply.and_then(|reply| reply.member.clone().map(|member| (reply, member))) else {
            return refused(format!(
                "no member of a registry answers at {address}: start one there, with an empty data folder, \
                 registry.advertise = {address:?}, and members of this registry in registry.members"
            ));
        };
        let (id, peer) = wire::member_from(member);
        if let Some(known) = membership.get_node(&id) {
            return Ok(Found::Known(known.clone()));
        }
        if peer.address != address {
            return refused(format!("the member at {address} advertises {}: name it so", peer.address));
        }
        if reply.initialised {
            return refused(format!(
                "{} at {address} holds the log of another registry, or was removed from this one: stop it, empty its data \
                 folder and start it again",
                peer.name
            ));
        }
        self.check_builds(&reply, read_only)?;
        let learners = membership.nodes().count().saturating_sub(membership.voter_ids().count());
        if learners >= MAX_LEARNERS {
            return refused(format!("there are {MAX_LEARNERS} members without a vote already: remove one first"));
        }
        Ok(Found::New(id, Peer { read_only, ..peer }))
    }

    fn check_builds(&self, new: &proto::HelloReply, read_only: bool) -> Result<(), ChangeError> {
        let in_force = (self.shared.formats.in_force)();
        if new.format.max(1) < in_force {
            return refused(too_old(new, in_force));
        }
        if read_only && in_force < READERS_SINCE {
            return refused(format!(
                "the catalog has format {in_force}, so some member may run a build that would forget which members have no \
                 vote: upgrade all members first"
            ));
        }
        Ok(())
    }

    /// Makes a member a learner and waits until it has caught up; false when it has not in time.
    async fn take_up(&self, id: u64, peer: Peer) -> Result<bool, ChangeError> {
        info!(id, %peer, "taking up a member");
        self.commit(ChangeMembers::AddNodes(BTreeMap::from([(id, peer)])), true).await?;
        let metrics = self.shared.raft.metrics();
        let target = metrics.borrow_watched().last_log_index.unwrap_or_default();
        let wait = self.shared.raft.wait(Some(CATCH_UP_TIMEOUT));
        let caught_up = wait.metrics(
            |metrics| match &metrics.replication {
                Some(matched) => matched.get(&id).copied().flatten().is_some_and(|id| id.index >= target),
                None => true,
            },
            "the new member to catch up",
        );
        match caught_up.await {
            Ok(metrics) if metrics.replication.is_none() => Err(ChangeError::Unknown(
                "the lead was lost while the new member caught up: look at `muster registry members`".to_owned(),
            )),
            Ok(_) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    /// Commits one change and waits for it.
    async fn commit(&self, change: ChangeMembers<u64, Peer>, retain: bool) -> Result<(), ChangeError> {
        warn!(%change, "the members change");
        let committed = tokio::time::timeout(CHANGE_TIMEOUT, self.shared.raft.change_membership(change, retain)).await;
        match committed {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.change_error(error)),
            Err(_) => Err(ChangeError::Unknown(format!(
                "no majority of members confirmed the change within {CHANGE_TIMEOUT:?}: look at `muster registry members`"
            ))),
        }
    }

    fn change_error(&self, error: RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => self.not_leader(),
            RaftError::APIError(error) => ChangeError::Refused(error.to_string()),
            RaftError::Fatal(fatal) => ChangeError::Unknown(format!("the log of this member has stopped: {fatal}")),
        }
    }
}

enum Found {
    New(u64, Peer),
    Known(Peer),
}

/// The voter that is heard and has most of the log.
pub(super) fn best_voter(membership: &StoredMembership, contacts: &Contacts, me: u64) -> Option<(u64, Peer)> {
    let heard = membership.voter_ids().filter(|id| *id != me && is_heard(contacts, *id));
    let best = heard.max_by_key(|id| contacts.members.get(id).and_then(|contact| contact.matched))?;
    membership.get_node(&best).map(|peer| (best, peer.clone()))
}

/// What a number of voters survives, in words.
fn tolerance(voters: usize) -> String {
    match voters {
        1 => "1 voter is left, and its loss is the loss of the registry".to_owned(),
        2 => "2 voters are left, and both have to be up: add a third".to_owned(),
        voters => {
            let lost = (voters - 1) / 2;
            let even = if voters.is_multiple_of(2) { ", no more than one voter less would" } else { "" };
            format!("{voters} voters survive the loss of {lost}{even}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::membership::Contact;
    use super::*;

    fn three() -> StoredMembership {
        let nodes: BTreeMap<u64, Peer> = (1..=4_u64)
            .map(|id| (id, Peer { name: format!("m{id}"), address: format!("h{id}:1"), read_only: false }))
            .collect();
        let membership = super::super::Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).unwrap();
        StoredMembership::new(None, membership)
    }

    fn heard(silent: &[(u64, Option<u64>)]) -> Contacts {
        let contact = |seconds: &Option<u64>| Contact { silent: seconds.map(Duration::from_secs), matched: Some(9) };
        let members = silent.iter().map(|(id, seconds)| (*id, contact(seconds))).collect();
        Contacts { term: 1, last: 9, joint: false, members }
    }

    #[test]
    fn a_set_of_voters_without_a_heard_majority_is_refused() {
        let (membership, all) = (three(), [(1, Some(0)), (2, Some(1)), (3, Some(0)), (4, Some(0))]);
        let silent = [(1, Some(0)), (2, Some(60)), (3, None), (4, Some(0))];
        for (contacts, next, expected) in [
            (heard(&all), vec![1, 2], None),
            (heard(&all), vec![], Some("the last voter")),
            // One of two, and one of three, is no majority.
            (heard(&silent), vec![1, 2], Some("bring m2 back")),
            (heard(&silent), vec![1, 2, 3], Some("m2, m3 would not answer")),
            (heard(&silent), vec![1, 3, 4], None),
            (heard(&silent), vec![1], None),
        ] {
            let checked = check_quorum(&membership, &contacts, &next.iter().copied().collect());
            match (checked, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{next:?}: {error}"),
                (other, _) => panic!("{next:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_member_is_found_by_name_or_id_and_the_best_voter_leads_next() {
        let membership = three();
        assert_eq!(find(&membership, "m2").unwrap().0, 2);
        assert_eq!(find(&membership, &shown(3)).unwrap().0, 3);
        assert!(find(&membership, "m9").unwrap_err().to_string().contains("there are m1, m2, m3, m4"));
        let mut contacts = heard(&[(1, Some(0)), (2, Some(1)), (3, Some(0)), (4, Some(0))]);
        contacts.members.get_mut(&3).unwrap().matched = Some(3);
        // 4 has no vote, 3 lags.
        assert_eq!(best_voter(&membership, &contacts, 1).unwrap().0, 2);
        assert_eq!(tolerance(3), "3 voters survive the loss of 1");
        assert!(tolerance(4).starts_with("4 voters survive the loss of 1, no more"));
    }
}
