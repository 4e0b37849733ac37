use std::{
    collections::BTreeMap,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

use muster_catalog::{
    Entry, Name, Proposal, Snapshot, Status, Timestamp, decide,
    port::{BoxFuture, Written},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    super::samples::{check, everything, instance, pusher},
    *,
};

type Refuses = Box<dyn Fn(&NodeSync) -> Option<SubmitError> + Send + Sync>;

/// A state machine alone: it keeps each state that a watcher may see.
struct Registry {
    states: Mutex<Vec<Snapshot>>,
    refuses: Refuses,
    asked: AtomicUsize,
}

impl Registry {
    fn new(refuses: impl Fn(&NodeSync) -> Option<SubmitError> + Send + Sync + 'static) -> Self {
        let states = Mutex::new(vec![Snapshot::default()]);
        Self { states, refuses: Box::new(refuses), asked: AtomicUsize::new(0) }
    }

    fn last(&self) -> Snapshot {
        self.states.lock().unwrap().last().unwrap().clone()
    }

    fn known(&self) -> Option<Arc<NodeEntry>> {
        self.last().find_node(&Name::lookup("n1")).cloned()
    }

    async fn send(&self, push: Push) -> Result<Sent, Halted> {
        let (pusher, known) = (pusher(), self.known());
        // As an agent that goes on: its writes follow those before.
        let before = self.asked.load(Ordering::Relaxed);
        (0..before).for_each(|_| _ = pusher.next_writer());
        let sender = Sender { sink: self, pusher: &pusher, known: known.clone(), taken: &|| () };
        sender.send(push, |id| known.as_ref().is_some_and(|entry| entry.find_instance(id).is_some())).await
    }
}

impl Sink for Registry {
    fn submit(&self, command: Command) -> BoxFuture<'_, Result<Written, SubmitError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let Command::Sync(sync) = &command else { panic!("no push") };
            if let Some(error) = (self.refuses)(sync) {
                return Err(error);
            }
            let mut state = self.last();
            let (index, at) = (state.index() + 1, Timestamp(1));
            let changes = decide(&state, &Proposal { at, command })?;
            state.fold(&Entry { index, at, changes });
            self.states.lock().unwrap().push(state);
            Ok(Written { index })
        })
    }
}

fn refuses_rows(bad: &'static [&'static str]) -> impl Fn(&NodeSync) -> Option<SubmitError> {
    let bad = move |id: &str| bad.contains(&id);
    move |sync| {
        let wrong = sync.instances.iter().any(|row| bad(&row.id)) || sync.checks.iter().any(|row| bad(&row.id));
        wrong.then(|| SubmitError::Refused("it has a bad name".to_owned()))
    }
}

/// What a state says of each instance: the worst of its checks.
fn worst(state: &Snapshot) -> BTreeMap<InstanceId, Status> {
    let entry = state.find_node(&Name::lookup("n1"));
    let instances = entry.iter().flat_map(|entry| &entry.instances);
    instances.map(|entry| (entry.instance.value.id.clone(), entry.checks.worst())).collect()
}

#[tokio::test]
async fn a_refused_row_is_found_and_holds_up_no_other() {
    let registry = Registry::new(refuses_rows(&["i00007", "c00050"]));
    let sent = registry.send(everything(40, 2, 10)).await.unwrap();
    let reasons: Vec<_> = sent.refused.reasons().collect();
    let instances = ["instance i00007 of service web", "instance i00025 of service web"];
    assert_eq!(reasons, instances.map(|row| (row.to_owned(), "it has a bad name")));
    assert_eq!(sent.refused.len(), 6, "each with its two checks");
    assert_eq!(worst(&registry.last()).len(), 38);
    assert_eq!(sent.index, registry.last().index());
    assert!(registry.asked.load(Ordering::Relaxed) < 26, "{:?}", registry.asked);
}

