//! A leader that stands still (SIGSTOP) while another takes over: when it wakes, it has missed an election and does not
//! know yet. It must answer no read with what it held, whatever was asked and whenever.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use muster_catalog::{
    Command, Name, Scope, ServiceLookup, Snapshot, SnapshotBuilder, SnapshotRow,
    port::{Consistency, Sink},
};
use muster_registry::{Client, ClientConfig, Hello, WatchEvent, WatchSender, WatchStream};
use muster_tests::{
    harness::{TestCluster, eventually},
    load::registration_command,
};
use tokio::time::timeout;

/// How often a leader is paused.
const ROUNDS: u64 = 4;
/// How long an answer may take after the wake.
const PATIENCE: Duration = Duration::from_secs(30);

/// A replica on a watch of one member alone.
struct Reader {
    snapshot: Snapshot,
    asking: WatchSender,
    events: WatchStream,
    asked: u64,
}

impl Reader {
    async fn follow(member: &str) -> Result<Self> {
        let client = Client::new(ClientConfig::new(vec![member.to_owned()]));
        let hello = Hello { scope: Scope::All, resume: None, watcher: None, accept_new_cluster: false };
        let (asking, mut events) = client.watch(hello).await?;
        let mut loading = None;
        loop {
            match events.next().await.context("the watch ended")?? {
                WatchEvent::Row(row) => {
                    if matches!(row, SnapshotRow::Header(_)) {
                        loading = Some(SnapshotBuilder::new(Scope::All));
                    }
                    loading.as_mut().context("rows before their header")?.push(row);
                }
                WatchEvent::Loaded { .. } => {
                    let snapshot = loading.take().context("loaded without rows")?.finish();
                    return Ok(Self { snapshot, asking, events, asked: 0 });
                }
                _ => {}
            }
        }
    }

    /// Asks for a read and returns at once.
    fn ask(&mut self, consistency: Consistency) -> Result<u64> {
        self.asked += 1;
        self.asking.barrier(self.asked, consistency)?;
        Ok(self.asked)
    }

    /// The value as of the answer to that question; an error where the member gives none.
    async fn answer(&mut self, question: u64) -> Result<Option<u64>> {
        loop {
            match timeout(PATIENCE, self.events.next()).await.context("no answer")?.context("the watch ended")?? {
                WatchEvent::Entry(entry) => drop(self.snapshot.fold(&entry)),
                WatchEvent::Advance { index, at } => self.snapshot.advance(index, at),
                WatchEvent::Barrier { id, result } if id == question => {
                    let index = result.map_err(anyhow::Error::msg)?;
                    ensure!(index <= self.snapshot.index(), "the answer came before what it promises");
                    return Ok(value(&self.snapshot));
                }
                WatchEvent::Row(_) | WatchEvent::Loaded { .. } => bail!("the watch began anew"),
                _ => {}
            }
        }
    }
}

fn write(value: u64) -> Command {
    let mut command = registration_command(0);
    if let Command::Register(registration) = &mut command {
        registration.instances[0].meta = [("value".into(), value.to_string().as_str().into())].into();
    }
    command
}

fn value(snapshot: &Snapshot) -> Option<u64> {
    let ServiceLookup::Held(_, set) = snapshot.service(&Name::lookup("svc-0")) else { return None };
    set.instances.iter().find_map(|entry| entry.instance.value.meta.get("value")?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_answers_no_read_with_old_data() -> Result<()> {
    let mut cluster = TestCluster::start(3)?;
    let everyone = Client::new(ClientConfig::new(cluster.members()));
    let mut answered = 0;
    for round in 0..ROUNDS {
        let (before, after) = (round * 10 + 1, round * 10 + 2);
        let leader = eventually("a leader and a write", || async {
            everyone.submit(write(before)).await?;
            let status = everyone.members().await?;
            Ok(status.members.iter().find(|member| member.is_leader).map(|member| member.address.clone()))
        })
        .await?;
        let number = cluster.member_at(&leader).context("the leader is none of the members")?;
        let mut reader = eventually("a watch", || async { Ok(Some(Reader::follow(&leader).await?)) }).await?;
        let question = reader.ask(Consistency::Linearizable)?;
        ensure!(reader.answer(question).await? == Some(before), "the leader does not know its own write");

        let paused = cluster.process(number).context("the leader is down")?;
        paused.signal("STOP")?;
        let others: Vec<String> = cluster.members().into_iter().filter(|address| *address != leader).collect();
        let others = Client::new(ClientConfig::new(others));
        let written = eventually("the others to take a write", || async { Ok(others.submit(write(after)).await.ok()) });
        let written = written.await?;
        // Asked after the write was acknowledged, and before the old leader wakes: what it finds first.
        let consistency = if round % 2 == 0 { Consistency::Linearizable } else { Consistency::Lease };
        let question = reader.ask(consistency);
        cluster.process(number).context("the leader is down")?.signal("CONT")?;
        let outcome = match question {
            Ok(question) => reader.answer(question).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(found) => {
                ensure!(found == Some(after), "{consistency:?}: {found:?} after {after} was acknowledged");
                answered += 1;
            }
            // No answer is no wrong answer. (The watch ends when its member was silent for long.)
            Err(error) => println!("round {round}: {error:#}"),
        }
        // It has to become a good member again.
        eventually("the paused member to follow", || async {
            let mut reader = Reader::follow(&leader).await?;
            let question = reader.ask(Consistency::Linearizable)?;
            let found = reader.answer(question).await?;
            ensure!(found == Some(after) && reader.snapshot.index() >= written.index, "it has {found:?}");
            Ok(Some(()))
        })
        .await?;
    }
    ensure!(answered > 0, "no paused leader answered anything: this showed nothing");
    println!("{answered} of {ROUNDS} paused leaders answered, with what was written while they stood still");
    Ok(())
}
