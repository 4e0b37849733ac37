//! A log in memory that several members share, for tests of all that stands on the log.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use muster_catalog::port::BoxFuture;
use tokio::sync::watch;

use super::{Log, Outcome};
use crate::{
    machine::{Answer, CatalogMachine},
    raft::{
        ChangeError, Committed, Contact, Contacts, Greeting, Leadership, Machine, Member, MemberChange, ProposeError,
        ReadError, ReadPolicy,
    },
};

/// The members of a registry in one process.
#[derive(Default)]
pub(crate) struct MemoryCluster {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    index: u64,
    term: u64,
    leader: Option<u64>,
    seats: Vec<Seat>,
}

struct Seat {
    member: Member,
    machine: CatalogMachine,
    /// The newest format that its build knows.
    format: u32,
    leadership: watch::Sender<Leadership>,
    /// Committed but not applied: this member lags.
    lagging: Option<Vec<Committed>>,
}

/// One member's log.
pub(crate) struct MemoryLog {
    cluster: Arc<MemoryCluster>,
    id: u64,
}

impl MemoryCluster {
    /// Gives a member its seat.
    pub(crate) fn join(self: &Arc<Self>, address: String, machine: CatalogMachine) -> Arc<MemoryLog> {
        let mut inner = self.inner.lock().unwrap();
        let id = inner.seats.len() as u64 + 1;
        let name = format!("member-{id}");
        let member = Member { id, name, address, voter: true, read_only: false, is_leader: false };
        let (leadership, _) = watch::channel(Leadership { recovered: true, ..Leadership::default() });
        inner.seats.push(Seat { member, machine, format: muster_catalog::FORMAT, leadership, lagging: None });
        Arc::new(MemoryLog { cluster: self.clone(), id })
    }

    /// Makes a member the leader, or nobody.
    pub(crate) fn elect(&self, leader: Option<u64>) {
        let mut inner = self.inner.lock().unwrap();
        (inner.term, inner.leader) = (inner.term + 1, leader);
        if leader.is_some() {
            inner.commit(None);
        }
        let term = inner.term;
        let found = inner.seats.iter().find(|seat| Some(seat.member.id) == leader).map(|seat| seat.member.clone());
        for seat in &inner.seats {
            let is_leader = Some(seat.member.id) == leader;
            let leader = found.clone();
            seat.leadership.send_replace(Leadership {
                is_leader,
                leader,
                term,
                recovered: true,
                ..Leadership::default()
            });
        }
    }

    /// As if a member ran a build that knows this format at most.
    pub(crate) fn set_build(&self, id: u64, format: u32) {
        let mut inner = self.inner.lock().unwrap();
        inner.seats.iter_mut().find(|seat| seat.member.id == id).unwrap().format = format;
    }

    /// Stops a member from applying, or lets it catch up.
    pub(crate) fn lag(&self, id: u64, lag: bool) {
        let mut inner = self.inner.lock().unwrap();
        let seat = inner.seats.iter_mut().find(|seat| seat.member.id == id).unwrap();
        if lag {
            seat.lagging.get_or_insert_default();
        } else if let Some(missed) = seat.lagging.take() {
            seat.machine.apply(missed);
        }
    }
}

impl MemoryCluster {
    /// Has one member apply what for all others is a blank entry, as a defect or damaged memory would.
    pub(crate) fn alter(&self, id: u64, payload: Bytes) {
        let mut inner = self.inner.lock().unwrap();
        inner.index += 1;
        let index = inner.index;
        for seat in &mut inner.seats {
            let committed = Committed { index, payload: (seat.member.id == id).then(|| payload.clone()) };
            match &mut seat.lagging {
                Some(missed) => missed.push(committed),
                None => drop(seat.machine.apply(vec![committed])),
            }
        }
    }

    /// As if the disks of a majority, the leader's among them, had gone back in time to this index: members go on with what
    /// they have applied.
    pub(crate) fn go_back(&self, index: u64) {
        self.inner.lock().unwrap().index = index;
    }