#[tokio::test]
async fn what_is_right_of_an_instance_that_is_there_is_told() {
    let registry = Registry::new(refuses_rows(&["bad"]));
    registry.send(everything(3, 1, 10)).await.unwrap();
    let mut push = everything(3, 1, 10);
    push.instances[1].draining = true;
    push.checks[1].status = Status::Warning;
    push.checks.push(check("bad", Some("i00001"), Status::Passing, 10));
    let sent = registry.send(push).await.unwrap();
    assert_eq!(sent.refused.reasons().map(|(row, _)| row).collect::<Vec<_>>(), ["check bad"]);
    let known = registry.known().unwrap();
    let entry = known.find_instance("i00001").unwrap();
    assert!(entry.instance.value.draining);
    assert_eq!(entry.checks.iter().map(|row| row.value.status).collect::<Vec<_>>(), [Status::Warning]);
    // What is gone goes, whatever else is refused.
    let mut push = everything(2, 1, 10);
    push.instances.push(instance("bad"));
    registry.send(push).await.unwrap();
    assert_eq!(
        worst(&registry.last()).into_keys().collect::<Vec<_>>(),
        ["i00000".into(), "i00001".into()] as [InstanceId; 2]
    );
}

#[tokio::test]
async fn a_refusal_of_the_node_is_one_of_all_and_is_not_searched_for() {
    let registry = Registry::new(|_| Some(SubmitError::Refused("the name is taken".to_owned())));
    let halted = registry.send(everything(40, 2, 10)).await.unwrap_err();
    assert!(is_refusal(&halted.error) && !halted.begun);
    assert_eq!(registry.asked.into_inner(), 2);
}

#[tokio::test]
async fn an_outage_between_parts_leaves_some_of_them_there() {
    let registry = Registry::new(|sync| {
        let late = sync.instances.iter().any(|row| &*row.id == "i02399");
        late.then(|| SubmitError::Unavailable("there is no leader".to_owned()))
    });
    let halted = registry.send(everything(2_400, 1, 1_200)).await.unwrap_err();
    assert!(halted.begun && !is_refusal(&halted.error));
    // Said anew it is all there.
    let registry = Registry { refuses: Box::new(|_| None), ..registry };
    assert!(registry.send(everything(2_400, 1, 1_200)).await.unwrap().refused.is_empty());
    assert_eq!(worst(&registry.last()).len(), 2_400);
}

/// Some of the instances, with checks of any status; now and then one with more checks than a Command takes.
fn random(random: &mut StdRng) -> Push {
    let mut push = Push { complete: true, ..Push::default() };
    for at in 0..30 {
        if random.random_bool(0.3) {
            continue;
        }
        let owner = format!("i{at}");
        push.instances.push(instance(&owner));
        let checks = if random.random_bool(0.03) { 700 } else { random.random_range(0..40) };
        for check_at in 0..checks {
            let id = format!("c{}", at * 1_000 + check_at);
            let status = [Status::Passing, Status::Warning, Status::Critical][random.random_range(0..3)];
            push.checks.push(check(&id, Some(&owner), status, 4_000));
        }
    }
    push
}

#[tokio::test]
async fn between_parts_nothing_is_gone_that_stays_and_nothing_is_better_than_it_is() {
    for seed in 0..12 {
        let mut generator = StdRng::seed_from_u64(seed);
        let registry = Registry::new(|_| None);
        for _ in 0..3 {
            let (before, push) = (worst(&registry.last()), random(&mut generator));
            let from = registry.states.lock().unwrap().len();
            let whole = Registry::new(|_| None);
            whole.submit(Command::Sync(sync_of(push.clone()))).await.unwrap();
            registry.send(push).await.unwrap();
            let after = worst(&whole.last());
            let states: Vec<_> = registry.states.lock().unwrap()[from..].iter().map(worst).collect();
            for (id, status) in &after {
                let least = before.get(id).map_or(*status, |before| *status.min(before));
                for state in &states {
                    let seen = state.get(id);
                    assert!(seen.is_some() || !before.contains_key(id), "seed {seed}: {id} is gone");
                    assert!(seen.is_none_or(|seen| *seen >= least), "seed {seed}: {id} is {seen:?}, over {least:?}");
                }
            }
            assert_eq!(states.last().unwrap(), &after, "seed {seed}");
        }
    }
}

fn sync_of(push: Push) -> NodeSync {
    let Push { complete, instances, checks, removed_instances, removed_checks } = push;
    let pusher = pusher();
    let (writer, node) = (pusher.next_writer(), pusher.node.clone());
    NodeSync { writer, node, complete, instances, checks, removed_instances, removed_checks }
}