    /// Replaces a lagging member's catalog by another's, as a Raft snapshot does.
    pub(crate) fn install(&self, from: u64, to: u64) {
        let mut inner = self.inner.lock().unwrap();
        let mut bytes = Vec::new();
        let seat = |id: u64| usize::try_from(id - 1).unwrap();
        inner.seats[seat(from)].machine.freeze()(&mut bytes).unwrap();
        let to = &mut inner.seats[seat(to)];
        to.machine.install(&mut bytes.as_slice()).unwrap();
        to.lagging = None;
    }
}

impl Inner {
    fn commit(&mut self, payload: Option<Bytes>) -> (u64, Answer) {
        self.index += 1;
        let committed = Committed { index: self.index, payload };
        let mut answer = Answer::default();
        for seat in &mut self.seats {
            match &mut seat.lagging {
                Some(missed) => missed.push(committed.clone()),
                None => {
                    let answers = seat.machine.apply(vec![committed.clone()]);
                    if Some(seat.member.id) == self.leader {
                        answer = answers.into_iter().next().unwrap();
                    }
                }
            }
        }
        (self.index, answer)
    }

    fn led_by(&self, id: u64) -> Result<(), Option<Member>> {
        if self.leader == Some(id) {
            return Ok(());
        }
        Err(self.seats.iter().find(|seat| Some(seat.member.id) == self.leader).map(|seat| seat.member.clone()))
    }
}

impl Log for MemoryLog {
    fn propose_many(&self, payloads: Vec<Bytes>) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let mut inner = self.cluster.inner.lock().unwrap();
            let propose = |payload| {
                inner.led_by(self.id).map_err(|leader| ProposeError::NotLeader { leader })?;
                Ok(inner.commit(Some(payload)))
            };
            payloads.into_iter().map(propose).collect()
        })
    }

    fn read_index(&self, _: ReadPolicy) -> BoxFuture<'_, Result<u64, ReadError>> {
        Box::pin(async move {
            let inner = self.cluster.inner.lock().unwrap();
            inner.led_by(self.id).map_err(|leader| ReadError::NotLeader { leader })?;
            Ok(inner.index)
        })
    }

    fn stand_for_election(&self) -> BoxFuture<'_, ()> {
        // Who leads is the test's to say.
        Box::pin(std::future::ready(()))
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        let inner = self.cluster.inner.lock().unwrap();
        inner.seats.iter().find(|seat| seat.member.id == self.id).unwrap().leadership.subscribe()
    }

    fn members(&self) -> Vec<Member> {
        let inner = self.cluster.inner.lock().unwrap();
        let members = inner.seats.iter().map(|seat| seat.member.clone());
        members.map(|member| Member { is_leader: inner.leader == Some(member.id), ..member }).collect()
    }

    fn id(&self) -> u64 {
        self.id
    }

    fn change_members(&self, _: MemberChange) -> BoxFuture<'_, Result<String, ChangeError>> {
        Box::pin(async move {
            let inner = self.cluster.inner.lock().unwrap();
            inner.led_by(self.id).map_err(|leader| ChangeError::NotLeader { leader })?;
            Err(ChangeError::Refused(format!("member {} keeps the members of its test", self.id)))
        })
    }

    fn hold_members(&self) -> BoxFuture<'_, Box<dyn Any + Send>> {
        Box::pin(async { Box::new(()) as _ })
    }

    fn contacts(&self) -> Option<Contacts> {
        let inner = self.cluster.inner.lock().unwrap();
        inner.led_by(self.id).ok()?;
        let contact = Contact { silent: Some(Duration::ZERO), matched: Some(inner.index) };
        let members = inner.seats.iter().map(|seat| (seat.member.id, contact)).collect();
        Some(Contacts { term: inner.term, last: inner.index, joint: false, members })
    }

    fn greetings(&self) -> BoxFuture<'_, BTreeMap<u64, Greeting>> {
        Box::pin(async {
            let inner = self.cluster.inner.lock().unwrap();
            let greeting = |seat: &Seat| Greeting {
                id: seat.member.id,
                format: seat.format,
                version: "test".into(),
                no_room: None,
            };
            inner.seats.iter().map(|seat| (seat.member.id, greeting(seat))).collect()
        })
    }
}
